"""Loads that fail on some ranks, or are ended early: all are told, and can go on."""

import os

import torch.distributed as dist
from common import (
    BUDGET,
    FIXTURES,
    FOLDER,
    RANK,
    WORLD,
    Skipped,
    failure,
    large,
    works_still,
)

from forebay.distributed import RankError, load_file, stream


def case_a_file_that_one_rank_has_not():
    last = WORLD - 1
    path = large() if RANK != last else FOLDER / "missing.safetensors"
    error = failure(lambda: load_file(path))
    assert error.ranks == [last] and "missing.safetensors" in error.causes[last]
    assert "FileNotFoundError" in str(error) and f"rank {last}" in str(error)
    assert isinstance(error.__cause__, FileNotFoundError) == (RANK == last)


def case_a_file_that_nobody_has():
    try:
        load_file(FOLDER / "missing.safetensors")
    except FileNotFoundError:
        works_still()
    else:
        raise AssertionError("nothing was raised")


def case_another_model_on_one_rank():
    name = "official" if RANK == 1 else "odd-offsets"
    error = failure(lambda: load_file(FIXTURES / f"safetensors/{name}.safetensors"))
    # Of two there is no majority: the first is believed.
    assert error.ranks == [1] and "another model" in str(error)
    assert "official.safetensors" in str(error) and "odd-offsets.safetensors" in str(error)


def case_other_slices_on_one_rank():
    error = failure(lambda: load_file(large(), slices={"experts": 0 if RANK == 1 else 1}))
    assert error.ranks == [1] and "other slices" in str(error)


def case_slices_that_are_not_to_be_had():
    for slices, told in (
        ({"norms": 0}, "equal slices along dimension 0"),
        ({"norms": 1}, "no dimension 1"),
        ({"int8.scalar": 0}, "no dimension 0"),
        ({"nrms": 0}, "nrms"),
        ({"norms": True}, "a number or None"),
    ):
        try:
            load_file(large(), slices=slices)
        except ValueError as error:
            assert told in str(error), error
        else:
            raise AssertionError(told)
    works_still()


def case_devices_that_one_rank_has_not():
    for device, told in (("nonsense", "nonsense"), (3.5, "device 3.5 is invalid")):
        given = device if RANK == 1 else "cpu"
        error = failure(lambda it=given: load_file(large(), device=it, budget_bytes=BUDGET))
        assert error.ranks == [1] and told in str(error), error


def case_a_disk_that_fails_on_one_rank():
    if "READ_LOG" not in os.environ:
        raise Skipped("no compiler for a library that fails reads")
    failing = int(os.environ["EIO_RANK"])
    path = FOLDER / "eio-large.safetensors"
    error = failure(lambda: load_file(path, budget_bytes=BUDGET))
    assert error.ranks == [failing] and "OSError: [Errno 5]" in str(error)
    assert "eio-large.safetensors" in str(error) and "tensor '" in str(error)
    # Bytes that are that rank's alone, too.
    error = failure(lambda: load_file(path, slices={"experts": 0, "embedding": 0}))
    assert error.ranks == [failing]


def case_a_file_that_becomes_shorter():
    def run():
        with stream(FOLDER / "cut.safetensors", budget_bytes=BUDGET) as loading:
            next(loading)
            dist.barrier()
            os.truncate(FOLDER / "cut.safetensors", 20 << 20)
            for _ in loading:
                pass

    assert "shorter" in str(failure(run))


def case_a_file_that_changes():
    path = FOLDER / "changing.safetensors"

    def run():
        with stream(path, budget_bytes=BUDGET) as loading:
            next(loading)
            dist.barrier()
            if RANK == 0:
                os.utime(path, (1, 1))
            dist.barrier()
            for _ in loading:
                pass

    error = failure(run)
    assert error.ranks == list(range(WORLD)) and "has changed" in str(error)


def case_one_rank_ends_early():
    for count in (0, 1, 40):
        for way in ("close", "drop", "raise", "interrupt"):
            seen, told = 0, None
            try:
                with stream(large(), budget_bytes=BUDGET) as loading:
                    if RANK == 1:
                        for _ in range(count):
                            next(loading)
                        if way == "drop":
                            loading.__del__()
                        elif way == "raise":
                            raise ArithmeticError("no room here")
                        elif way == "interrupt":
                            raise KeyboardInterrupt
                    else:
                        for _ in loading:
                            seen += 1
            except RankError as error:
                told = error
            except (ArithmeticError, KeyboardInterrupt) as error:
                assert RANK == 1 and isinstance(error, KeyboardInterrupt) == (way == "interrupt")
            if RANK != 1:
                assert told is not None and told.ranks == [1], told
                assert seen < 80
                assert ("ArithmeticError: no room here" in str(told)) == (way == "raise"), told
                assert ("KeyboardInterrupt" in str(told)) == (way == "interrupt"), told
            works_still()


def case_all_ranks_end_early():
    for count in (0, 1, 3, 80):
        loading = stream(large(), budget_bytes=BUDGET)
        for _ in range(count):
            next(loading)
        loading.close()
        loading.close()
        assert loading.report is None and list(loading) == []
        works_still()
    for name, _ in stream(large(), budget_bytes=BUDGET):
        assert name
        break
    works_still()
