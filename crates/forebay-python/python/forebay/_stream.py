"""Loads under way, and what is seen of them."""

import importlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from . import _forebay
from ._closing import Closing
from ._frameworks import buffer, cuda_ordinal, storage

if TYPE_CHECKING:
    from ._model import Model

Progress = Union[bool, Callable[[int, int], object], None]

# Options that say where tensors go; all others say how they are read.
PLACING = ("gpu_layers", "place")


def watcher(progress: Progress) -> "tuple[Optional[Callable[[int, int], object]], Any]":
    """The callback of a load, and the bar that it draws, if any."""
    if progress is None or progress is False:
        return None, None
    if callable(progress):
        return progress, None
    try:
        tqdm = importlib.import_module("tqdm.auto")
    except ImportError:
        return None, None
    bar = tqdm.tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc="loading")

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show, bar


class Stream(Iterator["tuple[str, Any]"], Closing):
    """A load under way: yields names and tensors as they land, whole and where they belong.

    Closing it, or dropping it, stops the load; what has landed stays. ``report`` is there once
    everything has landed.
    """

    def __init__(self, model: "Model", device: str, progress: Progress, options: "dict[str, Any]"):
        self._model = model
        self._framework = model._framework
        self._devices = model._places(device, options)
        for name in set(self._devices.values()):
            self._framework.check_device(name)
        reading = {key: value for key, value in options.items() if key not in PLACING}
        # What lies how is known from here on, whether or not the model stays open.
        model._read_orders()
        self._ready: "dict[str, Any]" = self._on_cuda()
        lent = [self._lent(name, tensor) for name, tensor in self._ready.items()]
        watch, self._bar = watcher(progress)
        self._load: Optional[_forebay.Load] = _forebay.Load(
            model._opened(), lent, watch, device="host", **reading
        )
        self.report: "Optional[dict[str, Any]]" = None

    def _on_cuda(self) -> "dict[str, Any]":
        """Memory of torch's own for what goes to GPUs. Nothing is in it yet."""
        ready, ordinals = {}, set()
        for info in self._model._infos.values():
            device = self._devices[info.name]
            if device == "cpu" or not info.nbytes or self._model._order(info.name):
                continue
            ordinal = cuda_ordinal(device, self._framework.module)
            if ordinal is None:
                continue
            _, shape = storage(info.dtype, list(info.shape), info.nbytes)
            ready[info.name] = self._framework.allocate(info.dtype, shape, f"cuda:{ordinal}")
            ordinals.add(ordinal)
        for ordinal in ordinals:
            # torch hands memory out in the order of its streams: what was there before may
            # still be in use.
            self._framework.module.cuda.synchronize(ordinal)
        return ready

    def _lent(self, name: str, tensor: Any) -> "tuple[str, int, int, int, object]":
        nbytes = self._model._infos[name].nbytes
        return name, tensor.device.index, tensor.data_ptr(), nbytes, tensor

    def __next__(self) -> "tuple[str, Any]":
        load = self._load
        if load is None:
            raise StopIteration
        try:
            name, memory = next(load)
            if memory is None:
                return name, self._ready.pop(name)
            tensor = self._model._made(buffer(memory), self._model._infos[name])
            return name, self._framework.move(tensor, self._devices[name])
        except StopIteration:
            report = load.report()
            if report is not None:
                self._model.report = self.report = json.loads(report)
            self._end()
            raise
        except BaseException:
            self.close()
            raise

    def cancel(self) -> None:
        """Stops the load, from any thread: whoever iterates gets ``forebay.Cancelled``."""
        load = self._load
        if load is not None:
            load.cancel()

    def close(self) -> None:
        """Stops the load and waits until nothing of it runs."""
        load = self._load
        if load is not None:
            load.close()
        self._end()
        self._ready = {}

    def _end(self) -> None:
        self._load = None
        if self._bar is not None:
            self._bar.close()
