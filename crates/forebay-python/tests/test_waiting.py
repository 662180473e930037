"""Waiting: progress, cancel, Ctrl-C, threads, and who holds the interpreter meanwhile."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import FIXTURES, MANIFEST, raw, sha256

import forebay

SIZE = 256 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model that takes a while: 16 tensors of 16 MiB."""
    import json
    import struct

    each = SIZE // 16
    entries = {
        f"t{number}": {
            "dtype": "U8",
            "shape": [each],
            "data_offsets": [number * each, (number + 1) * each],
        }
        for number in range(16)
    }
    header = json.dumps(entries).encode()
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for number in range(16):
            file.write(bytes([number]) * each)
    return path


# Slow, whatever the disk: 64 KiB at a time, one after the other.
SLOW = {"chunk": "64KiB", "queue_depth": 1, "load_mode": "dio", "engine": "threads"}


def test_progress_counts_every_byte(large):
    calls = []
    loaded = forebay.load(large, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (SIZE, SIZE)
    assert calls == sorted(calls) and {total for _, total in calls} == {SIZE}
    assert [int(loaded[f"t{number}"][-1]) for number in range(16)] == list(range(16))


def test_a_bar_is_drawn_where_tqdm_is_installed(large, capsys):
    pytest.importorskip("tqdm")
    forebay.load(large, progress=True)
    assert "100%" in capsys.readouterr().err


def test_what_the_callback_raises_ends_the_load(large):
    def refuse(done, total):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        forebay.load(large, progress=refuse, **SLOW)


def test_a_stream_is_cancelled_from_another_thread(large):
    stream = forebay.stream(large, **SLOW)
    timer = threading.Timer(0.1, stream.cancel)
    timer.start()
    with pytest.raises(forebay.Cancelled):
        for _ in stream:
            pass
    timer.join()
    assert stream.report is None and list(stream) == []


def test_a_stream_that_is_closed_keeps_what_has_landed(large):
    with forebay.stream(large, chunk="1MiB", load_mode="dio") as stream:
        name, tensor = next(stream)
    stream.close()
    assert list(stream) == []
    number = int(name[1:])
    assert (tensor == number).all()
    tensor[:] = 99
    assert (tensor == 99).all()


@pytest.mark.parametrize("by", ["progress", "signal"])
def test_a_stream_is_closed_by_whoever_is_called_while_it_waits(large, by):
    streams = []

    def close(*_):
        streams[0].close()

    before = signal.signal(signal.SIGALRM, close)
    try:
        streams.append(forebay.stream(large, progress=close if by == "progress" else None, **SLOW))
        if by == "signal":
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(forebay.Cancelled):
            for _ in streams[0]:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert list(streams[0]) == []


def test_a_cancelled_stream_yields_nothing_more_even_if_all_has_landed(large):
    stream = forebay.stream(large)
    next(stream)
    loaded = threading.Event()
    threading.Timer(1, loaded.set).start()
    loaded.wait()
    stream.cancel()
    with pytest.raises(forebay.Cancelled):
        next(stream)
    assert stream.report is None and list(stream) == []


def test_a_stream_outlives_its_model(framework):
    path = FIXTURES / "ptd/odd-layouts.ptd"
    expected = {name: raw(tensor) for name, tensor in forebay.load(path, framework).items()}
    with forebay.open(path, framework) as model:
        stream = model.stream()
    assert {name: raw(tensor) for name, tensor in stream} == expected


INTERRUPTED = """
import signal, sys, time
import forebay
# Whoever runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
try:
    for _ in range(1000):
        {action}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
print("never interrupted")
"""


@pytest.mark.parametrize(
    "action",
    [
        "forebay.load(sys.argv[1], chunk='64KiB', queue_depth=1, load_mode='dio')",
        "forebay.open(sys.argv[1]).get_tensor('t0')",
        "for _ in forebay.stream(sys.argv[1], chunk='64KiB', queue_depth=1): pass",
    ],
)
def test_control_c_ends_what_is_waited_for(large, action):
    command = [sys.executable, "-c", INTERRUPTED.format(action=action), str(large)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (7, "interrupted\n")


def test_python_runs_on_while_a_load_waits(large):
    turns = 0
    ended = threading.Event()

    def load():
        forebay.load(large, **SLOW)
        ended.set()

    thread = threading.Thread(target=load)
    thread.start()
    while not ended.is_set():
        turns += 1
        time.sleep(0.001)
    thread.join()
    # A load that held the interpreter would have let this loop in no more than once.
    assert turns > 3


def test_many_threads_load_and_read_the_same_files(framework):
    paths = ["gguf/split-00001-of-00003.gguf", "safetensors/official.safetensors"]
    failures = []

    def work():
        try:
            for path in paths:
                entries = {it["name"]: it["sha256"] for it in MANIFEST[path]["tensors"]}
                with forebay.open(FIXTURES / path, framework) as model:
                    for name, tensor in model.stream():
                        assert sha256(raw(tensor)) == entries[name]
                    for name in model:
                        assert sha256(raw(model[name])) == entries[name]
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_stream_serves_several_threads(large):
    stream = forebay.stream(large)
    names = []

    def take():
        for name, tensor in stream:
            assert int(tensor[0]) == int(name[1:])
            names.append(name)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == sorted(f"t{number}" for number in range(16))
    assert stream.report is not None
