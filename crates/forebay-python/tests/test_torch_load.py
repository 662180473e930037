"""What people write with `torch.load` and `load_state_dict`."""

import io

import pytest
from conftest import FIXTURES, MANIFEST, raw, sha256

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

import forebay  # noqa: E402
import forebay.torch  # noqa: E402

WEIGHTS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "bias": torch.tensor([0.5, -1.0]),
}


class Tied(torch.nn.Module):
    """Two names for one parameter, as language models have them."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def path(tmp_path):
    safetensors.save_file(WEIGHTS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def tied(tmp_path):
    """A tied model, and a file with one of the two names."""
    model = Tied()
    safetensors.save_model(model, str(tmp_path / "tied.safetensors"))
    return model, tmp_path / "tied.safetensors"


def is_same(state, expected):
    assert state.keys() == expected.keys()
    return all(torch.equal(state[name].cpu(), it) for name, it in expected.items())


@pytest.mark.parametrize(
    ("where", "device"),
    [
        (None, "cpu"),
        ("cpu", "cpu"),
        (torch.device("cpu"), "cpu"),
        ("meta", "meta"),
        (torch.device("meta"), "meta"),
        ({"cpu": "meta"}, "meta"),
        ({"cuda:0": "meta"}, "cpu"),
        (lambda storage, location: None, "cpu"),
        (lambda storage, location: storage, "cpu"),
    ],
)
def test_tensors_go_where_map_location_says_as_in_torch(path, tmp_path, where, device):
    torch.save(WEIGHTS, tmp_path / "model.pt")
    theirs = torch.load(tmp_path / "model.pt", map_location=where)
    for ours in (
        forebay.torch.load(path, where),
        forebay.torch.load(path.read_bytes(), map_location=where),
    ):
        assert {str(it.device) for it in ours.values()} == {device}
        for name, tensor in theirs.items():
            assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype)
            assert ours[name].device == tensor.device
        assert device == "meta" or is_same(ours, WEIGHTS)


def test_a_function_is_asked_about_every_storage(path):
    asked = []

    def where(storage, location):
        asked.append((storage.nbytes(), location))
        return storage.clone()

    ours = forebay.torch.load(path, map_location=where, weights_only=True, mmap=True)
    assert sorted(asked) == [(8, "cpu"), (24, "cpu")] and is_same(ours, WEIGHTS)


def test_bytes_and_open_files_are_taken(path):
    assert is_same(forebay.torch.load(bytearray(path.read_bytes())), WEIGHTS)
    assert is_same(forebay.torch.load(io.BytesIO(path.read_bytes())), WEIGHTS)
    with open(path, "rb") as file:
        assert is_same(forebay.torch.load(file), WEIGHTS)


def test_all_shards_are_one_state():
    index = "safetensors/model.safetensors.index.json"
    state = forebay.torch.load(FIXTURES / index)
    expected = {it["name"]: it["sha256"] for it in MANIFEST[index]["tensors"]}
    assert {name: sha256(raw(tensor)) for name, tensor in state.items()} == expected


def write_gguf(path, tensors):
    """Tensors in types of their own, as the official package writes them; their values."""
    gguf = pytest.importorskip("gguf")
    writer, values = gguf.GGUFWriter(path, "llama"), {}
    for name, (tensor, kind) in tensors.items():
        kind = gguf.GGMLQuantizationType[kind]
        quantised = gguf.quantize(tensor.numpy(), kind)
        values[name] = torch.from_numpy(gguf.dequantize(quantised, kind))
        writer.add_tensor(name, quantised, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_block_types_are_decoded(tmp_path):
    tensor = torch.linspace(-1, 1, 4 * 64).reshape(4, 64)
    kinds = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F32", "F16"]
    values = write_gguf(tmp_path / "m.gguf", {kind: (tensor, kind) for kind in kinds})
    state = forebay.torch.load(tmp_path / "m.gguf")
    kept = forebay.torch.load(tmp_path / "m.gguf", dequantize=False)
    for kind in kinds:
        dtype = torch.float16 if kind == "F16" else torch.float32
        assert state[kind].dtype == dtype and torch.equal(state[kind].float(), values[kind]), kind
        assert (kept[kind].dtype == torch.uint8) == kind.startswith("Q")
    moved = forebay.torch.load(tmp_path / "m.gguf", map_location=lambda storage, _: storage.clone())
    assert torch.equal(moved["Q4_0"], values["Q4_0"])


@pytest.mark.parametrize("assign", [False, True])
def test_a_model_takes_a_state(path, assign):
    model = torch.nn.Linear(3, 2)
    before = model.weight
    result = forebay.torch.load_state_dict(model, path, assign=assign)
    assert str(result) == "<All keys matched successfully>"
    assert is_same(model.state_dict(), WEIGHTS)
    assert (model.weight is before) != assign and model.weight.requires_grad


def test_a_model_without_memory_gets_the_files(path):
    with torch.device("meta"):
        model = torch.nn.Linear(3, 2)
    missing, unexpected = forebay.torch.load_model(model, path, assign=True)
    assert not missing and not unexpected and is_same(model.state_dict(), WEIGHTS)


@pytest.mark.parametrize("model", [torch.nn.Linear(3, 4), torch.nn.LayerNorm(2, bias=False)])
def test_what_does_not_fit_is_told_in_torchs_words(path, model):
    with pytest.raises(RuntimeError) as theirs:
        model.load_state_dict(dict(WEIGHTS))
    with pytest.raises(RuntimeError) as ours:
        forebay.torch.load_state_dict(model, path)
    assert str(ours.value) == str(theirs.value)


def test_what_is_missing_or_too_much_is_told(tmp_path):
    safetensors.save_file(
        {"weight": torch.ones(2, 3), "more": torch.ones(1)}, tmp_path / "a.safetensors"
    )
    model = torch.nn.Linear(3, 2)
    with pytest.raises(RuntimeError) as theirs:
        model.load_state_dict({"weight": torch.ones(2, 3), "more": torch.ones(1)})
    with pytest.raises(RuntimeError) as ours:
        forebay.torch.load_state_dict(model, tmp_path / "a.safetensors")
    assert str(ours.value) == str(theirs.value)
    result = forebay.torch.load_state_dict(model, tmp_path / "a.safetensors", strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["bias"], ["more"])
    with pytest.raises(RuntimeError, match="(?s)Missing.*bias.*Unexpected.*more"):
        forebay.torch.load_model(model, tmp_path / "a.safetensors", assign=True)


@pytest.mark.parametrize("function", ["load_model", "load_state_dict"])
@pytest.mark.parametrize("assign", [False, True])
def test_tied_weights_stay_tied(tied, function, assign):
    saved, path = tied
    model = Tied()
    missing, unexpected = getattr(forebay.torch, function)(model, path, assign=assign)
    assert not missing and not unexpected
    assert model.head.weight is model.embedding.weight
    assert is_same(model.state_dict(), saved.state_dict())


def test_blocks_of_gguf_become_weights(tmp_path):
    tensor = torch.linspace(-1, 1, 4 * 64).reshape(4, 64)
    values = write_gguf(tmp_path / "m.gguf", {"weight": (tensor, "Q8_0")})
    model = torch.nn.Linear(64, 4, bias=False).to(torch.bfloat16)
    forebay.torch.load_model(model, tmp_path / "m.gguf")
    assert torch.equal(model.weight, values["weight"].to(torch.bfloat16))


@pytest.mark.parametrize("is_old", [False, True])
def test_pickles_are_refused_with_a_word_on_what_to_do(tmp_path, is_old):
    path = tmp_path / "pytorch_model.bin"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=not is_old)
    model = torch.nn.Linear(3, 2)
    for read in (
        lambda: forebay.torch.load(path),
        lambda: forebay.torch.load(str(tmp_path)),
        lambda: forebay.torch.load(path.read_bytes()),
        lambda: forebay.torch.load_file(path),
        lambda: forebay.torch.load_model(model, path),
        lambda: forebay.torch.load_state_dict(model, path),
    ):
        with pytest.raises(forebay.FormatError, match="is a pickle.*safetensors.torch.save_file"):
            read()


def test_what_is_no_pickle_is_not_called_one(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"something else")
    with pytest.raises(forebay.FormatError) as error:
        forebay.torch.load(tmp_path / "model.pt")
    assert "is a pickle" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        forebay.torch.load(tmp_path / "none.pt")
    # Beside a damaged model, a pickle is not what is wrong.
    (tmp_path / "model.safetensors").write_bytes(b"\x05" + bytes(20))
    with pytest.raises(forebay.FormatError) as error:
        forebay.torch.load(tmp_path)
    assert "is a pickle" not in str(error.value)
