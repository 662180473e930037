"""Which rank reads which bytes of a model, and when: arithmetic, without torch and without I/O.

A tensor is cut along one dimension, or not at all. As it lies in the file it is then ``blocks``
times the runs of all ranks, one behind the other::

    run of rank 0 | run of rank 1 | run of rank 2 | run of rank 0 | run of rank 1 | …

Along the outermost dimension there is one block. Long runs are read by the rank that has them.
Short ones would cost a page at either end, so blocks are dealt out, read whole by one rank each, and
the runs exchanged. Tensors that every rank has are dealt out by pages of the file.

A load goes in steps, each a stretch of the file that all ranks share in: what is half there is at
most one tensor, all ranks have the same ones at the same time, and no buffer is larger than a step.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, NamedTuple, Optional, Union

from ._frameworks import storage

Slices = Union[Mapping[str, Optional[int]], Callable[[str], Optional[int]], None]

# Storage is read by pages: none is read by two ranks for a tensor that both have.
PAGE_BYTES = 4096
# The two pages at the ends of such a run, which others read too, are a sixteenth of it at most.
OWN_RUN_BYTES_MIN = 128 << 10
# A rank takes blocks apart in memory of this part of a step.
SCRATCH_PART = 8
STEP_BYTES_MIN = 16 * PAGE_BYTES


class Layout(NamedTuple):
    """A tensor as it lies in the file, and what of it is each rank's."""

    name: str
    dtype: str
    nbytes: int
    offset: int
    # Extents in items as frameworks count them, outermost first, as they lie.
    shape: "list[int]"
    # Where each dimension of the tensor lies; `None` where that is its own place.
    order: "Optional[list[int]]"
    # The dimension of `shape` that is cut.
    dim: Optional[int]
    blocks: int
    run_bytes: int
    is_exchanged: bool

    def own_shape(self, world: int) -> "list[int]":
        """The extents of what a rank ends with, as it lies."""
        shape = list(self.shape)
        if self.dim is not None:
            shape[self.dim] //= world
        return shape

    @property
    def own_bytes(self) -> int:
        """The bytes of it."""
        return self.blocks * self.run_bytes


class Part(NamedTuple):
    """Bytes of a tensor."""

    tensor: int
    start: int
    stop: int


class Step(NamedTuple):
    """What happens at once: tensors by their number, parts by the rank that reads them."""

    own: "list[int]"
    whole: "list[list[Part]]"
    blocks: "list[list[Part]]"
    ends: "list[int]"


def size(parts: "Iterable[Part]") -> int:
    """The bytes of parts."""
    return sum(part.stop - part.start for part in parts)


def dims(names: "list[str]", slices: Slices) -> "list[Optional[int]]":
    """The dimension that each tensor is cut along."""
    if slices is None:
        return [None] * len(names)
    if callable(slices):
        return [slices(name) for name in names]
    unknown = sorted(slices.keys() - set(names))
    if unknown:
        raise ValueError(f"slices names tensors that the model does not have: {unknown[:5]}")
    return [slices.get(name) for name in names]


def _cut(info: Any, dim: object, shape: "list[int]", world: int) -> int:
    """The dimension of the tensor, counted from its begin; refuses what can't be cut."""
    what = f"tensor '{info.name}' of shape {list(info.shape)}"
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise ValueError(f"{what} is to be cut along {dim!r}: a dimension is a number or None")
    rank = len(info.shape)
    if not -rank <= dim < rank:
        raise ValueError(f"{what} has no dimension {dim}")
    dim = dim % rank if dim < 0 else dim
    # Two F4 are a byte, and an item of torch's.
    is_blocks = shape != list(info.shape) and info.dtype != "F4"
    if is_blocks and (len(shape) != rank or dim == rank - 1):
        raise ValueError(f"{what}: {info.dtype} lies in blocks, which dimension {dim} goes through")
    if shape[dim] % world:
        raise ValueError(
            f"{what} can't be cut into {world} equal slices along dimension {dim}: "
            "pad it when it is saved, or leave it whole (None)"
        )
    return dim


def layout(
    info: Any, dim: Optional[int], order: "Optional[list[int]]", world: int, step_bytes: int
) -> Layout:
    """How a tensor lies, and how it is cut along ``dim``.

    Raises:
        ValueError: There is no such dimension, or it has no ``world`` equal slices.
    """
    item_bytes, shape = storage(info.dtype, list(info.shape), info.nbytes)
    lying = shape if order is None else [shape[it] for it in order]
    named = (info.name, info.dtype, info.nbytes, info.offset, lying, order)
    if dim is None:
        return Layout(*named, None, 1, info.nbytes, True)
    dim = _cut(info, dim, shape, world)
    place = dim if order is None else order.index(dim)
    blocks, run_bytes = 1, item_bytes
    for extent in lying[:place]:
        blocks *= extent
    for extent in lying[place:]:
        run_bytes *= extent
    run_bytes //= world
    is_long = run_bytes >= OWN_RUN_BYTES_MIN or world * run_bytes > step_bytes // SCRATCH_PART
    return Layout(*named, place, blocks, run_bytes, blocks > 1 and not is_long)


def _deal(
    parts: "list[Part]", world: int, first: int, end_of: "Callable[[Part, int], int]"
) -> "list[list[Part]]":
    """The parts in as many shares, each of neighbours. ``end_of`` says where one may be cut, at a
    position or behind it; the rank ``first`` has the first share."""
    total, dealt, number = size(parts), 0, 0
    shares: "list[list[Part]]" = [[] for _ in range(world)]
    for part in parts:
        start = part.start
        while start < part.stop:
            left = total * (number + 1) // world - dealt
            if left <= 0:
                number += 1
                continue
            stop = min(part.stop, end_of(part, start + left))
            shares[(first + number) % world].append(Part(part.tensor, start, stop))
            dealt += stop - start
            start = stop
    return shares


class _Steps:
    """Steps in the making."""

    def __init__(self, layouts: "list[Layout]", world: int, step_bytes: int):
        self.layouts = layouts
        self.world = world
        self.step_bytes = step_bytes
        self.count = 0
        self.clear()

    def clear(self) -> None:
        self.room = self.step_bytes
        self.own: "list[int]" = []
        self.parts: "list[Part]" = []
        self.ends: "list[int]" = []

    def _end_of_page(self, part: Part, position: int) -> int:
        offset = self.layouts[part.tensor].offset
        return -(-(offset + position) // PAGE_BYTES) * PAGE_BYTES - offset

    def _end_of_block(self, part: Part, position: int) -> int:
        block = self.layouts[part.tensor].run_bytes * self.world
        return -(-position // block) * block

    def flush(self) -> "Iterator[Step]":
        if self.own or self.parts or self.ends:
            whole = [it for it in self.parts if self.layouts[it.tensor].dim is None]
            blocks = [it for it in self.parts if self.layouts[it.tensor].dim is not None]
            # Rounding favours the first share: another rank's in each step.
            first = self.count % self.world
            dealt_whole = _deal(whole, self.world, first, self._end_of_page)
            dealt_blocks = _deal(blocks, self.world, first, self._end_of_block)
            self.count += 1
            yield Step(self.own, dealt_whole, dealt_blocks, self.ends)
        self.clear()

    def _taken(self, layout: Layout, start: int) -> int:
        """Where the part from ``start`` on ends that this step has room for."""
        stop = start + self.room
        if stop >= layout.nbytes:
            return layout.nbytes
        if layout.dim is None:
            return (layout.offset + stop) // PAGE_BYTES * PAGE_BYTES - layout.offset
        block = layout.run_bytes * self.world
        return stop // block * block

    def add(self, tensor: int) -> "Iterator[Step]":
        layout = self.layouts[tensor]
        if layout.nbytes and not layout.is_exchanged:
            if layout.nbytes > self.room:
                yield from self.flush()
            self.own.append(tensor)
            self.room -= layout.nbytes
        start = 0
        while layout.is_exchanged and start < layout.nbytes:
            stop = self._taken(layout, start)
            if stop <= start:
                yield from self.flush()
                continue
            self.parts.append(Part(tensor, start, stop))
            self.room -= stop - start
            start = stop
        self.ends.append(tensor)


def steps(layouts: "list[Layout]", world: int, step_bytes: int) -> "list[Step]":
    """All steps of a load, in the order of ``layouts``, and one at the end in which nothing is
    read: there it is told that no file has changed."""
    making = _Steps(layouts, world, step_bytes)
    made: "list[Step]" = []
    for tensor in range(len(layouts)):
        made.extend(making.add(tensor))
    made.extend(making.flush())
    nothing: "list[list[Part]]" = [[] for _ in range(world)]
    return [*made, Step([], nothing, nothing, [])]
