"""What an index takes of a tensor."""

from typing import Any, Optional, Union

from ._errors import Error

# First index, distance to the next, how many.
Bounds = tuple[int, int, int]
# The bounds in every dimension, and the shape of what comes out.
Box = tuple[list[Bounds], list[int]]


def _items(index: Any) -> "list[Any]":
    return list(index) if isinstance(index, tuple) else [index]


def _expanded(items: "list[Any]", rank: int) -> "list[Any]":
    """Without ``...``, and as many as there are dimensions."""
    dots = [number for number, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise Error("Only one ellipsis (...) is allowed in slice index")
    missing = max(0, rank - (len(items) - len(dots)))
    place = dots[0] if dots else len(items)
    return [*items[:place], *[slice(None)] * missing, *items[place + len(dots) :]]


def _number(item: Any) -> Optional[int]:
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        return None
    if getattr(item, "ndim", 0):
        return None
    return int(item.__index__())


def torch_box(index: Any, shape: "list[int]") -> Optional[Box]:
    """As torch takes it; ``None`` for what is no box: lists, masks, tensors, ``None``."""
    items = _items(index)
    if sum(item is Ellipsis for item in items) > 1:
        return None
    items = _expanded(items, len(shape))
    if len(items) > len(shape):
        return None
    bounds, out = [], []
    for item, extent in zip(items, shape):
        number = _number(item)
        if number is not None:
            if not -extent <= number < extent:
                return None
            bounds.append((number % extent, 1, 1))
        elif isinstance(item, slice):
            try:
                start, stop, step = item.indices(extent)
            except (TypeError, ValueError):
                return None
            if step < 1:
                return None
            count = len(range(start, stop, step))
            bounds.append((start if count else 0, step, count))
            out.append(count)
        else:
            return None
    return bounds, out


def _shown(item: Union[int, slice]) -> str:
    if isinstance(item, slice):
        text = ":".join("" if it is None else str(it) for it in (item.start, item.stop))
        return text if item.step in (None, 1) else f"{text}:{item.step}"
    return str(item)


def _narrow(item: slice, number: int, extent: int, refuse: Any) -> Bounds:
    step = 1 if item.step is None else int(item.step)
    if step < 1:
        raise Error(f"Slice step must be a positive integer, got {step}")
    start = 0 if item.start is None else int(item.start)
    stop = extent if item.stop is None else int(item.stop)
    if start < 0 or stop < 0:
        raise OverflowError(f"negative slice bounds are not taken, got {_shown(item)}")
    count = len(range(start, stop, step))
    if stop > extent:
        refuse(stop - 1, number, extent)
    return (start if count else 0, step, count)


def numpy_box(index: Any, shape: "list[int]") -> Box:
    """As safetensors takes it for every framework but torch: nothing past the end, no lists."""
    if isinstance(index, list):
        if index:
            raise Error("Non empty lists are not implemented")
        index = slice(0, 0)
    resolved: "list[Union[int, slice]]" = []

    def refuse(at: int, number: int, extent: int) -> None:
        shown = ", ".join(_shown(item) for item in resolved)
        raise Error(
            f"Error during slicing [{shown}] with shape {shape}: index {at} out of bounds for "
            f"tensor dimension #{number} of size {extent}"
        )

    items = _items(index)
    for place, item in enumerate(_expanded(items, len(shape))):
        number = int(item) if isinstance(item, bool) else _number(item)
        extent = shape[place] if place < len(shape) else 0
        if isinstance(item, slice):
            resolved.append(item)
        elif number is None:
            raise Error(
                f"Unsupported slice index at position {place}: expected slice, int, or ellipsis"
            )
        elif number < -extent:
            raise Error(f"Invalid index {number} for dimension {place} of size {extent}")
        else:
            resolved.append(number % extent if number < 0 else number)
    if len(resolved) > len(shape):
        raise Error(f"more indices than the dimensions of shape {shape}: {len(resolved)}")
    # As it was written: dimensions that were not named are not shown.
    full = list(resolved)
    if Ellipsis not in [it for it in items if not hasattr(it, "shape")]:
        del resolved[max(len(items), 1) :]
    bounds, out = [], []
    for place, (item, extent) in enumerate(zip(full, shape)):
        if isinstance(item, slice):
            bounds.append(_narrow(item, place, extent, refuse))
            out.append(bounds[-1][2])
        else:
            if item >= extent:
                refuse(item, place, extent)
            bounds.append((item, 1, 1))
    return bounds, out
