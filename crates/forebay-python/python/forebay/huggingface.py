"""transformers, diffusers, accelerate and whatever else reads weights by safetensors' functions,
on forebay: for the time of a ``with`` block, or for one call of ``from_pretrained``.

    from forebay import huggingface

    with huggingface.patch():
        model = AutoModel.from_pretrained(folder)
"""

import importlib
import sys
import threading
from types import TracebackType
from typing import Any, Optional

from . import _forebay
from . import torch as forebay_torch
from ._reading import Read, StreamingOpen

__all__ = ["Read", "from_pretrained", "patch"]

# Where safetensors' functions are at home.
_HOMES = {
    "safe_open": "safetensors",
    "load_file": "safetensors.torch",
    "load_model": "safetensors.torch",
}
_FRAMEWORKS = ("pt", "torch", "pytorch", "np", "numpy")

_lock = threading.RLock()
# Patches in force, the latest last, and what was there before the first.
_patches: "list[patch]" = []
_theirs: "dict[str, Any]" = {}


def _put(functions: "dict[str, Any]", known: "list[dict[str, Any]]") -> None:
    """Replaces, in every module, what is one of the ``known`` functions by the one to use.

    Modules keep functions under names of their own (``from safetensors import safe_open``), so
    they are found by what they are, wherever they are.
    """
    wanted = {id(value): functions[name] for each in known for name, value in each.items()}
    for module in list(sys.modules.values()):
        space = getattr(module, "__dict__", None)
        if not isinstance(space, dict):
            continue
        for name, value in list(space.items()):
            if id(value) in wanted and wanted[id(value)] is not value:
                space[name] = wanted[id(value)]


class patch:
    """Puts forebay in the place of safetensors' ``safe_open``, ``load_file`` and ``load_model``.

    For the time of a ``with`` block this holds in the whole process, in every module that has
    imported them, and in those that do so meanwhile; afterwards everything is as it was. Blocks
    may nest and overlap in threads: the latest decides with which options all of them read.

    Args:
        options: How loads read, as ``forebay.open`` takes them.

    Attributes:
        reads: What was read of each file: a list of :class:`Read`.
    """

    def __init__(self, **options: Any) -> None:
        self.reads: "list[Read]" = []
        _forebay.check_options(**options)
        self._options = options
        self._functions = self._replacements()

    def __enter__(self) -> "patch":
        with _lock:
            if not _patches:
                _theirs.update(
                    (name, getattr(importlib.import_module(home), name))
                    for name, home in _HOMES.items()
                )
            if self in _patches:
                raise RuntimeError("this patch is in force already: make another")
            known = [_theirs, *(it._functions for it in _patches)]
            _patches.append(self)
            try:
                _put(self._functions, known)
            except BaseException:
                # As by Ctrl-C: there will be no end of the block to put things back.
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self,
        kind: "Optional[type[BaseException]]",
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        with _lock:
            _patches.remove(self)
            left = _patches[-1]._functions if _patches else _theirs
            _put(left, [self._functions, _theirs, *(it._functions for it in _patches)])

    def _replacements(self) -> "dict[str, Any]":
        """The functions that take the place of safetensors'."""
        reads, options = self.reads, self._options

        class safe_open(StreamingOpen):
            """``safetensors.safe_open``, on forebay."""

            def __new__(cls, filename: Any, framework: str, *given: Any, **more: Any) -> Any:
                if framework in _FRAMEWORKS:
                    return super().__new__(cls)
                return _theirs["safe_open"](filename, framework, *given, **more)

            def __init__(
                self, filename: Any, framework: str, device: Any = "cpu", *, backend: str = "mmap"
            ) -> None:
                super().__init__(filename, framework, device, reads, backend=backend, **options)

        def load_file(
            filename: Any, device: Any = "cpu", *, backend: str = "mmap"
        ) -> "dict[str, Any]":
            with safe_open(filename, "pt", device, backend=backend) as file:
                return file.get_tensors()

        def load_model(
            model: Any,
            filename: Any,
            strict: bool = True,
            device: Any = "cpu",
            *,
            backend: str = "mmap",
        ) -> "tuple[Any, list[str]]":
            state = load_file(filename, device, backend=backend)
            return forebay_torch.load_into(model, state, strict)

        return {"safe_open": safe_open, "load_file": load_file, "load_model": load_model}


def from_pretrained(
    cls: Any, path: Any, *arguments: Any, reading: "Optional[dict[str, Any]]" = None, **named: Any
) -> Any:
    """``cls.from_pretrained(path, …)``, whose weights forebay reads.

    Args:
        cls: A class of transformers or diffusers: ``AutoModel``, ``DiffusionPipeline``, …
        path: What its ``from_pretrained`` takes: a folder, or the name of a model.
        arguments: More for ``from_pretrained``, as ``named``.
        reading: How it is read, as ``forebay.open`` takes it: ``{"load_mode": "dio"}``.
    """
    with patch(**(reading or {})):
        return cls.from_pretrained(path, *arguments, **named)
