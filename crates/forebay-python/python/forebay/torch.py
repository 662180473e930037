"""A drop-in for ``safetensors.torch``."""

import os
from collections import defaultdict
from typing import IO, Any, Optional, Union

from . import _forebay
from ._frameworks import Torch, storage
from ._model import StrPath
from ._pickles import is_pickle, open_model, refusal
from ._safe_open import safe_open, with_backend
from ._saving import saver
from ._states import MapLocation, located, read_state, with_twins
from ._stream import Progress

__all__ = [
    "load",
    "load_file",
    "load_model",
    "load_state_dict",
    "safe_open",
    "save",
    "save_file",
    "save_model",
]


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
        backend: ``"mmap"`` for forebay's own choice, which on the CPU is a mapping; ``"pread"`` for
            ``load_mode="cpu=dio"``: memory that has nothing to do with the file any more.
        progress: Called with bytes that have landed and all bytes; ``True`` shows a bar.
        options: As ``forebay.open`` takes them.
    """
    with open_model(filename, "torch", device, **with_backend(backend, options)) as model:
        return model.load(progress=progress)


def load(
    data: Union[bytes, bytearray, memoryview, StrPath, IO[bytes]],
    map_location: MapLocation = None,
    *,
    weights_only: Optional[bool] = None,
    mmap: Optional[bool] = None,
    dequantize: bool = True,
    progress: Progress = None,
    **options: Any,
) -> "dict[str, Any]":
    """``safetensors.torch.load`` for bytes, and ``torch.load`` for every kind of model.

    Args:
        data: The bytes of a safetensors file, or a path: whatever ``forebay.open`` opens; or a
            safetensors file that is open for reading.
        map_location: Where tensors go, as ``torch.load`` takes it: a device, or a dict that says
            what ``"cpu"`` becomes, or a function of a storage and ``"cpu"``.
        weights_only: Taken for torch's sake; no program is ever run, whatever it says.
        mmap: ``False`` is ``backend="pread"`` of ``load_file``.
        dequantize: Whether block types of GGUF become ``float32``. Such a file is read tensor by
            tensor: options say where these go, and none says how it is read.
        progress: Called with bytes that have landed and all bytes; ``True`` shows a bar.
        options: As ``forebay.open`` takes them.
    """
    if isinstance(data, (str, os.PathLike)):
        reading = with_backend("pread" if mmap is False else "mmap", options)
        return read_state(data, map_location, dequantize, progress, reading)
    if options:
        raise TypeError(f"the bytes of a file take no options of loads: {', '.join(options)}")
    held = bytes(data if isinstance(data, (bytes, bytearray, memoryview)) else data.read())
    if is_pickle(held):
        raise refusal(getattr(data, "name", "these bytes"))
    return located(_parsed(held), map_location)


def _parsed(data: bytes) -> "dict[str, Any]":
    """All tensors of a safetensors file that is in memory, copied out of it."""
    torch = Torch()
    view = memoryview(data)
    return {
        name: torch.tensor(bytearray(view[start:end]), dtype, storage(dtype, shape, end - start)[1])
        for name, dtype, shape, start, end in _forebay.parse(data)
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
    assign: bool = False,
    backend: str = "mmap",
    **options: Any,
) -> "tuple[Any, list[str]]":
    """Loads a file into a model, tensors that share memory included.

    Args:
        model: The ``torch.nn.Module``.
        filename: A safetensors file, or whatever else ``forebay.open`` opens; block types of
            GGUF become ``float32``.
        strict: Whether missing and unexpected names are an error.
        device: Where tensors are loaded to.
        assign: Whether the model takes the loaded tensors instead of copying them into its own,
            as ``Module.load_state_dict`` has it. Names that are tied stay tied.
        backend: As in ``load_file``.
        options: As ``forebay.open`` takes them.

    Returns:
        The names of the model that were not in the file, and those of the file that the model
        has no use for.
    """
    state = read_state(filename, device, True, None, with_backend(backend, options))
    return load_into(model, state, strict, assign)


def load_into(
    model: Any, state: "dict[str, Any]", strict: bool, assign: bool = False
) -> "tuple[Any, list[str]]":
    """Gives a model the tensors of a file, as ``load_model`` says it."""
    twins = _twins(model.state_dict())
    given = with_twins(model, state, assign) if assign else state
    # Older torch knows no `assign`.
    how = {"assign": True} if assign else {}
    missing, unexpected = model.load_state_dict(given, strict=False, **how)
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


def load_state_dict(
    model: Any,
    filename: StrPath,
    strict: bool = True,
    assign: bool = False,
    map_location: MapLocation = None,
    **options: Any,
) -> Any:
    """``model.load_state_dict(forebay.torch.load(filename, map_location), strict, assign)``.

    Missing and unexpected keys, and tensors of another size, are told in torch's words. A name
    that the file leaves out since another one has its tensor is not missing.

    Returns:
        What torch returns: ``missing_keys`` and ``unexpected_keys``.
    """
    state = read_state(filename, map_location, True, None, options)
    how = {"assign": True} if assign else {}
    return model.load_state_dict(with_twins(model, state, assign), strict=strict, **how)


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
