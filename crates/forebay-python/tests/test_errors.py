"""What is raised, and what it says."""

import errno
import os

import pytest
from conftest import FIXTURES, is_installed, raw

import forebay
import forebay.numpy
import forebay.torch

DTYPES = FIXTURES / "safetensors" / "official.safetensors"


def test_a_missing_file_is_a_missing_file(tmp_path):
    for function in (forebay.open, forebay.load, forebay.stream, forebay.numpy.load_file):
        with pytest.raises(FileNotFoundError, match=r"^No such file or directory: .*gone$"):
            function(tmp_path / "gone")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(DTYPES.read_bytes())
    path.chmod(0)
    with pytest.raises(PermissionError) as raised:
        forebay.open(path)
    assert raised.value.errno == errno.EACCES and raised.value.filename == str(path)


def test_a_damaged_file_says_where_and_is_an_error_of_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(DTYPES.read_bytes()[:40])
    with pytest.raises(forebay.FormatError, match="m.safetensors") as raised:
        forebay.open(path)
    assert isinstance(raised.value, forebay.SafetensorError)
    if is_installed("safetensors"):
        import safetensors

        assert isinstance(raised.value, safetensors.SafetensorError)
    with pytest.raises(forebay.FormatError):
        forebay.numpy.load(path.read_bytes())
    with pytest.raises(forebay.FormatError):
        forebay.numpy.load(b"")
    path.write_bytes(b"no model at all, and long enough to say so")
    with pytest.raises(forebay.FormatError):
        forebay.open(path)


def test_a_missing_tensor_is_named(framework):
    with forebay.open(DTYPES, framework) as model:
        for function in (model.get_tensor, model.get_slice, model.info):
            with pytest.raises(forebay.SafetensorError, match="does not contain tensor nothing"):
                function("nothing")
        with pytest.raises(KeyError, match="nothing"):
            model["nothing"]
        assert "nothing" not in model and "a" in model


def test_a_closed_file_says_so(framework):
    with forebay.safe_open(DTYPES, framework) as file:
        part, tensor = file.get_slice("b"), file.get_tensor("b")
    for function in (file.keys, file.offset_keys, file.metadata, file.get_tensors):
        with pytest.raises(forebay.SafetensorError, match="File is closed"):
            function()
    # As with safetensors, a slice keeps what it is of.
    assert (part[:] == tensor).all()
    assert tuple(tensor.shape) == (3, 5)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"load_mode": "fast"}, ValueError, "load-mode: 'fast' is no load mode"),
        ({"engine": "aio"}, ValueError, "engine: 'aio' is no engine"),
        ({"chunk": "4 parsecs"}, ValueError, "chunk: ' parsecs' is no unit"),
        ({"staging": "x"}, ValueError, "staging: 'x' is no unit"),
        ({"queue_depth": "deep"}, ValueError, "queue-depth: 'deep' is no number"),
        ({"queue_depth": 0}, ValueError, "0 reads in flight"),
        ({"gpu_layers": "some"}, ValueError, "gpu-layers: 'some' is no number"),
        ({"place": "nothing"}, ValueError, "is not REGEX=BACKEND"),
        ({"place": ["a=cpu", 5]}, ValueError, "is not REGEX=BACKEND"),
        ({"numa": "far"}, ValueError, "is no NUMA policy"),
        ({"chunks": 5}, TypeError, "there is no option 'chunks'; the options are load_mode"),
    ],
)
def test_a_wrong_option_is_named_with_what_it_takes(options, kind, words):
    with pytest.raises(kind, match=words):
        forebay.load(DTYPES, **options)


def test_options_are_taken_as_words_and_as_numbers():
    for options in (
        {"chunk": "64KiB", "staging": "1MiB", "queue_depth": 3},
        {"chunk": 65536, "staging": 1 << 20, "queue_depth": "auto"},
        {"chunk": "auto", "staging": None, "numa": "off", "reclaim": True, "prefetch": False},
        {"no_fallback": True, "load_mode": "none"},
    ):
        assert set(forebay.load(DTYPES, **options)) == {"a", "b", "c"} | set(
            forebay.open(DTYPES).keys()
        )


def test_frameworks_and_devices_that_there_are_not():
    with pytest.raises(forebay.Error, match="framework jax is invalid"):
        forebay.safe_open(DTYPES, "jax")
    with pytest.raises(forebay.Error, match="backend"):
        forebay.safe_open(DTYPES, "np", backend="carrier pigeon")
    if is_installed("numpy"):
        with pytest.raises(forebay.Error, match="not supported for framework numpy"):
            forebay.safe_open(DTYPES, "np", device="cuda:0")
        with pytest.raises(forebay.Error, match="is invalid"):
            forebay.safe_open(DTYPES, "np", device=1.5)
    if is_installed("torch"):
        with pytest.raises(forebay.Error, match="device bogus is invalid"):
            forebay.safe_open(DTYPES, "pt", device="bogus")
        with pytest.raises(forebay.Error, match="device bogus is invalid"):
            forebay.torch.load_file(DTYPES, "bogus")


def test_a_file_that_shrinks_under_a_read_is_an_error(tmp_path, framework):
    path = tmp_path / "m.safetensors"
    path.write_bytes(DTYPES.read_bytes())
    with forebay.open(path, framework) as model:
        last = model.keys()[-1]
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - 1)
        with pytest.raises(forebay.Error, match=f"'{last}' can't be read: the file has become"):
            model.get_tensor(last)
        with pytest.raises(forebay.Error):
            model.load()


def test_options_are_refused_where_nothing_is_loaded(tmp_path):
    for opened in (
        lambda: forebay.open(DTYPES, chunks=5),
        lambda: forebay.safe_open(DTYPES, "np", devcie="cuda:0"),
    ):
        with pytest.raises(TypeError, match="there is no option 'chunks'|'devcie'"):
            opened()
    if is_installed("torch"):
        with pytest.raises(TypeError, match="no option 'bogus'"):
            forebay.torch.load(FIXTURES / "gguf/every-type.gguf", bogus=1)
        with pytest.raises(TypeError, match="take no options of loads: load_mode"):
            forebay.torch.load(DTYPES.read_bytes(), load_mode="dio")


def test_a_path_that_can_be_none_is_missing():
    with pytest.raises(FileNotFoundError):
        forebay.open("a\0b")


def test_an_open_model_is_one_model_whatever_lies_at_its_path(tmp_path, framework, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.safetensors"
    path.write_bytes(DTYPES.read_bytes())
    with forebay.open("m.safetensors", framework) as model:
        expected = {name: raw(model[name]) for name in model}
        path.unlink()
        monkeypatch.chdir("/")
        assert {name: raw(tensor) for name, tensor in model.load().items()} == expected
        path.write_bytes(DTYPES.read_bytes().replace(b'"F32"', b'"I32"'))
        assert {name: raw(tensor) for name, tensor in model.load().items()} == expected
        part = model.get_slice("b")
        assert raw(part[:]) == expected["b"]


def test_a_file_that_is_written_to_under_an_open_model_is_an_error(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(DTYPES.read_bytes())
    with forebay.open(path) as model:
        with open(path, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\xff")
        with pytest.raises(forebay.Error, match=f"{path}.*changed during the load"):
            model.load()

