"""Loads into device memory that somebody else has allocated, on the repository's emulated driver.

torch itself does not run on that driver: its place is taken by an allocator of five lines. What is
tested is everything between torch's `empty` and its `data_ptr`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES, MANIFEST

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", FIXTURES.parents[1] / "target"))
BUILT = [TARGET / kind / "libforebay_cuda_emulator.so" for kind in ("debug", "release")]
EMULATOR = next((path for path in BUILT if path.exists()), None)

SCRIPT = """
import ctypes, hashlib, json, sys
import forebay
from forebay import _frameworks

cuda = ctypes.CDLL("libcuda.so.1")
assert hasattr(cuda, "forebay_cuda_emulator")
context = ctypes.c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
synchronised = []


class OnDevice:
    # As much of a tensor as is looked at.
    def __init__(self, nbytes):
        self.nbytes, self.address = nbytes, ctypes.c_uint64()
        assert cuda.cuMemAlloc_v2(ctypes.byref(self.address), ctypes.c_size_t(nbytes)) == 0
        self.device = type("device", (), {"index": 0})

    def data_ptr(self):
        return self.address.value

    def sha256(self):
        host = (ctypes.c_char * self.nbytes)()
        size = ctypes.c_size_t(self.nbytes)
        assert cuda.cuMemcpyDtoH_v2(host, self.address, size) == 0
        return hashlib.sha256(bytes(host)).hexdigest()


class Framework(_frameworks.Numpy):
    name = "torch"

    def __init__(self):
        super().__init__()
        self.cuda = self
        self.numpy, self.module = self.module, self

    def synchronize(self, ordinal):
        synchronised.append(ordinal)

    def dtype(self, name):
        return self.numpy.dtype(_frameworks._NUMPY.get(name, "uint8"))

    def check_device(self, device):
        assert device in ("cpu", "cuda:0")

    def allocate(self, dtype, shape, device):
        assert device == "cuda:0"
        count = self.dtype(dtype).itemsize
        for extent in shape:
            count *= extent
        return OnDevice(count)

    def tensor(self, data, dtype, shape):
        kind = self.dtype(dtype)
        return self.numpy.frombuffer(data, dtype=kind).reshape(shape)


model = forebay.open(sys.argv[1], "torch", "cuda:0", **json.loads(sys.argv[2]))
model._cached_framework = Framework()
digests = {}
for name, tensor in model.stream():
    on_device = isinstance(tensor, OnDevice)
    digest = tensor.sha256() if on_device else hashlib.sha256(tensor.tobytes()).hexdigest()
    digests[name] = [on_device, digest]
print(json.dumps([digests, synchronised, [it["backend"] for it in model.report["backends"]]]))
"""


@pytest.mark.skipif(
    EMULATOR is None, reason="cargo build -p forebay-cuda-emulator has not been run"
)
@pytest.mark.parametrize(
    ("options", "devices"), [({}, {True}), ({"place": "blk.1.*=cpu"}, {True, False})]
)
def test_tensors_land_in_memory_of_the_device(options, devices, tmp_path):
    (tmp_path / "libcuda.so.1").symlink_to(EMULATOR)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "FOREBAY_CUDA_EMULATOR": "upload=2e8",
    }
    path = "gguf/split-00001-of-00003.gguf"
    command = [sys.executable, "-c", SCRIPT, str(FIXTURES / path), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    digests, synchronised, backends = json.loads(done.stdout)
    expected = {it["name"]: it["sha256"] for it in MANIFEST[path]["tensors"]}
    assert {name: digest for name, (_, digest) in digests.items()} == expected
    assert {on_device for on_device, _ in digests.values()} == devices
    assert synchronised == [0] and "cuda:0" in backends


@pytest.mark.skipif(
    EMULATOR is None, reason="cargo build -p forebay-cuda-emulator has not been run"
)
def test_numpy_has_no_devices_however_they_are_named(tmp_path):
    (tmp_path / "libcuda.so.1").symlink_to(EMULATOR)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    script = "import sys, forebay; forebay.load(sys.argv[1], 'numpy', place='.*=cuda:0')"
    path = FIXTURES / "gguf/split-00001-of-00003.gguf"
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "forebay.Error: Device cuda:0 is not supported for framework numpy" in done.stderr
