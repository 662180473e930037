"""Slices: the same as an index into the whole tensor, and nothing else of the file is read."""

import json
import random
import struct

import pytest
from conftest import FIXTURES, MANIFEST, is_installed, raw

import forebay

SHAPE = (7, 5, 6, 11)
ELEMENTS = 7 * 5 * 6 * 11


def write(path, dtype, shape, data):
    entry = {"t": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, len(data)]}}
    header = json.dumps(entry).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    data = random.Random(1).randbytes(ELEMENTS * 2)
    return write(tmp_path_factory.mktemp("slices") / "m.safetensors", "I16", SHAPE, data)


def random_item(rng, extent, *, beyond):
    if rng.randrange(4) == 0:
        return rng.randrange(-extent, extent)
    low, high = (-extent - 2, extent + 3) if beyond else (0, extent + 1)
    start, stop = (rng.choice([None, rng.randrange(low, high)]) for _ in range(2))
    if not beyond and start is not None and stop is not None and stop < start:
        start, stop = stop, start
    return slice(start, stop, rng.choice([None, 1, 2, 3]))


def random_index(rng, *, beyond):
    count = rng.randint(0, len(SHAPE))
    items = [random_item(rng, extent, beyond=beyond) for extent in SHAPE[:count]]
    if rng.random() < 0.2:
        last = rng.randint(0, len(SHAPE) - count)
        ends = SHAPE[len(SHAPE) - last :]
        items += [..., *(random_item(rng, extent, beyond=beyond) for extent in ends)]
    return items[0] if len(items) == 1 and rng.random() < 0.5 else tuple(items)


def test_a_thousand_indices_are_what_the_framework_takes_of_the_whole(model_path, framework):
    rng = random.Random(2)
    with forebay.open(model_path, framework) as model:
        whole, part = model["t"], model.get_slice("t")
        assert part.get_shape() == list(SHAPE) and part.get_dtype() == "I16"
        for _ in range(1000):
            index = random_index(rng, beyond=framework == "torch")
            ours, theirs = part[index], whole[index]
            assert tuple(ours.shape) == tuple(theirs.shape), index
            assert raw(ours) == raw(theirs), index


@pytest.mark.skipif(not is_installed("safetensors"), reason="safetensors is not installed")
def test_odd_indices_are_answered_as_safetensors_answers(model_path, framework):
    import safetensors

    short = {"numpy": "np", "torch": "pt"}[framework]
    theirs = safetensors.safe_open(str(model_path), short).get_slice("t")
    ours = forebay.safe_open(model_path, short).get_slice("t")
    indices = [
        [],
        [0, 2],
        (..., 1),
        (..., ...),
        (0, 0, 0, 0),
        (0, 0, 0, 0, 0),
        slice(None, None, -1),
        slice(None, None, 0),
        slice(-2, None),
        slice(0, 50),
        (slice(None), 50),
        (slice(None), -50),
        "name",
        1.5,
        None,
        True,
        (slice(None), [0, 1]),
    ]
    for index in indices:
        outcomes = []
        for part in (theirs, ours):
            try:
                tensor = part[index]
                outcomes.append((tuple(tensor.shape), raw(tensor)))
            except Exception as error:  # noqa: BLE001
                outcomes.append(type(error))
        theirs_did, ours_did = outcomes
        if isinstance(theirs_did, type):
            assert isinstance(ours_did, type), (index, theirs_did)
            # What they raise is caught by whoever catches theirs.
            assert issubclass(ours_did, theirs_did), index
        else:
            assert ours_did == theirs_did, index


@pytest.mark.skipif(not is_installed("safetensors"), reason="safetensors is not installed")
@pytest.mark.parametrize("path", [it for it in sorted(MANIFEST) if it.endswith(".safetensors")])
def test_slices_of_every_dtype_are_those_of_safetensors(path):
    torch = pytest.importorskip("torch")
    import safetensors

    theirs = safetensors.safe_open(str(FIXTURES / path), "pt")
    ours = forebay.safe_open(FIXTURES / path, "pt")
    assert ours.keys() == theirs.keys() and ours.offset_keys() == theirs.offset_keys()
    assert ours.metadata() == theirs.metadata()
    for name in theirs.keys():
        try:
            expected = theirs.get_tensor(name)
        except forebay.Error.__mro__[1]:
            # Of the types that torch has not, forebay gives the bytes.
            assert ours.get_tensor(name).dtype == torch.uint8
            continue
        mine = ours.get_tensor(name)
        assert mine.dtype == expected.dtype and mine.shape == expected.shape
        assert raw(mine) == raw(expected)
        assert ours.get_slice(name).get_shape() == theirs.get_slice(name).get_shape()
        assert ours.get_slice(name).get_dtype() == theirs.get_slice(name).get_dtype()
        if expected.dim() and expected.numel() and theirs.get_slice(name).get_dtype() != "F4":
            assert raw(ours.get_slice(name)[1:]) == raw(theirs.get_slice(name)[1:])


def bytes_read(action):
    """What the threads of this process ask the kernel to read while `action` runs."""

    def asked():
        with open("/proc/self/io") as file:
            return int(file.readline().split()[1])

    action()
    before = asked()
    own = asked() - before
    before = asked()
    action()
    return asked() - before - own


@pytest.mark.parametrize(
    ("index", "rows", "row_bytes"),
    [
        (slice(100, 110), 10, 32768),
        (5, 1, 32768),
        ((slice(None), slice(0, 16)), 512, 64),
        ((slice(None, None, 64), slice(8000, None)), 8, 768),
        ((7, 9), 1, 4),
    ],
)
def test_only_what_is_indexed_is_read(tmp_path, index, rows, row_bytes):
    numpy = pytest.importorskip("numpy")
    whole = numpy.arange(512 * 8192, dtype="float32").reshape(512, 8192)
    path = write(tmp_path / "m.safetensors", "F32", whole.shape, whole.tobytes())
    with forebay.open(path) as model:
        part = model.get_slice("t")
        numpy.testing.assert_array_equal(part[index], whole[index])
        assert bytes_read(lambda: part[index]) == rows * row_bytes


def test_neighbours_are_read_together(tmp_path):
    numpy = pytest.importorskip("numpy")
    whole = numpy.arange(2048 * 1024, dtype="float32").reshape(2048, 1024)
    path = write(tmp_path / "m.safetensors", "F32", whole.shape, whole.tobytes())
    with forebay.open(path) as model:
        part = model.get_slice("t")
        index = (slice(None), slice(None, None, 8))
        numpy.testing.assert_array_equal(part[index], whole[index])
        # Elements 32 bytes apart are not worth a read each: no byte is read twice either.
        assert bytes_read(lambda: part[index]) <= whole.nbytes


def test_rows_of_block_types_are_bytes(framework):
    with forebay.open(FIXTURES / "gguf/every-type.gguf", framework) as model:
        for info in model.infos():
            if info.dtype.startswith("Q") and len(info.shape) > 1:
                whole = model.get_tensor(info.name)
                assert raw(model.get_slice(info.name)[1:]) == raw(whole[1:])
                assert model.get_slice(info.name).get_shape() == list(info.shape)
