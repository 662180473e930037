"""Processes that are forked off after a load: what they have is theirs, and loads work in them."""

import os
import traceback

import pytest
from conftest import FIXTURES, raw

import forebay

PATH = FIXTURES / "safetensors/official.safetensors"


def in_child(work, meanwhile=lambda: None):
    """Runs it in a forked process, and answers whether it ended well. ``meanwhile`` runs here."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        os._exit(1)
    meanwhile()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("load_mode", ["auto", "mlock", "none", "dio"])
def test_a_child_has_tensors_of_its_own_and_loads_anew(framework, load_mode):
    loaded = forebay.load(PATH, framework, load_mode=load_mode)
    expected = {name: raw(tensor) for name, tensor in loaded.items()}

    def work():
        assert {name: raw(tensor) for name, tensor in loaded.items()} == expected
        for tensor in loaded.values():
            if raw(tensor):
                tensor.reshape(-1)[...] = 1
        again = forebay.load(PATH, framework, load_mode=load_mode)
        assert {name: raw(tensor) for name, tensor in again.items()} == expected
        with forebay.open(PATH, framework) as model:
            assert {name: raw(model[name]) for name in model} == expected

    assert in_child(work)
    assert {name: raw(tensor) for name, tensor in loaded.items()} == expected


def test_a_child_outlives_tensors_that_its_parent_dropped(framework):
    loaded = forebay.load(PATH, framework)
    expected = {name: raw(tensor) for name, tensor in loaded.items()}
    ready, go = os.pipe()

    def work():
        os.close(go)
        # Until the parent has dropped its tensors.
        assert os.read(ready, 1) == b""
        assert {name: raw(tensor) for name, tensor in loaded.items()} == expected

    def drop():
        loaded.clear()
        os.close(go)

    assert in_child(work, drop)
    os.close(ready)


@pytest.mark.parametrize("engine", ["uring", "threads"])
def test_a_load_under_way_stays_with_the_parent(framework, tmp_path, engine):
    path = tmp_path / "large.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[33554432],"data_offsets":[0,33554432]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1 << 25))
    slow = {"chunk": "64KiB", "queue_depth": 1, "load_mode": "dio", "engine": engine}
    streams = [forebay.stream(path, framework, **slow)]

    def work():
        with pytest.raises(forebay.Error, match="process [0-9]+, and its threads are there"):
            next(streams[0])
        streams.clear()
        assert list(forebay.load(path, framework)) == ["a"]

    assert in_child(work)
    assert in_child(streams.clear)
    ((name, tensor),) = list(streams[0])
    assert name == "a" and not tensor.any()
