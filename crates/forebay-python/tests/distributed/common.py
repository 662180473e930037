"""What cases share: where they are, the models they load, what is compared with what."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import forebay
from forebay.distributed import RankError, load_file

FOLDER = Path(sys.argv[1])
FIXTURES = Path(__file__).resolve().parents[4] / "tests" / "fixtures"
MANIFEST = json.loads((FIXTURES / "manifest.json").read_text())
BUDGET = 1 << 20
EVEN_BYTES = 96 * 192 * 1368 * 4
HAS_SAFETENSORS = importlib.util.find_spec("safetensors") is not None
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Skipped(Exception):
    """What a case can't do here."""


def same(ours, theirs):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (ours.shape, theirs.shape)
    if ours.dtype == torch.bool:
        # A fixture has bytes that are neither 0 nor 1, which a copy of it has not.
        assert torch.equal(ours, theirs)
        return
    ours, theirs = (it.contiguous().reshape(-1) for it in (ours, theirs))
    # Of float4 only the bytes can be looked at.
    ours, theirs = (it.as_strided(it.shape, (1,)).view(torch.uint8) for it in (ours, theirs))
    assert torch.equal(ours, theirs)


def part(tensor, dim, world=WORLD, rank=RANK):
    return tensor if dim is None else tensor.chunk(world, dim)[rank]


def gathered(value):
    every = [None] * WORLD
    dist.all_gather_object(every, value)
    return every


def large():
    """A model of 38 MB: every dtype, extents that 2 and 3 divide, and odd ones, alike for all."""
    return FOLDER / "large.safetensors"


def even():
    """100 MB in 96 tensors that can be cut along both dimensions."""
    return FOLDER / "even.safetensors"


def is_odd(name):
    return name.rpartition(".")[2] in ("odd", "scalar") or name == "norms"


def write_large():
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(5)

    def values(dtype, *shape):
        count = dtype.itemsize
        for extent in shape:
            count *= extent
        data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        return (data & 1 if dtype == torch.bool else data).view(dtype).reshape(shape)

    tensors = {"embedding": values(torch.bfloat16, 6000, 1026)}
    dtypes = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8"
    for name in (dtypes + " uint8 bool complex64").split():
        dtype = getattr(torch, name)
        tensors[f"{name}.matrix"] = values(dtype, 186, 642)
        tensors[f"{name}.stack"] = values(dtype, 12, 18, 66)
        tensors[f"{name}.vector"] = values(dtype, 6006)
        tensors[f"{name}.odd"] = values(dtype, 101, 7, 13)
        tensors[f"{name}.scalar"] = values(dtype, 1).reshape(())
        tensors[f"{name}.empty"] = torch.empty((6, 0, 12), dtype=dtype)
    # Runs along dimension 1 so long that each rank reads its own.
    tensors["experts"] = values(torch.float16, 6, 1536, 1020)
    tensors["norms"] = values(torch.float32, 5)
    save_file(tensors, large())
    save_file({f"tensor.{number}": torch.ones(192, 1368) for number in range(96)}, even())
    for name in ("eio-large", "cut", "changing", "other"):
        shutil.copy(large(), FOLDER / f"{name}.safetensors")


def reference(path):
    """A model by safetensors' own loader, or by forebay's where that has none."""
    if HAS_SAFETENSORS and path.name != "every-dtype.safetensors":
        from safetensors.torch import load_file as theirs

        if path.suffix == ".safetensors":
            return theirs(path)
        if path.name.endswith(".index.json"):
            shards = set(json.loads(path.read_text())["weight_map"].values())
            return {k: v for shard in shards for k, v in theirs(path.with_name(shard)).items()}
    return forebay.load(path, "torch")


def peak_bytes(action):
    """By how much resident memory rises at most."""

    def status(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(it.split()[1]) << 10 for it in lines if it.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    action()
    return status("VmHWM") - before


def failure(action):
    """The error that all ranks raise alike."""
    try:
        action()
    except RankError as error:
        assert gathered(str(error)) == [str(error)] * WORLD
        works_still()
        return error
    raise AssertionError("nothing was raised")


def works_still():
    path = FIXTURES / "safetensors/official.safetensors"
    assert load_file(path).keys() == reference(path).keys()
