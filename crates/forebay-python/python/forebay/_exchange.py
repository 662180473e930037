"""What ranks tell and give each other: the collectives of torch.distributed that a load needs.

Broadcasts and exchanges between all of a group, of bytes, asynchronous. Whatever one rank calls,
all must: what goes wrong on a rank is therefore told in the next message, never by staying away.
"""

import importlib
import struct
from typing import Any, NamedTuple, Optional

from ._errors import Error
from ._sharding import SCRATCH_PART, Step, size

# In front of what a rank broadcasts in a step: whether it has failed, and what it has read so far.
_HEADER = struct.Struct("<QQ")
# Longer, so that what follows is aligned for copies.
HEADER_BYTES = 64


class RankError(Error):
    """What is raised on every rank when one has failed.

    Attributes:
        causes: What happened, by rank.
        ranks: The ranks that failed.
    """

    def __init__(self, causes: "dict[int, str]", world: int):
        self.causes = causes
        self.ranks = sorted(causes)
        super().__init__("; ".join(f"rank {it} of {world}: {causes[it]}" for it in self.ranks))


# Where users find it.
RankError.__module__ = "forebay.distributed"


def describe(error: BaseException) -> bytes:
    """An error as others are told it."""
    text, kind = str(error), type(error).__name__
    return (f"{kind}: {text}" if text else kind).encode(errors="replace")


class Header(NamedTuple):
    """What a rank says in a step."""

    has_failed: bool
    read_bytes: int


def _backends(distributed: Any, group: Any) -> "dict[str, str]":
    """The backend of a group, by kind of device."""
    listed = str(distributed.get_backend_config(group))
    entries = (entry.split(":", 1) for entry in listed.split(",") if ":" in entry)
    # Older torch names NCCL for the CPU too, whose memory it never takes.
    return {kind: name for kind, name in entries if (kind, name) != ("cpu", "nccl")}


class Group:
    """A process group, and the kind of memory that its collectives take: the CPU's, where it can,
    until :meth:`exchange_on` says otherwise.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: The group does not have this process.
    """

    def __init__(self, group: Any):
        self._torch = importlib.import_module("torch")
        self._distributed = importlib.import_module("torch.distributed")
        if not self._distributed.is_available() or not self._distributed.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised: call init_process_group first, "
                "or load without forebay.distributed"
            )
        self._group = group
        self.rank = int(self._distributed.get_rank(group))
        self.world = int(self._distributed.get_world_size(group))
        if self.rank < 0:
            raise ValueError("this process is no member of the group")
        self._backends = _backends(self._distributed, group)
        self.device = "cpu"
        if "cpu" not in self._backends:
            self.device = f"cuda:{self._torch.cuda.current_device()}"

    def exchanged(self, device: str) -> str:
        """Where what is exchanged must lie for tensors of ``device``. gloo takes CUDA's memory too,
        by way of the CPU's.

        Raises:
            ValueError: The group exchanges no memory that serves.
        """
        kind = device.partition(":")[0]
        if kind == "cuda" and self._backends.get("cuda", "gloo") != "gloo":
            return device
        if "cpu" in self._backends or self.world == 1:
            return "cpu"
        names = ", ".join(sorted(set(self._backends.values())))
        raise ValueError(
            f"the group's backend ({names}) exchanges no memory of the CPU, and tensors go to "
            f"{device}: load to a GPU, or give a group that has gloo"
        )

    def exchange_on(self, device: str) -> None:
        """Sets where what is exchanged lies from now on."""
        self.device = device

    def packed(self, data: bytes) -> Any:
        """Bytes as a tensor."""
        return self._torch.frombuffer(bytearray(data), dtype=self._torch.uint8)

    def gather(self, data: bytes) -> "list[bytes]":
        """What every rank says, by rank."""
        torch, world = self._torch, self.world
        length = torch.tensor([len(data)], dtype=torch.int64, device=self.device)
        lengths = [torch.empty_like(length) for _ in range(world)]
        self._distributed.all_gather(lengths, length, group=self._group)
        counts = [int(it.item()) for it in lengths]
        mine = torch.zeros(max(*counts, 1), dtype=torch.uint8, device=self.device)
        if data:
            mine[: len(data)].copy_(self.packed(data))
        said = [torch.empty_like(mine) for _ in range(world)]
        self._distributed.all_gather(said, mine, group=self._group)
        return [bytes(it[:count].tolist()) for it, count in zip(said, counts)]

    def broadcast(self, memory: Any, rank: int) -> Any:
        """``memory`` of that rank, to all. Answers what to wait for."""
        source = rank
        if self._group is not None:
            source = self._distributed.get_global_rank(self._group, rank)
        return self._distributed.broadcast(memory, source, group=self._group, async_op=True)

    def exchange(self, given: Any, taken: Any, counts: "list[int]") -> Any:
        """An equal part of ``given`` to every rank; from each as much as ``counts`` says."""
        to_each = [given.numel() // self.world] * self.world
        return self._distributed.all_to_all_single(
            taken, given, counts, to_each, group=self._group, async_op=True
        )


class Buffers:
    """The memory of one step: a slot a rank for what is broadcast, then the runs that this rank
    gives, then those it takes."""

    def __init__(self, torch: Any, group: Group, steps: "list[Step]"):
        self._group = group
        self.nbytes = max(self._ends(step)[-1] for step in steps)
        self._memory = torch.zeros(self.nbytes, dtype=torch.uint8, device=group.device)
        self._works: "list[Any]" = []

    def _ends(self, step: Step) -> "tuple[int, int, int]":
        """Where slots, given and taken runs end."""
        slots = sum(HEADER_BYTES + size(parts) for parts in step.whole)
        given = slots + size(step.blocks[self._group.rank])
        return slots, given, given + sum(self._sizes(step))

    def _sizes(self, step: Step) -> "list[int]":
        """What each rank gives to each."""
        return [size(parts) // self._group.world for parts in step.blocks]

    def slot(self, step: Step, rank: int) -> Any:
        """What a rank broadcasts, header included."""
        start = sum(HEADER_BYTES + size(parts) for parts in step.whole[:rank])
        return self._memory[start : start + HEADER_BYTES + size(step.whole[rank])]

    def given(self, step: Step) -> Any:
        """What this rank gives: a row a rank."""
        start, end, _ = self._ends(step)
        return self._memory[start:end].view(self._group.world, -1)

    def taken(self, step: Step, rank: int) -> Any:
        """What a rank has given to this one."""
        sizes = self._sizes(step)
        start = self._ends(step)[1] + sum(sizes[:rank])
        return self._memory[start : start + sizes[rank]]

    def begin(self, step: Step, said: Header) -> None:
        """Sets the step's exchange going."""
        group = self._group
        header = group.packed(_HEADER.pack(said.has_failed, said.read_bytes))
        self.slot(step, group.rank)[: _HEADER.size].copy_(header)
        slots = (group.broadcast(self.slot(step, it), it) for it in range(group.world))
        self._works = list(slots)
        sizes = self._sizes(step)
        if any(sizes):
            start, given, taken = self._ends(step)
            memory = self._memory
            work = group.exchange(memory[start:given], memory[given:taken], sizes)
            self._works.append(work)

    def wait(self, step: Step) -> "list[Header]":
        """Waits for it, and answers what each rank says."""
        for work in self._works:
            if work is not None:
                work.wait()
        self._works = []
        headers = []
        for rank in range(self._group.world):
            packed = bytes(self.slot(step, rank)[: _HEADER.size].tolist())
            failed, read_bytes = _HEADER.unpack(packed)
            headers.append(Header(bool(failed), read_bytes))
        return headers


class Scratch:
    """Memory of the machine that is read into when bytes go on from there: to a device, or in
    another order. Made when it is first needed."""

    def __init__(self, torch: Any, step_bytes: int, is_pinned: bool):
        self._torch = torch
        self._count = step_bytes // SCRATCH_PART
        self._is_pinned = is_pinned
        self._made: Optional[Any] = None

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return 0 if self._made is None else self._count

    @property
    def memory(self) -> Any:
        """The memory."""
        if self._made is None:
            kind = self._torch.uint8
            self._made = self._torch.zeros(self._count, dtype=kind, pin_memory=self._is_pinned)
        return self._made
