"""Loads one model into the processes of ``torch.distributed`` together.

Every byte of the model is read by one rank, once; what others need goes over the process group:
gloo for memory of the CPU, NCCL between GPUs. Tensors are whole on every rank, or cut for tensor
parallelism. ``DISTRIBUTED.md``, beside the package's README, tells what is promised.
"""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Optional

from ._agreement import Setup, together
from ._errors import Error
from ._exchange import Group, RankError
from ._model import StrPath
from ._ranks import Ranks
from ._sharding import Slices, steps

__all__ = ["RankError", "Slices", "Stream", "load_file", "stream"]

BUDGET_BYTES = 256 << 20


class Stream(Iterator["tuple[str, Any]"]):
    """A load under way: yields names and tensors, the same on all ranks in the same order.

    Whoever ends it early tells the others, who then raise: by ``close``, by leaving its ``with``,
    or by dropping it. ``report`` is there once everything has been yielded.
    """

    def __init__(
        self,
        path: StrPath,
        group: Any = None,
        device: Any = "cpu",
        *,
        slices: Slices = None,
        budget_bytes: int = BUDGET_BYTES,
    ):
        self._begun = time.monotonic()
        self._tensors: "Optional[Iterator[tuple[str, Any]]]" = None
        self._ranks: Optional[Ranks] = None
        self.report: "Optional[dict[str, Any]]" = None
        self._group = Group(group)
        setup = together(
            self._group,
            lambda: Setup(self._group, path, device, slices, budget_bytes),
            Setup.told,
        )
        self._model = setup.model
        self._names = [it.name for it in setup.layouts]
        world = self._group.world
        if world == 1:
            # Nothing to share: every read is the engine's.
            self._tensors = self._model.stream(setup.device)
            return
        self._group.exchange_on(setup.exchanged)
        planned = steps(setup.layouts, world, setup.step_bytes)
        self._ranks = together(
            self._group,
            lambda: Ranks(self._group, setup, planned),
            lambda made: {},
        )

    def __next__(self) -> "tuple[str, Any]":
        if self._tensors is None:
            if self._ranks is None:
                raise StopIteration
            self._tensors = self._ranks.run()
        try:
            return next(self._tensors)
        except StopIteration:
            if self.report is None and self._model is not None:
                self.report = self._reported()
            self._end()
            raise
        except BaseException:
            self._end()
            raise

    def _reported(self) -> "dict[str, Any]":
        nbytes = sum(info.nbytes for info in self._model.infos())
        report: "dict[str, Any]" = {
            "rank": self._group.rank,
            "world": self._group.world,
            "model_bytes": nbytes,
            "wall_s": time.monotonic() - self._begun,
        }
        if self._ranks is not None:
            return {**report, **self._ranks.report()}
        return {**report, "read_bytes": nbytes, "read_bytes_by_rank": [nbytes]}

    def _end(self) -> None:
        self._tensors = None
        self._ranks = None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self,
        kind: "Optional[type[BaseException]]",
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close(error)

    def close(self, error: Optional[BaseException] = None) -> None:
        """Ends the load, and tells the other ranks, with ``error`` as the cause. What has been
        yielded stays."""
        tensors, ranks = self._tensors, self._ranks
        if ranks is not None:
            if tensors is None:
                tensors = ranks.run()
            ranks.stop(error or Error("the load was ended before all tensors had come"))
            try:
                for _ in tensors:
                    pass
            except BaseException as ended:
                # An `Error` is the end that was asked for, or another rank's.
                if ended is not error and not isinstance(ended, Error):
                    raise
            finally:
                self._end()
        elif tensors is not None:
            tensors.close()  # type: ignore[attr-defined]
            self._end()

    def __del__(self) -> None:
        if getattr(self, "_ranks", None) is not None:
            self.close()


def stream(
    path: StrPath,
    group: Any = None,
    device: Any = "cpu",
    *,
    slices: Slices = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Stream:
    """Yields every tensor of a model, or a rank's slice of it, the same on all ranks in the same
    order, so that no rank ever holds more than it keeps.

    Every rank of the group must call it, with the same model, slices and budget.

    Args:
        path: What ``forebay.open`` opens; each rank opens it where it is.
        group: The process group; all processes if not given.
        device: Where tensors go, of this rank.
        slices: The dimension that each tensor is cut along: a mapping or a function from names,
            ``None`` for tensors that every rank has whole. The slice of a rank is that of its
            number in the group.
        budget_bytes: The most that is allocated beside the tensors.

    Raises:
        RankError: On all ranks, when one has failed; what all do wrong alike is raised as it is.
        RuntimeError: torch.distributed is not initialised.
    """
    return Stream(path, group, device, slices=slices, budget_bytes=budget_bytes)


def load_file(
    path: StrPath,
    group: Any = None,
    device: Any = "cpu",
    *,
    slices: Slices = None,
    budget_bytes: int = BUDGET_BYTES,
) -> "dict[str, Any]":
    """Every tensor of a model, or a rank's slice of it, by name; see :func:`stream`."""
    with Stream(path, group, device, slices=slices, budget_bytes=budget_bytes) as loading:
        landed = dict(loading)
    return {name: landed[name] for name in loading._names}
