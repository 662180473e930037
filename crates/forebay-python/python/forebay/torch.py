"""A drop-in for ``safetensors.torch``."""

from collections import defaultdict
from typing import Any, Optional, Union

from . import _forebay
from ._frameworks import Torch, storage
from ._model import Model, StrPath
from ._safe_open import check_backend, safe_open
from ._saving import saver
from ._stream import Progress

__all__ = ["load", "load_file", "load_model", "safe_open", "save", "save_file", "save_model"]


def load_file(
    filename: StrPath,
    device: Union[str, int] = "cpu",
    *,
    backend: str = "mmap",
    progress: Progress = None,
    **options: Any,
) -> "dict[str, Any]":
    """All tensors of a file as tensors of torch.

    Args:
        filename: A safetensors file, or whatever else ``forebay.open`` opens.
        device: Any device of torch. CUDA's tensors are read straight to it.
        backend: ``"mmap"`` or ``"pread"``, for safetensors' sake: forebay reads in its own way.
        progress: Called with bytes that have landed and all bytes; ``True`` shows a bar.
        options: As ``forebay.open`` takes them.
    """
    check_backend(backend)
    with Model(filename, "torch", device, **options) as model:
        return model.load(progress=progress)


def load(data: bytes) -> "dict[str, Any]":
    """All tensors of a safetensors file that is in memory, copied out of it."""
    torch = Torch()
    view = memoryview(data)
    return {
        name: torch.tensor(
            bytearray(view[start:end]), dtype, storage(dtype, shape, end - start)[1]
        )
        for name, dtype, shape, start, end in _forebay.parse(bytes(data))
    }


def _twins(state: "dict[str, Any]") -> "dict[str, set[str]]":
    """The names that a name shares bytes with, itself among them."""
    storages: "defaultdict[Any, list[tuple[int, int, str]]]" = defaultdict(list)
    for name, tensor in state.items():
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        start = tensor.data_ptr()
        last = sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride()))
        whole = tensor.untyped_storage()
        key = (tensor.device, whole.data_ptr(), whole.nbytes())
        storages[key].append((start, start + (last + 1) * tensor.element_size(), name))
    twins: "dict[str, set[str]]" = {name: {name} for name in state}
    for views in storages.values():
        group: "set[str]" = set()
        group_end = 0
        for start, end, name in sorted(views):
            if start >= group_end:
                group = set()
            group.add(name)
            twins[name] = group
            group_end = max(group_end, end)
    return twins


def load_model(
    model: Any,
    filename: StrPath,
    strict: bool = True,
    device: Union[str, int] = "cpu",
    *,
    backend: str = "mmap",
    **options: Any,
) -> "tuple[Any, list[str]]":
    """Loads a file into a model, tensors that share memory included.

    Args:
        model: The ``torch.nn.Module``.
        filename: The file.
        strict: Whether missing and unexpected names are an error.
        device: Where tensors are loaded to.

    Returns:
        The names of the model that were not in the file, and those of the file that the model
        has no use for.
    """
    state = load_file(filename, device=device, backend=backend, **options)
    twins = _twins(model.state_dict())
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Of tensors that share memory the file has one; a second one would write over the first.
    missing = {name for name in missing if twins[name].isdisjoint(state)}
    for names in {id(group): group for group in twins.values()}.values():
        unexpected += sorted(names & state.keys())[1:]
    if strict and (missing or unexpected):
        error = f"Error(s) in loading state_dict for {model.__class__.__name__}:"
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                listed = ", ".join(f'"{name}"' for name in sorted(names))
                error += f"\n    {what} key(s) in state_dict: {listed}"
        raise RuntimeError(error)
    return missing, unexpected


def save(tensors: "dict[str, Any]", metadata: "Optional[dict[str, str]]" = None) -> bytes:
    """``safetensors.torch.save``."""
    saved: bytes = saver("torch", "save")(tensors, metadata=metadata)
    return saved


def save_file(
    tensors: "dict[str, Any]", filename: StrPath, metadata: "Optional[dict[str, str]]" = None
) -> None:
    """``safetensors.torch.save_file``."""
    saver("torch", "save_file")(tensors, filename, metadata=metadata)


def save_model(
    model: Any,
    filename: str,
    metadata: "Optional[dict[str, str]]" = None,
    force_contiguous: bool = True,
) -> None:
    """``safetensors.torch.save_model``."""
    saver("torch", "save_model")(model, filename, metadata, force_contiguous)
