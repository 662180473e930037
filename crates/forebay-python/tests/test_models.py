"""Every fixture, loaded whole, streamed and tensor by tensor, is what the official readers say."""

import json
import struct

import pytest
from conftest import FIXTURES, MANIFEST, is_installed, numpy_can, raw, sha256

import forebay

PATHS = sorted(MANIFEST)
# The manifest has its f32s with fewer digits, and a nested array flat.
ROUNDED = {"value.float32", "array.float32", "array.nested"}
REORDERED = {("ptd/odd-layouts.ptd", "channels.last")}


def expected(path, framework):
    if framework == "numpy" and not all(numpy_can(it["dtype"]) for it in MANIFEST[path]["tensors"]):
        pytest.skip("numpy has not all of its types without ml_dtypes")
    return {it["name"]: it for it in MANIFEST[path]["tensors"]}


def check(path, tensor, entry):
    if (path, entry["name"]) not in REORDERED:
        assert sha256(raw(tensor)) == entry["sha256"], entry["name"]
    if entry["dtype"] in ("F32", "F16", "I8", "U8", "BF16", "I64", "BOOL", "C64", "U16"):
        assert list(tensor.shape) == entry["shape"]


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_load_is_what_the_official_reader_says(path, framework):
    entries = expected(path, framework)
    with forebay.open(FIXTURES / path, framework) as model:
        infos = {info.name: info for info in model.infos()}
        loaded = model.load()
        assert list(loaded) == model.keys()
        assert model.report["read"]["bytes"] >= 0
    assert loaded.keys() == entries.keys()
    for name, entry in entries.items():
        info = infos[name]
        assert (info.dtype, list(info.shape), info.nbytes) == (
            entry["dtype"],
            entry["shape"],
            entry["bytes"],
        )
        check(path, loaded[name], entry)


@pytest.mark.parametrize("path", PATHS)
def test_single_tensors_and_streams_are_the_same(path, framework):
    entries = expected(path, framework)
    with forebay.open(FIXTURES / path, framework) as model:
        for name, entry in entries.items():
            check(path, model.get_tensor(name), entry)
    names = set()
    with forebay.stream(FIXTURES / path, framework, chunk="64KiB", queue_depth=2) as stream:
        for name, tensor in stream:
            names.add(name)
            check(path, tensor, entries[name])
    assert names == entries.keys()
    assert stream.report["model"]["tensors"] == len(entries)


@pytest.mark.parametrize("mode", ["auto", "dio", "none", "mmap"])
@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_options_change_no_byte(mode, engine, framework):
    path = "gguf/every-type.gguf"
    entries = expected(path, framework)
    loaded = forebay.load(FIXTURES / path, framework, load_mode=mode, engine=engine)
    for name, entry in entries.items():
        check(path, loaded[name], entry)


def test_an_order_of_dimensions_is_undone(framework):
    name = "channels.last"
    with forebay.open(FIXTURES / "ptd/odd-layouts.ptd", framework) as model:
        info, tensor = model.info(name), model.get_tensor(name)
        assert model.metadata()["ptd.dim_order.channels.last"] == "[0, 2, 3, 1]"
        assert tuple(tensor.shape) == info.shape
        lying = tensor.transpose(0, 2, 3, 1) if framework == "numpy" else tensor.permute(0, 2, 3, 1)
        entry = next(it for it in MANIFEST["ptd/odd-layouts.ptd"]["tensors"] if it["name"] == name)
        assert sha256(raw(lying)) == entry["sha256"]
        part = model.get_slice(name)[:, 1:2]
        assert raw(part) == raw(tensor[:, 1:2])
        assert raw(model.load()[name]) == raw(tensor)


@pytest.mark.skipif(not is_installed("gguf"), reason="gguf is not installed")
@pytest.mark.parametrize("name", ["every-type", "odd-shapes", "aligned-4096"])
def test_arrays_of_a_gguf_look_as_the_gguf_package_makes_them(name):
    import gguf
    import numpy

    path = FIXTURES / f"gguf/{name}.gguf"
    ours = forebay.load(path)
    names = ("F32", "F16", "I8", "I16", "I32", "I64", "F64")
    plain = [gguf.GGMLQuantizationType[it] for it in names]
    theirs = gguf.GGUFReader(path).tensors
    assert len(theirs) == len(ours)
    for tensor in theirs:
        mine = ours[tensor.name]
        if tensor.tensor_type in plain or tensor.tensor_type.name.startswith(("Q", "IQ", "TQ")):
            assert mine.tobytes() == tensor.data.tobytes()
        if tensor.tensor_type in plain:
            assert mine.dtype == tensor.data.dtype
            numpy.testing.assert_array_equal(mine, tensor.data.reshape(mine.shape))
        elif tensor.tensor_type.name.startswith("Q"):
            assert mine.shape == tensor.data.shape, tensor.name


def references():
    """For each type that a reference decodes: its bytes, and what they are as f32."""
    with forebay.open(FIXTURES / "dequantized.safetensors") as file:
        names = [name[: -len(".values")] for name in file if name.endswith(".values")]
        return {it: (file[f"{it}.bytes"], file[f"{it}.values"]) for it in names}


def assert_same_values(ours, theirs):
    import numpy

    numpy.testing.assert_array_equal(numpy.asarray(ours).reshape(-1), theirs.reshape(-1))


@pytest.mark.skipif(not is_installed("gguf"), reason="gguf is not installed")
def test_block_types_are_dequantised_as_the_gguf_package_does(framework, tmp_path):
    import gguf

    path = tmp_path / "blocks.gguf"
    writer = gguf.GGUFWriter(path, "blocks")
    blocks = {}
    for name, (data, values) in references().items():
        kind = getattr(gguf.GGMLQuantizationType, name, None)
        if kind is not None and gguf.GGML_QUANT_SIZES[kind][0] > 1:
            elements, size = gguf.GGML_QUANT_SIZES[kind]
            rows = data.nbytes // size
            writer.add_tensor(name, data.reshape(rows, size), raw_dtype=kind)
            blocks[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(blocks) >= 20
    with forebay.open(path, framework) as model:
        for name, values in blocks.items():
            tensor = model.get_tensor(name, dequantize=True)
            assert "float32" in str(tensor.dtype) and tuple(tensor.shape) == model.info(name).shape
            assert_same_values(tensor, values)


def test_other_types_are_dequantised_as_numpy_does(framework, tmp_path):
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
    sizes |= {"F8_E8M0": 1, "U8": 1}
    for name, (data, values) in references().items():
        if name not in sizes:
            continue
        path = tmp_path / f"{name}.safetensors"
        shape, nbytes = [data.nbytes // sizes[name]], data.nbytes
        entry = {"t": {"dtype": name, "shape": shape, "data_offsets": [0, nbytes]}}
        header = json.dumps(entry).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + data.tobytes())
        with forebay.open(path, framework) as model:
            assert_same_values(model.get_tensor("t", dequantize=True), values)


def test_what_has_no_values_says_so():
    with forebay.open(FIXTURES / "gguf/every-type.gguf") as model:
        refused = [info.name for info in model.infos() if info.dtype in ("Q8_1", "Q8_K")]
        assert refused
        for name in refused:
            with pytest.raises(forebay.Error, match="can't be converted"):
                model.get_tensor(name, dequantize=True)


def test_metadata_is_what_the_official_reader_says():
    metadata = forebay.open(FIXTURES / "gguf/values.gguf").metadata()
    for entry in MANIFEST["gguf/values.gguf"]["metadata"]:
        mine = metadata[entry["key"]]
        if isinstance(mine, bytes) or entry["key"] in ROUNDED:
            continue
        assert mine == entry["value"] or mine != mine, entry["key"]
    assert len(metadata) >= len(MANIFEST["gguf/values.gguf"]["metadata"])
    every = forebay.open(FIXTURES / "safetensors/every-dtype.safetensors")
    assert every.metadata() == MANIFEST["safetensors/every-dtype.safetensors"]["metadata"]


def test_a_plan_reads_nothing_and_says_why():
    model = forebay.open(FIXTURES / "gguf/split-00002-of-00003.gguf")
    assert len(model.files) == 3 and model.format == "gguf"
    plan = model.plan(load_mode="none")
    assert plan["model"]["tensors"] == len(model) == 8
    assert plan["why"] or plan["backends"]


def test_layers_stay_on_the_cpu_as_the_command_line_has_it(framework):
    with forebay.open(FIXTURES / "gguf/split-00001-of-00003.gguf", framework) as model:
        assert set(model._places("cuda:0", {"gpu_layers": 0}).values()) == {"cpu"}
        assert set(model._places("cuda:0", {"gpu_layers": "all"}).values()) == {"cuda:0"}
        placed = model._places("cuda:0", {"place": ["norm=cpu", "q=device"]})
        assert placed["blk.0.norm"] == "cpu" and placed["blk.0.q"] == "cuda:0"
        assert set(model.load(gpu_layers=0)) == set(model)
