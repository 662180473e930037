"""Where tensors lie: no copy, writable, theirs alone, and given back one by one."""

import gc

import pytest
from conftest import FIXTURES, raw

import forebay
from test_waiting import SIZE, large  # noqa: F401


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def address(tensor):
    return tensor.ctypes.data if hasattr(tensor, "ctypes") else tensor.data_ptr()


def test_tensors_are_writable_and_none_lies_in_another(framework):
    path = FIXTURES / "safetensors/odd-offsets.safetensors"
    if framework == "numpy":
        pytest.importorskip("ml_dtypes")
    loaded = forebay.load(path, framework)
    before = {name: raw(tensor) for name, tensor in loaded.items()}
    for name, tensor in loaded.items():
        if not before[name]:
            continue
        assert address(tensor) % 64 == 0
        flat = tensor.reshape(-1)
        assert address(flat) == address(tensor)
        flat[...] = 1
        others = {it: raw(loaded[it]) for it in loaded if it != name}
        assert others == {it: before[it] for it in others}
        before[name] = raw(tensor)
    assert forebay.load(path, framework).keys() == loaded.keys()


def test_a_load_takes_no_more_than_its_tensors(large, framework):  # noqa: F811
    gc.collect()
    forebay.load(FIXTURES / "safetensors/official.safetensors", framework)
    before = resident_bytes()
    loaded = forebay.load(large, framework)
    assert resident_bytes() - before < SIZE + (48 << 20)
    # Each goes by itself, while others are still in use.
    kept = loaded.pop("t7")
    loaded.clear()
    gc.collect()
    assert resident_bytes() - before < (SIZE // 16) + (48 << 20)
    assert (kept == 7).all()


def test_a_view_keeps_the_memory(framework):
    import weakref

    path = FIXTURES / "safetensors/official.safetensors"
    tensor = forebay.open(path, framework).get_tensor("b")
    expected, view = raw(tensor[1:]), tensor[1:]
    dead = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert raw(view) == expected
    del view
    gc.collect()
    assert dead() is None


def test_storages_of_torch_are_apart():
    pytest.importorskip("torch")
    loaded = forebay.load(FIXTURES / "safetensors/official.safetensors", "torch")
    storages = [tensor.untyped_storage() for tensor in loaded.values()]
    assert len({it.data_ptr() for it in storages}) == len(storages)
    assert [it.nbytes() for it in storages] == [it.nbytes for it in loaded.values()]
