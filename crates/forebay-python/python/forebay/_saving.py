"""Saving is safetensors' business: its functions serve where it is installed."""

import importlib
from typing import Any


def saver(module: str, name: str) -> Any:
    """A function of a module of safetensors."""
    try:
        return getattr(importlib.import_module(f"safetensors.{module}"), name)
    except ImportError as error:
        raise ImportError(
            f"forebay loads; {name} is safetensors' own, which is not installed "
            "(pip install safetensors)"
        ) from error
