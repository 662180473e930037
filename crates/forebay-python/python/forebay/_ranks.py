"""One rank's part in a load that all ranks do together.

While the exchange of a step runs, a thread reads this rank's share of the next one, and the caller
has the tensors of the one before. There are two sets of buffers, and an order that all ranks keep:
the exchange of a step begins when that of the step before has ended on this rank, and nobody in it
had failed. So whoever fails tells it in the next exchange, all ranks see it there, and none is left
waiting in an exchange that nobody else begins.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Optional

from ._agreement import Setup
from ._errors import Error
from ._exchange import HEADER_BYTES, Buffers, Group, Header, RankError, Scratch, describe
from ._frameworks import buffer
from ._model import Model
from ._sharding import Layout, Step


def _identity(path: str) -> "tuple[int, ...]":
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _gone(error: RuntimeError) -> Error:
    return Error(f"the exchange between ranks failed, as it does when one has ended: {error}")


class Reader:
    """Reads this rank's share of steps, on a thread of its own."""

    def __init__(
        self, model: Model, group: Group, layouts: "list[Layout]", scratch: Scratch, device: str
    ):
        self._torch = model._framework.module
        self._model = model
        self._group = group
        self._layouts = layouts
        self._scratch = scratch
        self._device = device
        self._files = {path: _identity(path) for path in model.files}
        # Copies of this thread to a GPU are in the order of the caller's.
        is_cuda = device.partition(":")[0] == "cuda"
        self._stream = self._torch.cuda.current_stream(device) if is_cuda else None
        self.read_bytes = 0
        self.read_s = 0.0

    def fill(self, step: Step, buffers: Buffers) -> "dict[int, Any]":
        """Reads what this rank gives to others into ``buffers``; answers what is its alone, the
        bytes of a tensor each."""
        begun = time.monotonic()
        on_stream = nullcontext() if self._stream is None else self._torch.cuda.stream(self._stream)
        with on_stream:
            rank, slot = self._group.rank, buffers.slot(step, self._group.rank)
            at = HEADER_BYTES
            for part in step.whole[rank]:
                layout = self._layouts[part.tensor]
                count = part.stop - part.start
                bounds = [(part.start, 1, count)]
                self._read_to(slot[at : at + count], layout.name, [layout.nbytes], bounds)
                at += count
            if step.blocks[rank]:
                self._fill_given(step, buffers)
            own = {tensor: self._read_own(self._layouts[tensor]) for tensor in step.own}
        self.read_s += time.monotonic() - begun
        return own

    def check_files(self) -> None:
        """Raises if a file is another one than when it was opened."""
        for path, identity in self._files.items():
            if _identity(path) != identity:
                raise Error(f"{path} has changed while it was loaded")

    def _read(
        self, memory: Any, name: str, shape: "list[int]", bounds: "list[tuple[int, int, int]]"
    ) -> None:
        """Reads a box of a tensor's bytes into memory of the machine."""
        count = memory.numel()
        self._model._opened().read_into(memory.data_ptr(), name, 1, shape, bounds, count)
        self.read_bytes += count

    def _read_to(
        self, target: Any, name: str, shape: "list[int]", bounds: "list[tuple[int, int, int]]"
    ) -> None:
        """The same into memory anywhere; of the last dimension only, in parts where it must."""
        if target.device.type == "cpu":
            self._read(target, name, shape, bounds)
            return
        memory = self._scratch.memory
        *outer, (first, _, count) = bounds
        for start in range(0, count, memory.numel()):
            part = memory[: min(memory.numel(), count - start)]
            self._read(part, name, shape, [*outer, (first + start, 1, part.numel())])
            target[start : start + part.numel()].copy_(part)

    def _fill_given(self, step: Step, buffers: Buffers) -> None:
        """Reads whole blocks, and puts the run of each rank where it is given from."""
        world, given, at = self._group.world, buffers.given(step), 0
        for part in step.blocks[self._group.rank]:
            layout = self._layouts[part.tensor]
            block = world * layout.run_bytes
            at_once = self._scratch.memory.numel() // block * block
            for start in range(part.start, part.stop, at_once):
                count = min(at_once, part.stop - start)
                memory = self._scratch.memory[:count]
                self._read(memory, layout.name, [layout.nbytes], [(start, 1, count)])
                runs = memory.view(count // block, world, layout.run_bytes).transpose(0, 1)
                target = given[:, at : at + count // world]
                target.view(world, count // block, layout.run_bytes).copy_(runs)
                at += count // world

    def _read_own(self, layout: Layout) -> Any:
        """The runs of this rank."""
        rank, blocks, run_bytes = self._group.rank, layout.blocks, layout.run_bytes
        shape = [blocks, self._group.world, run_bytes]
        if self._device == "cpu":
            bounds = [(0, 1, blocks), (rank, 1, 1), (0, 1, run_bytes)]
            memory = self._model._opened().read(layout.name, 1, shape, bounds)
            self.read_bytes += layout.own_bytes
            return self._torch.frombuffer(buffer(memory), dtype=self._torch.uint8)
        tensor = self._torch.empty(
            layout.own_bytes, dtype=self._torch.uint8, device=self._device
        )
        for block in range(blocks):
            bounds = [(block, 1, 1), (rank, 1, 1), (0, 1, run_bytes)]
            run = tensor[block * run_bytes : (block + 1) * run_bytes]
            self._read_to(run, layout.name, shape, bounds)
        return tensor


class Ranks:
    """The load of one rank."""

    def __init__(self, group: Group, setup: Setup, steps: "list[Step]"):
        device = setup.device
        self._model, self._layouts, self._device = setup.model, setup.layouts, device
        self._torch = setup.model._framework.module
        self._group = group
        self._steps = steps
        self._error: Optional[BaseException] = None
        # The bytes of tensors of which a part is still to come.
        self._half: "dict[int, Any]" = {}
        self._headers: "list[Header]" = []
        self._read_waited_s = 0.0
        self._exchange_waited_s = 0.0
        is_pinned = device.partition(":")[0] == "cuda"
        self._scratch = Scratch(self._torch, setup.step_bytes, is_pinned)
        self._reader = Reader(setup.model, group, setup.layouts, self._scratch, device)
        self._buffers = [Buffers(self._torch, group, steps) for _ in range(2)]

    def stop(self, error: BaseException) -> None:
        """Makes the next step tell the others of ``error``, and the load end there."""
        if self._error is None:
            self._error = error

    def run(self) -> "Iterator[tuple[str, Any]]":
        """Names and tensors. To be run to its end, whatever happens: others wait."""
        last = len(self._steps) - 1
        previous: "dict[int, Any]" = {}
        with ThreadPoolExecutor(1, "forebay-ranks") as pool:
            reading = pool.submit(self._reader.fill, self._steps[0], self._buffers[0])
            for number, step in enumerate(self._steps):
                own = self._read(reading)
                landed: "list[tuple[str, Any]]" = []
                if number == last:
                    # All that can go wrong must have, before the last word.
                    landed = self._landed(number - 1, previous)
                    self._check_files()
                self._begin(number)
                if number < last:
                    landed = self._landed(number - 1, previous)
                    after = (self._steps[number + 1], self._buffers[(number + 1) % 2])
                    reading = pool.submit(self._reader.fill, *after)
                previous = own
                yield from landed
                del landed
                self._wait(number)

    def _read(self, reading: "Future[dict[int, Any]]") -> "dict[int, Any]":
        begun = time.monotonic()
        try:
            return reading.result()
        except BaseException as error:  # noqa: BLE001  Ctrl-C too is told to all
            self.stop(error)
            return {}
        finally:
            self._read_waited_s += time.monotonic() - begun

    def _check_files(self) -> None:
        try:
            self._reader.check_files()
        except Exception as error:  # noqa: BLE001  told to all
            self.stop(error)

    def _begin(self, number: int) -> None:
        said = Header(self._error is not None, self._reader.read_bytes)
        try:
            self._buffers[number % 2].begin(self._steps[number], said)
        except RuntimeError as error:
            raise _gone(error) from error

    def _wait(self, number: int) -> None:
        """The end of a step's exchange; raises on all ranks if one has failed."""
        begun = time.monotonic()
        try:
            self._headers = self._buffers[number % 2].wait(self._steps[number])
            self._exchange_waited_s += time.monotonic() - begun
            failed = [rank for rank, header in enumerate(self._headers) if header.has_failed]
            if not failed:
                return
            told = self._group.gather(b"" if self._error is None else describe(self._error))
        except RuntimeError as error:
            raise _gone(error) from error
        if self._error is not None and not isinstance(self._error, Exception):
            raise self._error
        causes = {rank: told[rank].decode() for rank in failed}
        raise RankError(causes, self._group.world) from self._error

    def _landed(self, number: int, own: "dict[int, Any]") -> "list[tuple[str, Any]]":
        """What a step has completed, out of its buffers."""
        if number < 0 or self._error is not None:
            return []
        step, buffers, landed = self._steps[number], self._buffers[number % 2], []
        try:
            for rank in range(self._group.world):
                self._take(step, buffers, rank)
            for tensor in step.ends:
                flat = own.pop(tensor) if tensor in own else self._half.pop(tensor, None)
                landed.append((self._layouts[tensor].name, self._made(tensor, flat)))
        except Exception as error:  # noqa: BLE001  told to all
            self.stop(error)
            return []
        return landed

    def _take(self, step: Step, buffers: Buffers, rank: int) -> None:
        """Copies what a rank has read to where it belongs."""
        slot, at = buffers.slot(step, rank), HEADER_BYTES
        for part in step.whole[rank]:
            count = part.stop - part.start
            self._flat(part.tensor)[part.start : part.stop].copy_(slot[at : at + count])
            at += count
        taken, at, world = buffers.taken(step, rank), 0, self._group.world
        for part in step.blocks[rank]:
            start, stop = part.start // world, part.stop // world
            self._flat(part.tensor)[start:stop].copy_(taken[at : at + stop - start])
            at += stop - start

    def _flat(self, tensor: int) -> Any:
        """The memory of a tensor as bytes."""
        if tensor not in self._half:
            count = self._layouts[tensor].own_bytes
            kind = self._torch.uint8
            self._half[tensor] = self._torch.empty(count, dtype=kind, device=self._device)
        return self._half[tensor]

    def _made(self, tensor: int, flat: Any) -> Any:
        """The tensor on its bytes."""
        layout, framework = self._layouts[tensor], self._model._framework
        shape, dtype = layout.own_shape(self._group.world), framework.dtype(layout.dtype)
        if flat is None:
            made = self._torch.empty(shape, dtype=dtype, device=self._device)
        else:
            made = flat.view(dtype).reshape(shape)
        if layout.order is None:
            return made
        order = layout.order
        return framework.permute(made, [order.index(it) for it in range(len(order))])

    def report(self) -> "dict[str, Any]":
        """What came of it."""
        return {
            "steps": len(self._steps),
            "read_bytes": self._reader.read_bytes,
            "read_bytes_by_rank": [header.read_bytes for header in self._headers],
            "buffer_bytes": sum(it.nbytes for it in self._buffers) + self._scratch.nbytes,
            "read_s": self._reader.read_s,
            "read_waited_s": self._read_waited_s,
            "exchange_waited_s": self._exchange_waited_s,
        }
