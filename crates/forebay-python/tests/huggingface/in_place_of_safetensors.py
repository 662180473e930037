"""A plugin for pytest that puts forebay's functions in the place of safetensors'.

safetensors' own tests then test forebay: `pytest -p in_place_of_safetensors`. What saves stays
safetensors' own, and what forebay has not is left out by name, with the reason.
"""

import importlib
import importlib.util

import pytest
import safetensors

import forebay

HAS_TORCH = importlib.util.find_spec("torch") is not None

safetensors.safe_open = forebay.safe_open
replaced = {"numpy": ("load", "load_file", "safe_open")}
if HAS_TORCH:
    replaced["torch"] = ("load", "load_file", "load_model", "safe_open")
for module, names in replaced.items():
    theirs = importlib.import_module(f"safetensors.{module}")
    ours = importlib.import_module(f"forebay.{module}")
    for name in names:
        assert hasattr(theirs, name), name
        setattr(theirs, name, getattr(ours, name))

# File or test, and why it says nothing about forebay.
LEFT_OUT = {
    "test_handle.py": "forebay opens paths, not Python's file objects (_safe_open_handle)",
    "test_tf_comparison.py": "forebay has numpy and torch, not tensorflow",
    "test_paddle_comparison.py": "forebay has numpy and torch, not paddle",
    "test_flax_comparison.py": "forebay has numpy and torch, not flax",
    "test_mlx_comparison.py": "forebay has numpy and torch, not mlx",
}
if not HAS_TORCH:
    for file in ("multithreaded", "pread_backend", "pt_comparison", "pt_model", "simple"):
        LEFT_OUT[f"test_{file}.py"] = "torch is not installed"


@pytest.hookimpl
def pytest_ignore_collect(collection_path, config):
    if collection_path.name in LEFT_OUT:
        print(f"left out: {collection_path.name}: {LEFT_OUT[collection_path.name]}")
        return True
    return None
