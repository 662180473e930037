"""State dicts for models of torch: where tensors go, and names that share one tensor."""

from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from ._frameworks import Torch, device_name, is_block_type
from ._model import Model
from ._pickles import open_model
from ._stream import Progress, watcher

# Where tensors go, as ``torch.load`` takes it. Files of weights know of no device but the CPU.
MapLocation = Union[None, str, int, "Mapping[str, str]", "Callable[[Any, str], Any]", Any]
_SAVED_ON = "cpu"


def _function(where: MapLocation) -> "Optional[Callable[[Any, str], Any]]":
    # A device of torch can be called too, as a decorator.
    if callable(where) and not isinstance(where, (Mapping, Torch().module.device)):
        return where
    return None


def _device(where: MapLocation) -> str:
    """The device that tensors are read to."""
    if where is None or _function(where):
        return _SAVED_ON
    if isinstance(where, Mapping):
        return device_name(where.get(_SAVED_ON, _SAVED_ON))
    return device_name(where)


def _moved(tensor: Any, where: "Callable[[Any, str], Any]") -> Any:
    """The tensor on the storage that a function answers with; ``None`` leaves it where it is."""
    storage = where(tensor.untyped_storage(), _SAVED_ON)
    if storage is None:
        return tensor
    empty = tensor.new_empty(0, device=storage.device)
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _decoded(model: Model, progress: Progress) -> "dict[str, Any]":
    """Every tensor, those of block types as their values."""
    watch, bar = watcher(progress)
    places = model._places(model._device, model._options)
    total, done, state = sum(info.nbytes for info in model.infos()), 0, {}
    try:
        for info in model.infos():
            device = places[info.name]
            if is_block_type(info.dtype):
                state[info.name] = model._values(info, device)
            else:
                state[info.name] = model._whole(model._opened(), info, device)
            done += info.nbytes
            if watch:
                watch(done, total)
    finally:
        if bar is not None:
            bar.close()
    return state


def read_state(
    path: Any,
    where: MapLocation,
    dequantize: bool,
    progress: Progress,
    options: "dict[str, Any]",
) -> "dict[str, Any]":
    """Every tensor of a model, where ``where`` says."""
    with open_model(path, "torch", _device(where), **options) as model:
        has_blocks = any(is_block_type(info.dtype) for info in model.infos())
        # Values are decoded tensor by tensor; whatever needs no decoding is one load.
        if dequantize and model.format == "gguf" and has_blocks:
            state = _decoded(model, progress)
        else:
            state = model.load(progress=progress)
    # Functions are asked about tensors; anything else was heeded in reading.
    return located(state, where) if _function(where) else state


def located(state: "dict[str, Any]", where: MapLocation) -> "dict[str, Any]":
    """Tensors that lie on the CPU, where ``where`` says."""
    function = _function(where)
    if function:
        return {name: _moved(tensor, function) for name, tensor in state.items()}
    device = _device(where)
    return {name: Torch().move(tensor, device) for name, tensor in state.items()}


def _tied(model: Any) -> "list[tuple[Any, list[str]]]":
    """Parameters and buffers that have several names, with these."""
    names: "dict[int, tuple[Any, list[str]]]" = {}
    for members in (model.named_parameters, model.named_buffers):
        for name, member in members(remove_duplicate=False):
            names.setdefault(id(member), (member, []))[1].append(name)
    return [found for found in names.values() if len(found[1]) > 1]


def with_twins(model: Any, state: "dict[str, Any]", assign: bool) -> "dict[str, Any]":
    """The state, and in it the names that a file leaves out since another has their tensor.

    With ``assign`` all of them get one parameter, so that they stay tied.
    """
    parameter = Torch().module.nn.Parameter
    filled = dict(state)
    for member, names in _tied(model):
        given = [name for name in names if name in state]
        if not given or len(given) == len(names):
            continue
        tensor = state[given[0]]
        if assign and isinstance(member, parameter):
            tensor = parameter(tensor, requires_grad=member.requires_grad)
            filled[given[0]] = tensor
        filled.update((name, tensor) for name in names if name not in state)
    return filled
