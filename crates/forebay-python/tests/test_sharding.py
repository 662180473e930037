"""Which rank reads what, for models at random: every byte once, balanced, in order, in bounds."""

import random

import pytest

from forebay._model import TensorInfo
from forebay._sharding import PAGE_BYTES, SCRATCH_PART, dims, layout, size, steps

DTYPES = {"F32": 4, "BF16": 2, "U8": 1, "F64": 8}


def random_model(rng, world, step_bytes):
    """Layouts of a model of up to 60 tensors, some of them many steps large."""
    layouts, offset = [], rng.randrange(1, 5000) * 8
    for number in range(rng.randrange(60)):
        dtype = rng.choice(list(DTYPES))
        shape = [rng.choice([0, 1, 3, 8, 30, 50]) for _ in range(rng.randrange(4))]
        if shape and rng.random() < 0.3:
            shape[rng.randrange(len(shape))] = world * rng.randrange(2000)
        nbytes = DTYPES[dtype]
        for extent in shape:
            nbytes *= extent
        able = [dim for dim, extent in enumerate(shape) if extent % world == 0]
        dim = rng.choice([None, *able])
        info = TensorInfo(f"t{number}", dtype, tuple(shape), nbytes, 0, offset)
        layouts.append(layout(info, dim, None, world, step_bytes))
        offset += nbytes
    return layouts


@pytest.mark.parametrize("seed", range(300))
def test_every_byte_is_read_once_by_one_rank(seed):
    rng = random.Random(seed)
    world, step_bytes = rng.randrange(2, 9), rng.choice([1 << 16, 1 << 18, 1 << 22])
    layouts = random_model(rng, world, step_bytes)
    made = steps(layouts, world, step_bytes)
    assert made[-1].ends == [] and size(part for it in made[-1].whole for part in it) == 0
    # All tensors, in the order of the file.
    assert [tensor for step in made for tensor in step.ends] == list(range(len(layouts)))
    position = [0] * len(layouts)
    for step in made:
        parts = sorted(part for shares in (step.whole, step.blocks) for it in shares for part in it)
        for part in parts:
            assert part.start == position[part.tensor] < part.stop
            position[part.tensor] = part.stop
        assert size(parts) <= step_bytes
        for tensor in step.own:
            assert position[tensor] == 0 and layouts[tensor].dim is not None
            position[tensor] = layouts[tensor].nbytes
        for tensor in step.ends:
            assert position[tensor] == layouts[tensor].nbytes
        # What is begun and not ended is one tensor at most.
        begun = [it for it, there in enumerate(position) if 0 < there < layouts[it].nbytes]
        assert len(begun) <= 1
        for shares in step.blocks:
            for part in shares:
                block = layouts[part.tensor].run_bytes * world
                assert part.start % block == part.stop % block == 0
                assert block <= step_bytes // SCRATCH_PART


@pytest.mark.parametrize("seed", range(100))
def test_shares_are_balanced(seed):
    rng = random.Random(seed)
    world, step_bytes = rng.randrange(2, 9), 1 << 18
    layouts = random_model(rng, world, step_bytes)
    blocks = [it.run_bytes * world for it in layouts if it.is_exchanged and it.dim is not None]
    for step in steps(layouts, world, step_bytes):
        for shares, most in ((step.whole, PAGE_BYTES), (step.blocks, max(blocks, default=0))):
            sizes = [size(parts) for parts in shares]
            assert max(sizes) - min(sizes) <= 2 * most, sizes


def test_no_page_of_a_tensor_is_read_by_two_ranks():
    info = TensorInfo("t", "U8", (10_000_001,), 10_000_001, 0, 808)
    for step in steps([layout(info, None, None, 3, 1 << 20)], 3, 1 << 20):
        for shares in step.whole:
            for part in shares:
                assert part.stop == info.nbytes or (808 + part.stop) % PAGE_BYTES == 0


def test_long_runs_are_not_exchanged():
    def cut(shape, dim):
        nbytes = 2
        for extent in shape:
            nbytes *= extent
        info = TensorInfo("t", "BF16", shape, nbytes, 0, 0)
        return layout(info, dim, None, 4, 64 << 20)

    rows = cut((4096, 4096), 0)
    assert (rows.blocks, rows.run_bytes, rows.is_exchanged) == (1, 8 << 20, False)
    columns = cut((4096, 4096), 1)
    assert (columns.blocks, columns.run_bytes, columns.is_exchanged) == (4096, 2048, True)
    experts = cut((8, 4096, 1024), 1)
    assert (experts.blocks, experts.run_bytes, experts.is_exchanged) == (8, 2 << 20, False)
    assert cut((1, 4096, 8), 1).is_exchanged is False


def test_slices_are_a_mapping_or_a_function():
    names = ["a.weight", "b.weight"]
    assert dims(names, None) == [None, None]
    assert dims(names, {"b.weight": 1}) == [None, 1]
    assert dims(names, lambda name: 0 if name[0] == "a" else None) == [0, None]
    with pytest.raises(ValueError, match="c.weight"):
        dims(names, {"c.weight": 1})
