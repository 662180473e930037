"""What the tests share: the repository's fixtures, and the frameworks that are installed."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[3] / "tests" / "fixtures"
MANIFEST = json.loads((FIXTURES / "manifest.json").read_text())


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.fixture(params=["numpy", "torch"])
def framework(request: pytest.FixtureRequest) -> str:
    """The name of a framework, one after the other."""
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


def numpy_can(dtype: str) -> bool:
    """Whether numpy has a type for it."""
    return is_installed("ml_dtypes") or not (dtype == "BF16" or dtype.startswith("F8"))


def raw(tensor: object) -> bytes:
    """The bytes of an array or a tensor, in the order of its shape."""
    if hasattr(tensor, "tobytes"):
        return tensor.tobytes()
    import torch

    flat = tensor.contiguous().reshape(-1)
    # A tensor of one element may have any stride; and of float4 only the bytes can be looked at.
    flat = flat.as_strided(flat.shape, (1,)).view(torch.uint8)
    return bytes(flat.tolist())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
