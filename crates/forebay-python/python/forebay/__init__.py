"""Loads model weights (safetensors, GGUF, .ptd) at the rate the disk allows.

``forebay.torch`` and ``forebay.numpy`` are drop-ins for safetensors' modules of these names;
``forebay.open`` opens models of every kind, ``forebay.stream`` yields tensors as they land.
"""

from ._errors import Cancelled, Error, FormatError, SafetensorError
from ._forebay import __version__
from ._model import Model, TensorInfo, TensorSlice, load, stream
from ._model import open_model as open
from ._safe_open import safe_open
from ._stream import Stream

__all__ = [
    "Cancelled",
    "Error",
    "FormatError",
    "Model",
    "SafetensorError",
    "Stream",
    "TensorInfo",
    "TensorSlice",
    "__version__",
    "load",
    "open",
    "safe_open",
    "stream",
]
