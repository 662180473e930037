"""Loads that succeed: what comes of them, what is read, what memory they take."""

import os
from pathlib import Path

import torch.distributed as dist
from common import (
    BUDGET,
    EVEN_BYTES,
    FIXTURES,
    MANIFEST,
    RANK,
    WORLD,
    even,
    gathered,
    is_odd,
    large,
    part,
    peak_bytes,
    reference,
    same,
)

import forebay
from forebay.distributed import load_file, stream


def case_fixtures_are_what_other_loaders_make_of_them():
    for name in sorted(MANIFEST):
        expected = reference(FIXTURES / name)
        loaded = load_file(FIXTURES / name, budget_bytes=BUDGET)
        assert loaded.keys() == expected.keys()
        for key, tensor in loaded.items():
            same(tensor, expected[key])


def case_fixtures_are_cut_along_every_dimension():
    for name in sorted(MANIFEST):
        expected = forebay.load(FIXTURES / name, "torch")
        with forebay.open(FIXTURES / name, "torch") as model:
            infos = model.infos()
        for dim in range(3):
            slices = {
                it.name: dim
                for it in infos
                if dim < len(it.shape)
                and expected[it.name].shape == it.shape
                and it.shape[dim] % WORLD == 0
            }
            loaded = load_file(FIXTURES / name, slices=slices, budget_bytes=BUDGET)
            for key, tensor in loaded.items():
                same(tensor, part(expected[key], slices.get(key)))


def case_rows_of_block_types_are_cut():
    path = FIXTURES / "gguf/every-type.gguf"
    with forebay.open(path, "torch") as model:
        blocks = [it for it in model.infos() if it.dtype.startswith("Q") and len(it.shape) > 1]
        expected = model.load()
    rows = {it.name: 0 for it in blocks if it.shape[0] % WORLD == 0}
    loaded = load_file(path, slices=rows, budget_bytes=BUDGET)
    for name in expected:
        same(loaded[name], part(expected[name], rows.get(name)))
    try:
        load_file(path, slices={blocks[0].name: -1}, budget_bytes=BUDGET)
    except ValueError as error:
        assert "blocks" in str(error)
    else:
        raise AssertionError("columns of a block type were cut")


def case_a_large_model_is_whole_on_every_rank():
    expected = reference(large())
    loaded = load_file(large(), budget_bytes=BUDGET)
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        same(tensor, expected[name])
        assert tensor.device.type == "cpu"


def case_a_large_model_is_cut_along_every_dimension():
    expected = reference(large())
    for dim in (0, 1, 2, -1):
        for budget_bytes in (BUDGET, 100 << 20):

            def slices(name, dim=dim):
                rank = expected[name].dim()
                return None if is_odd(name) or not -rank <= dim < rank else dim

            loaded = load_file(large(), slices=slices, budget_bytes=budget_bytes)
            for name, tensor in loaded.items():
                same(tensor, part(expected[name], slices(name)))


def ranges(name):
    """What all ranks have read of a model since the last time, in order."""
    own = Path(f"{os.environ['READ_LOG']}.{RANK}")
    lines = own.read_text().splitlines() if own.exists() else []
    own.unlink(missing_ok=True)
    parted = [line.split() for line in lines]
    mine = [(int(start), int(count)) for file, start, count in parted if file == name]
    return sorted(it for listed in gathered(mine) for it in listed)


def read_once(slices, budget_bytes=BUDGET):
    ranges(large().name)
    with stream(large(), slices=slices, budget_bytes=budget_bytes) as loading:
        for _ in loading:
            pass
    if "READ_LOG" not in os.environ:
        return loading.report
    with forebay.open(large()) as model:
        first = min(it.offset for it in model.infos())
        end = max(it.offset + it.nbytes for it in model.infos())
    position = first
    for start, count in ranges(large().name):
        # Every rank reads the header, in one read with some of what is behind it.
        if start > 0:
            assert start == position, (start, position)
            position = start + count
    assert position == end
    return loading.report


def case_every_byte_is_read_by_one_rank_once():
    for slices in (
        None,
        lambda name: None if is_odd(name) else 0,
        lambda name: None if is_odd(name) or name.endswith("vector") else 1,
        {"embedding": 1, "experts": 1, "int8.stack": 2},
    ):
        report = read_once(slices)
        assert sum(report["read_bytes_by_rank"]) == report["model_bytes"]
        assert report["read_bytes"] == report["read_bytes_by_rank"][RANK]
        least, most = min(report["read_bytes_by_rank"]), max(report["read_bytes_by_rank"])
        assert most - least < 64 << 10, report["read_bytes_by_rank"]
        assert report["buffer_bytes"] <= BUDGET
        assert report["steps"] > 5


def case_small_budgets_and_large_ones_read_alike():
    report = read_once(None, 200 << 20)
    assert report["steps"] == 2 and report["buffer_bytes"] < 2.1 * report["model_bytes"]
    assert sum(report["read_bytes_by_rank"]) == report["model_bytes"]


def case_streams_are_in_the_same_order_everywhere():
    with stream(large(), budget_bytes=BUDGET, slices={"embedding": 1}) as loading:
        names = [name for name, _ in loading]
    with forebay.open(large()) as model:
        assert names == model.keys()
    assert gathered(names) == [names] * WORLD


def case_a_stream_holds_its_budget_and_little_else():
    budget_bytes = 8 << 20

    def run(slices):
        with stream(even(), budget_bytes=budget_bytes, slices=slices) as loading:
            for _, tensor in loading:
                del tensor

    for slices in (None, lambda name: 0, lambda name: 1):
        run(slices)
        peak = peak_bytes(lambda slices=slices: run(slices))
        # Beside the budget the tensors of two steps: those read, and those yielded.
        assert budget_bytes // 8 < peak < 2.2 * budget_bytes, peak


def case_a_load_holds_its_tensors_and_its_budget():
    budget_bytes = 8 << 20
    for slices, nbytes in ((None, EVEN_BYTES), (lambda name: 1, EVEN_BYTES // WORLD)):
        load_file(even(), budget_bytes=budget_bytes)
        peak = peak_bytes(lambda it=slices: load_file(even(), slices=it, budget_bytes=budget_bytes))
        assert nbytes < peak < nbytes + 1.3 * budget_bytes, (nbytes, peak)


def case_everything_is_yielded_and_then_nothing():
    loading = stream(large(), budget_bytes=BUDGET)
    names = [name for name, _ in loading]
    assert len(names) == len(reference(large())) and list(loading) == []
    assert loading.report["rank"] == RANK and loading.report["world"] == WORLD
    loading.close()


def case_groups_of_some_ranks():
    alone = [dist.new_group([rank]) for rank in range(WORLD)]
    expected = reference(large())
    loaded = load_file(large(), alone[RANK], slices={"embedding": 1})
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        same(tensor, expected[name])
    with stream(large(), alone[RANK]) as loading:
        assert len(list(loading)) == len(expected)
    assert loading.report["read_bytes_by_rank"] == [loading.report["model_bytes"]]
    # In another order than in the world: the last rank of it is the first here.
    members = list(range(WORLD))[1:] if WORLD > 2 else [0, 1]
    group = dist.new_group(members)
    if RANK in members:
        place = members.index(RANK)
        slices = {"embedding": 1, "experts": 1, "int8.stack": 0}
        loaded = load_file(large(), group, slices=slices, budget_bytes=BUDGET)
        for name, tensor in loaded.items():
            same(tensor, part(expected[name], slices.get(name), len(members), place))
    else:
        try:
            load_file(large(), group)
        except ValueError as error:
            assert "no member" in str(error)
        else:
            raise AssertionError("a stranger has loaded")
