"""``safe_open`` as safetensors has it."""

import os
from typing import Any, Optional

from ._closing import Closing
from ._errors import Error
from ._frameworks import device_name
from ._model import Model, StrPath, TensorSlice

# What safetensors calls its ways to read, as options of ours.
_BACKENDS: "dict[str, dict[str, Any]]" = {"mmap": {}, "pread": {"load_mode": "cpu=dio"}}


def with_backend(backend: str, options: "dict[str, Any]") -> "dict[str, Any]":
    """The options of a load, and what a backend of safetensors' says where they are silent."""
    if backend not in _BACKENDS:
        raise Error(f'backend "{backend}" is invalid (expected one of: "mmap", "pread")')
    return {**_BACKENDS[backend], **options}


class safe_open(Closing):
    """Opens a safetensors file, and reads tensors and parts of them as they are asked for.

    Args:
        filename: The file, or whatever else ``forebay.open`` opens.
        framework: ``"pt"`` or ``"np"``.
        device: Where tensors go: any device of torch, a number for a GPU; ``"cpu"`` for numpy.
        backend: As in ``forebay.torch.load_file``, for ``get_tensors``.
        options: Options of loads, as ``forebay.open`` takes them; ``get_tensors`` heeds them.
    """

    def __init__(
        self,
        filename: StrPath,
        framework: str,
        device: Any = "cpu",
        *,
        backend: str = "mmap",
        **options: Any,
    ):
        given = with_backend(backend, options)
        self._model = Model(os.fspath(filename), framework, device_name(device), **given)
        # Fails here and now if there is no such framework.
        self._model._framework  # noqa: B018

    def close(self) -> None:
        """Closes the file. Tensors that were read stay."""
        self._model.close()

    def keys(self) -> "list[str]":
        """The names of the tensors, sorted."""
        return sorted(self._model.keys())

    def offset_keys(self) -> "list[str]":
        """The names of the tensors, in the order of the file."""
        return self._model.keys()

    def metadata(self) -> "Optional[dict[str, Any]]":
        """The metadata of the header, if it has any."""
        return self._model.metadata() or None

    def get_tensor(self, name: str) -> Any:
        """A whole tensor."""
        return self._model.get_tensor(name)

    def get_tensors(self) -> "dict[str, Any]":
        """Every tensor of the file, in one load."""
        return self._model.load()

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor to index: only what the index takes is read."""
        return self._model.get_slice(name)
