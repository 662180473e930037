"""``safe_open`` for code that reads a file tensor by tensor: one load serves all of it."""

import os
import threading
from types import TracebackType
from typing import Any, Optional

from ._model import TensorSlice
from ._safe_open import safe_open
from ._stream import Stream


class Read:
    """What was read of one file.

    Attributes:
        path: The file.
        names: The tensors that were handed out, whole or in part, in this order.
        nbytes: How many bytes were handed out.
        report: What came of the load, as ``forebay load --json`` prints it, once the file is
            closed; ``None`` if tensors were read one by one, or if many were not asked for.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.names: "list[str]" = []
        self.nbytes = 0
        self.report: "Optional[dict[str, Any]]" = None

    def __repr__(self) -> str:
        return f"Read({self.path!r}, {len(self.names)} tensors, {self.nbytes} bytes)"


def _is_whole(index: Any, rank: int) -> bool:
    """Whether it takes all there is, and as it is."""
    items = index if isinstance(index, tuple) else (index,)
    return 0 < len(items) <= max(rank, 1) and all(
        item is Ellipsis or (rank > 0 and isinstance(item, slice) and item == slice(None))
        for item in items
    )


# If no more than this part of a load was not asked for, it is waited for to its last word.
_UNWANTED_PART = 1 / 16


class Lazy:
    """A tensor that is read once it is indexed."""

    def __init__(self, file: "StreamingOpen", name: str, part: TensorSlice) -> None:
        self._file = file
        self._name = name
        self._part = part

    def get_shape(self) -> "list[int]":
        """The shape of the whole tensor."""
        return self._part.get_shape()

    def get_dtype(self) -> str:
        """The dtype, spelt as in the file."""
        return self._part.get_dtype()

    def __getitem__(self, index: Any) -> Any:
        if _is_whole(index, len(self.get_shape())):
            return self._file.get_tensor(self._name)
        part = self._part[index]
        self._file._handed_out([self._name], part.nbytes)
        return part


class StreamingOpen(safe_open):
    """A file that is loaded whole, in its own order, when its first tensor is asked for.

    Whoever has asked for the names of all tensors is taken to want them all, unless slices were
    made, of less than half of the file. What lands before it is asked for waits here.
    """

    def __init__(
        self, filename: Any, framework: str, device: Any, reads: "list[Read]", **options: Any
    ) -> None:
        super().__init__(filename, framework, device, **options)
        self._read = Read(os.fspath(filename))
        # Told of the file once something of it is read.
        self._reads = reads
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._is_listed = False
        self._sliced: "set[str]" = set()
        self._landed: "dict[str, Any]" = {}
        self._stream: Optional[Stream] = None
        self._is_decided = False

    def __exit__(
        self,
        kind: "Optional[type[BaseException]]",
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        try:
            with self._lock:
                stream, self._stream = self._stream, None
                self._landed.clear()
                if stream is not None:
                    self._end(stream, kind is not None)
        finally:
            super().__exit__(kind, error, traceback)

    def keys(self) -> "list[str]":
        """The names of the tensors, sorted."""
        self._is_listed = True
        return super().keys()

    def offset_keys(self) -> "list[str]":
        """The names of the tensors, in the order of the file."""
        self._is_listed = True
        return super().offset_keys()

    def get_slice(self, name: str) -> Any:
        """A tensor to index."""
        part = super().get_slice(name)
        self._sliced.add(name)
        return Lazy(self, name, part)

    def get_tensor(self, name: str) -> Any:
        """A whole tensor, out of the load of the file."""
        nbytes = self._model.info(name).nbytes
        self._handed_out([name], nbytes)
        with self._lock:
            if not self._is_decided:
                self._is_decided = True
                self._stream = self._model.stream() if self._wants_all() else None
            tensor = self._landing(name)
        return super().get_tensor(name) if tensor is None else tensor

    def get_tensors(self) -> "dict[str, Any]":
        """Every tensor of the file, in one load."""
        tensors = super().get_tensors()
        self._handed_out(list(tensors), sum(info.nbytes for info in self._model.infos()))
        self._read.report = self._model.report
        return tensors

    def _wants_all(self) -> bool:
        infos = self._model.infos()
        sliced = sum(info.nbytes for info in infos if info.name in self._sliced)
        return self._is_listed and (
            not self._sliced or 2 * sliced >= sum(info.nbytes for info in infos)
        )

    def _landing(self, name: str) -> Any:
        """The tensor as it lands; ``None`` if it has been handed out before."""
        if name in self._landed:
            return self._landed.pop(name)
        for landed, tensor in self._stream or ():
            if landed == name:
                return tensor
            self._landed[landed] = tensor
        return None

    def _handed_out(self, names: "list[str]", nbytes: int) -> None:
        with self._counting:
            if not self._read.names:
                self._reads.append(self._read)
            self._read.names += names
            self._read.nbytes += nbytes

    def _end(self, stream: Stream, has_failed: bool) -> None:
        """Hears the last word of a load that is through, or nearly so; stops any other."""
        infos = self._model.infos()
        wanted = set(self._read.names)
        unwanted = sum(info.nbytes for info in infos if info.name not in wanted)
        with stream:
            if has_failed or unwanted > _UNWANTED_PART * sum(info.nbytes for info in infos):
                return
            # That no file has changed meanwhile is known only now.
            for _ in stream:
                pass
            self._read.report = stream.report
