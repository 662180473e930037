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


def item_bytes(tensor):
    return getattr(tensor, "itemsize", 0) or tensor.element_size()


@pytest.mark.parametrize("load_mode", ["auto", "mmap", "mlock", "none", "dio"])
def test_tensors_are_writable_and_none_lies_in_another(framework, load_mode):
    path = FIXTURES / "safetensors/odd-offsets.safetensors"
    contents = path.read_bytes()
    if framework == "numpy":
        pytest.importorskip("ml_dtypes")
    loaded = forebay.load(path, framework, load_mode=load_mode)
    before = {name: raw(tensor) for name, tensor in loaded.items()}
    for name, tensor in loaded.items():
        if not before[name]:
            continue
        assert address(tensor) % item_bytes(tensor) == 0
        flat = tensor.reshape(-1)
        assert address(flat) == address(tensor)
        flat[...] = 1
        others = {it: raw(loaded[it]) for it in loaded if it != name}
        assert others == {it: before[it] for it in others}
        before[name] = raw(tensor)
    assert path.read_bytes() == contents
    again = forebay.load(path, framework, load_mode=load_mode)
    assert {name: raw(tensor) for name, tensor in again.items()} != before


@pytest.mark.parametrize("load_mode", ["auto", "dio"])
def test_a_load_takes_no_more_than_its_tensors(large, framework, load_mode):  # noqa: F811
    gc.collect()
    forebay.load(FIXTURES / "safetensors/official.safetensors", framework)
    before = resident_bytes()
    loaded = forebay.load(large, framework, load_mode=load_mode)
    assert resident_bytes() - before < SIZE + (48 << 20)
    # Each goes by itself, while others are still in use.
    kept = loaded.pop("t7")
    loaded.clear()
    gc.collect()
    assert resident_bytes() - before < (SIZE // 16) + (48 << 20)
    assert (kept == 7).all()


@pytest.mark.parametrize("load_mode", ["auto", "dio"])
def test_tied_tensors_of_a_file_are_apart(framework, load_mode):
    path = FIXTURES / "ptd/odd-layouts.ptd"
    tied = ["tied", "embedding", "embedding.packed", "embedding.inside"]
    expected = {name: raw(tensor) for name, tensor in forebay.load(path, framework).items()}
    # Written to as they land, when others are still to come.
    for name, tensor in forebay.stream(path, framework, load_mode=load_mode):
        assert raw(tensor) == expected[name], name
        if name in tied:
            tensor.reshape(-1)[...] = 1
            assert raw(tensor) != expected[name]


def test_memory_of_its_own_outlives_the_file(framework, tmp_path):
    from forebay import numpy

    path = tmp_path / "model.safetensors"
    contents = (FIXTURES / "safetensors/official.safetensors").read_bytes()
    path.write_bytes(contents)
    if framework == "torch":
        torch = pytest.importorskip("forebay.torch")
        loads = [torch.load_file(path, backend="pread"), torch.load(path, mmap=False)]
    else:
        loads = [numpy.load_file(path, backend="pread")]
    with forebay.safe_open(path, framework, backend="pread") as model:
        loads.append(model.get_tensors())
    expected = [{name: raw(tensor) for name, tensor in loaded.items()} for loaded in loads]
    with open(path, "r+b") as file:
        file.write(bytes(len(contents)))
        file.truncate(8)
    assert [{name: raw(tensor) for name, tensor in it.items()} for it in loads] == expected


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
