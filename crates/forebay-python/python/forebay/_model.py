"""Models of every kind: what is in them, single tensors, whole loads, streams."""

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional, Union

from . import _forebay
from ._closing import Closing
from ._errors import Error
from ._frameworks import buffer, device_name, framework, storage
from ._index import numpy_box, torch_box
from ._stream import PLACING, Progress, Stream

StrPath = Union[str, "os.PathLike[str]"]


class TensorInfo(NamedTuple):
    """What a model's header says of a tensor."""

    name: str
    dtype: str
    shape: "tuple[int, ...]"
    nbytes: int
    file: int
    offset: int


class TensorSlice:
    """A tensor of a file, of which only what is indexed is read."""

    def __init__(self, model: "Model", info: TensorInfo):
        self._model = model
        # Keeps the files open, whatever becomes of the model.
        self._files = model._opened()
        self._order = model._order(info.name)
        self._info = info

    def get_shape(self) -> "list[int]":
        """The shape of the whole tensor."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """The dtype, spelt as in the file: ``"F32"``."""
        return self._info.dtype

    def __getitem__(self, index: Any) -> Any:
        model, info = self._model, self._info
        item_bytes, shape = storage(info.dtype, list(info.shape), info.nbytes)
        if self._order is not None:
            # What lies next to what is another matter there.
            return model._whole(self._files, info)[index]
        if model._framework.name == "numpy":
            box = numpy_box(index, shape)
        else:
            found = torch_box(index, shape)
            if found is None:
                # torch knows what it is, or what is wrong with it.
                return model._whole(self._files, info)[index]
            box = found
        bounds, out = box
        memory = self._files.read(info.name, item_bytes, shape, bounds)
        tensor = model._framework.tensor(buffer(memory), info.dtype, out)
        return model._framework.move(tensor, model._device)


class Model(Closing):
    """An opened model: a mapping of names to tensors that reads what is asked for.

    Args:
        path: A ``.gguf`` file (one part of a split one opens them all), a ``.safetensors`` file, a
            ``*.safetensors.index.json``, a ``.ptd`` file, or a folder with exactly one of them.
        framework: ``"numpy"`` or ``"torch"``.
        device: Where tensors go: ``"cpu"``, or with torch any device of torch.
        options: How loads read, and where they put tensors, spelt as on the command line:
            ``load_mode``, ``engine``, ``chunk``, ``queue_depth``, ``staging``, ``no_fallback``,
            ``reclaim``, ``numa``; ``gpu_layers`` and ``place`` keep tensors on the CPU.
    """

    def __init__(
        self, path: StrPath, framework: str = "numpy", device: Any = "cpu", **options: Any
    ):
        self._model: Optional[_forebay.Model] = None
        self._framework_name = framework
        self._device = device_name(device)
        self._options = options
        self._cached_framework: Any = None
        _forebay.check_options(**options)
        self._model = _forebay.Model(os.fspath(path))
        entries = (TensorInfo(it[0], it[1], tuple(it[2]), *it[3:]) for it in self._model.tensors())
        self._infos = {info.name: info for info in entries}
        self._orders: "Optional[dict[str, list[int]]]" = None
        # What came of the last whole load.
        self.report: "Optional[dict[str, Any]]" = None

    def _opened(self) -> _forebay.Model:
        if self._model is None:
            raise Error("File is closed")
        return self._model

    @property
    def _framework(self) -> Any:
        if self._cached_framework is None:
            found = framework(self._framework_name)
            found.check_device(self._device)
            self._cached_framework = found
        return self._cached_framework

    def close(self) -> None:
        """Closes the files. Tensors that were read stay."""
        self._model = None

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __len__(self) -> int:
        return len(self._infos)

    def __iter__(self) -> "Iterator[str]":
        return iter(self.keys())

    def keys(self) -> "list[str]":
        """The names of all tensors, in the order of the file."""
        self._opened()
        return list(self._infos)

    @property
    def format(self) -> str:
        """``"gguf"``, ``"safetensors"`` or ``"ptd"``."""
        return self._opened().format

    @property
    def files(self) -> "list[str]":
        """The paths of its files."""
        return [str(path) for path, _ in self._opened().files()]

    @property
    def notices(self) -> "list[str]":
        """What was odd but not wrong, a sentence each."""
        return self._opened().notices()

    def metadata(self) -> "dict[str, Any]":
        """The key/values that travel with the tensors."""
        return self._opened().metadata()

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor."""
        self._opened()
        if name not in self._infos:
            raise Error(f"File does not contain tensor {name}")
        return self._infos[name]

    def infos(self) -> "list[TensorInfo]":
        """The same of all, in the order of the file."""
        self._opened()
        return list(self._infos.values())

    def plan(self, device: Any = None, **options: Any) -> "dict[str, Any]":
        """What a load would do and why, as ``forebay plan --json`` says it. Reads no tensor."""
        merged = {**self._options, **options}
        name = self._device if device is None else device_name(device)
        if name.partition(":")[0] == "cuda":
            merged["device"] = name
        else:
            merged.update(device="host", gpu_layers=0, place=None)
        report: "dict[str, Any]" = json.loads(self._opened().plan(**merged)[0])
        return report

    def _places(self, device: str, options: "dict[str, Any]") -> "dict[str, str]":
        """The device of each tensor."""
        placing = {key: options[key] for key in PLACING if options.get(key) is not None}
        if not placing:
            return dict.fromkeys(self._infos, device)
        # The layers that are kept on the CPU are the same whatever the device is.
        _, backends = self._opened().plan(device="host", **placing)
        return {
            name: "cpu" if backend == "cpu" else device if backend == "host" else backend
            for name, backend in zip(self._infos, backends)
        }

    def _read_orders(self) -> "dict[str, list[int]]":
        """Of tensors of ExecuTorch's, the order in which their dimensions lie, if not their own."""
        if self._orders is None:
            metadata = self._opened().metadata() if self._opened().format == "ptd" else {}
            mark = "ptd.dim_order."
            self._orders = {
                key[len(mark) :]: json.loads(order)
                for key, order in metadata.items()
                if key.startswith(mark)
            }
        return self._orders

    def _order(self, name: str) -> "Optional[list[int]]":
        return self._read_orders().get(name)

    def _made(self, data: Any, info: TensorInfo, dtype: Optional[str] = None) -> Any:
        """A tensor on the bytes of the file, or on its values as ``dtype``."""
        nbytes = info.nbytes if dtype is None else 0
        shape = list(info.shape) if dtype else storage(info.dtype, list(info.shape), nbytes)[1]
        order = self._order(info.name)
        if order is None:
            return self._framework.tensor(data, dtype or info.dtype, shape)
        lying = self._framework.tensor(data, dtype or info.dtype, [shape[it] for it in order])
        return self._framework.permute(lying, [order.index(it) for it in range(len(order))])

    def _whole(self, files: _forebay.Model, info: TensorInfo, device: Optional[str] = None) -> Any:
        """A tensor as the file has it."""
        item_bytes, shape = storage(info.dtype, list(info.shape), info.nbytes)
        self._framework.dtype(info.dtype)
        whole = [(0, 1, extent) for extent in shape]
        memory = files.read(info.name, item_bytes, shape, whole)
        return self._framework.move(self._made(buffer(memory), info), device or self._device)

    def _values(self, info: TensorInfo, device: str) -> Any:
        """A tensor as its values."""
        memory = self._opened().dequantize(info.name)
        return self._framework.move(self._made(buffer(memory), info, "F32"), device)

    def get_tensor(self, name: str, dequantize: bool = False) -> Any:
        """One tensor. Block types are ``uint8`` rows as the file has them, unless ``dequantize``:
        then every type becomes ``float32``, but for a few that have no such values (``C64``,
        ``Q8_1``, six-bit floats), which are an error."""
        files, info = self._opened(), self.info(name)
        return self._values(info, self._device) if dequantize else self._whole(files, info)

    def __getitem__(self, name: str) -> Any:
        if name not in self._infos:
            raise KeyError(name)
        return self.get_tensor(name)

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor of which only what is indexed is read."""
        self._opened()
        return TensorSlice(self, self.info(name))

    def stream(self, device: Any = None, progress: Progress = None, **options: Any) -> Stream:
        """Loads everything, and yields names and tensors as they land."""
        name = self._device if device is None else device_name(device)
        self._framework.check_device(name)
        for info in self._infos.values():
            # What the framework has no type for is better known before anything is read.
            self._framework.dtype(info.dtype)
        return Stream(self, name, progress, {**self._options, **options})

    def load(
        self, device: Any = None, progress: Progress = None, **options: Any
    ) -> "dict[str, Any]":
        """Loads everything, in the order of the file."""
        with self.stream(device, progress, **options) as stream:
            landed = dict(stream)
        return {name: landed[name] for name in self._infos}


def open_model(
    path: StrPath, framework: str = "numpy", device: Any = "cpu", **options: Any
) -> Model:
    """Opens a model of any kind; see :class:`Model`."""
    return Model(path, framework, device, **options)


def stream(
    path: StrPath,
    framework: Optional[str] = None,
    device: Any = "cpu",
    progress: Progress = None,
    **options: Any,
) -> Stream:
    """``for name, tensor in forebay.stream(path)``: every tensor as it lands.

    Without a framework it is numpy for the CPU and torch for every other device.
    """
    chosen = framework or ("numpy" if device_name(device) == "cpu" else "torch")
    return Model(path, chosen, device, **options).stream(progress=progress)


def load(
    path: StrPath,
    framework: Optional[str] = None,
    device: Any = "cpu",
    progress: Progress = None,
    **options: Any,
) -> "dict[str, Any]":
    """Every tensor of a model of any kind, by name."""
    chosen = framework or ("numpy" if device_name(device) == "cpu" else "torch")
    with Model(path, chosen, device, **options) as model:
        return model.load(progress=progress)
