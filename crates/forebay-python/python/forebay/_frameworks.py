"""Tensors of numpy and torch on memory of ours, without a copy."""

import ctypes
import importlib
import sys
from typing import Any, Optional

from ._errors import Error
from ._forebay import Memory

_NUMPY = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
# numpy knows these by name once ml_dtypes has been imported.
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_TORCH = {**_NUMPY, **_ML_DTYPES, "F4": "float4_e2m1fn_x2"}


def is_block_type(dtype: str) -> bool:
    """Whether its elements lie in blocks, or in parts of bytes: no framework has a type for it."""
    return dtype not in _TORCH


# Bytes of an item as frameworks count them: two F4 are one.
_ITEM_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2},
}


def storage(dtype: str, shape: "list[int]", nbytes: int) -> "tuple[int, list[int]]":
    """How a tensor lies in memory: bytes of an item, and how many items along each dimension.

    Items of block types are single bytes, in rows as long as the file has them.
    """
    if dtype in _ITEM_BYTES:
        return _ITEM_BYTES[dtype], shape
    elements = 1
    for extent in shape:
        elements *= extent
    if nbytes == elements:
        return 1, shape
    rows = elements // shape[-1] if shape and shape[-1] else 0
    if rows and nbytes % rows == 0:
        return 1, [*shape[:-1], nbytes // rows]
    return 1, [nbytes] if nbytes else [*shape[:-1], 0]


def buffer(memory: Memory) -> Any:
    """The bytes as an object with a buffer, which keeps them."""
    view = (ctypes.c_char * memory.nbytes).from_address(memory.address)
    view._owner = memory  # type: ignore[attr-defined]
    return view


class Numpy:
    """Arrays of numpy."""

    name = "numpy"

    def __init__(self) -> None:
        try:
            self.module: Any = importlib.import_module("numpy")
        except ImportError as error:
            raise ImportError("forebay makes arrays of numpy, which is not installed") from error

    def dtype(self, name: str) -> Any:
        """The dtype; ``TypeError`` if numpy has none for it, uint8 for block types."""
        if name in _NUMPY:
            return self.module.dtype(_NUMPY[name])
        if name in _ML_DTYPES:
            try:
                importlib.import_module("ml_dtypes")
                return self.module.dtype(_ML_DTYPES[name])
            except (ImportError, TypeError) as error:
                raise TypeError(
                    f"numpy has no {_ML_DTYPES[name]}: install ml_dtypes, load into torch, or "
                    "ask for dequantize=True where that is to be had"
                ) from error
        return self.module.dtype("uint8")

    def tensor(self, data: Any, dtype: str, shape: "list[int]") -> Any:
        """An array on ``data``, which has a buffer."""
        kind = self.dtype(dtype)
        if 0 in shape:
            return self.module.empty(shape, dtype=kind)
        return self.module.frombuffer(data, dtype=kind).reshape(shape)

    def permute(self, tensor: Any, order: "list[int]") -> Any:
        """A view with the dimensions in another order."""
        return tensor.transpose(order)

    def check_device(self, device: str) -> None:
        """Refuses all devices but the CPU."""
        if device != "cpu":
            raise Error(f"Device {device} is not supported for framework numpy")

    def move(self, tensor: Any, device: str) -> Any:
        """Arrays stay where they are."""
        return tensor


class Torch:
    """Tensors of torch."""

    name = "torch"

    def __init__(self) -> None:
        try:
            self.module: Any = importlib.import_module("torch")
        except ImportError as error:
            raise ImportError("forebay makes tensors of torch, which is not installed") from error

    def dtype(self, name: str) -> Any:
        """The dtype; ``TypeError`` if this torch has none for it, uint8 for block types."""
        if name not in _TORCH:
            return self.module.uint8
        dtype = getattr(self.module, _TORCH[name], None)
        if dtype is None:
            version = self.module.__version__
            raise TypeError(f"torch {version} has no {_TORCH[name]}: a newer one is needed")
        return dtype

    def tensor(self, data: Any, dtype: str, shape: "list[int]") -> Any:
        """A tensor on ``data``, which has a buffer."""
        kind = self.dtype(dtype)
        if 0 in shape:
            return self.module.empty(shape, dtype=kind)
        return self.module.frombuffer(data, dtype=kind).reshape(shape)

    def permute(self, tensor: Any, order: "list[int]") -> Any:
        """A view with the dimensions in another order."""
        return tensor.permute(order)

    def move(self, tensor: Any, device: str) -> Any:
        """A copy on ``device``, unless that is where it is."""
        return tensor if device == "cpu" else tensor.to(device)

    def check_device(self, device: str) -> None:
        """Refuses what torch knows no device by."""
        try:
            self.module.device(device)
        except RuntimeError as error:
            raise Error(f"device {device} is invalid") from error

    def allocate(self, dtype: str, shape: "list[int]", device: str) -> Any:
        """Memory on a device, of torch's own, with nothing in it."""
        return self.module.empty(shape, dtype=self.dtype(dtype), device=device)


_NAMES = {
    "np": Numpy,
    "numpy": Numpy,
    "pt": Torch,
    "torch": Torch,
    "pytorch": Torch,
}


def framework(name: str) -> Any:
    """The framework of that name, as safetensors spells them too."""
    if name not in _NAMES:
        raise Error(f"framework {name} is invalid: forebay has numpy and torch")
    return _NAMES[name]()


def device_name(device: Any) -> str:
    """A device as a word: ``cpu``, ``cuda:0``, … A number is a GPU, as in torch."""
    if device is None:
        return "cpu"
    if isinstance(device, bool) or not isinstance(device, (int, str)):
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(device, torch.device):
            raise Error(f"device {device!r} is invalid")
    name = f"cuda:{device}" if isinstance(device, int) else str(device)
    return name


def cuda_ordinal(device: str, torch: Any) -> Optional[int]:
    """The number of a CUDA device; ``None`` for another device."""
    if device == "cuda":
        return int(torch.cuda.current_device())
    kind, _, number = device.partition(":")
    return int(number) if kind == "cuda" and number.isdigit() else None
