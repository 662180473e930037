"""A drop-in for ``safetensors.numpy``."""

from typing import Any, Optional

from . import _forebay
from ._frameworks import Numpy
from ._model import Model, StrPath
from ._safe_open import safe_open, with_backend
from ._saving import saver
from ._stream import Progress

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def load_file(
    filename: StrPath, *, backend: str = "mmap", progress: Progress = None, **options: Any
) -> "dict[str, Any]":
    """All tensors of a file as arrays of numpy.

    Args:
        filename: A safetensors file, or whatever else ``forebay.open`` opens.
        backend: ``"mmap"`` for forebay's own choice, which on the CPU is a mapping; ``"pread"`` for
            ``load_mode="cpu=dio"``: memory that has nothing to do with the file any more.
        progress: Called with bytes that have landed and all bytes; ``True`` shows a bar.
        options: As ``forebay.open`` takes them.
    """
    with Model(filename, "numpy", **with_backend(backend, options)) as model:
        return model.load(progress=progress)


def load(data: bytes) -> "dict[str, Any]":
    """All tensors of a safetensors file that is in memory, copied out of it."""
    numpy = Numpy()
    view = memoryview(data)
    return {
        name: numpy.tensor(bytearray(view[start:end]), dtype, shape)
        for name, dtype, shape, start, end in _forebay.parse(bytes(data))
    }


def save(tensor_dict: "dict[str, Any]", metadata: "Optional[dict[str, str]]" = None) -> bytes:
    """``safetensors.numpy.save``."""
    saved: bytes = saver("numpy", "save")(tensor_dict, metadata=metadata)
    return saved


def save_file(
    tensor_dict: "dict[str, Any]",
    filename: StrPath,
    metadata: "Optional[dict[str, str]]" = None,
) -> None:
    """``safetensors.numpy.save_file``."""
    saver("numpy", "save_file")(tensor_dict, filename, metadata=metadata)
