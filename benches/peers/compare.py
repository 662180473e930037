#!/usr/bin/env python3
"""`load_file` of forebay's Python package beside its peers, into tensors of torch on the CPU.

    crates/forebay-python/test --torch                       # makes the environment
    benches/peers/compare.py MODEL.safetensors [--rounds 5] [--cache cold|warm] [--touch GIB]

Installs the peers from PyPI into that environment, without what they depend on. Rounds are
interleaved and shuffled, each load is a process of its own. What is timed ends when one byte of every page of
every tensor has been read, since a mapping that nobody touched has loaded nothing; importing is not
timed. CPU seconds are of the same time. Memory is what there was at most beyond what there was
before: of the process (its peak RSS), and, for root, of the system: what a control group of its own
was charged with, so the page cache too that a load fills. fio's row is the disk's own rate in the
same round.

`--touch`: as benches/against_fio.py has it. instanttensor loads to CUDA only, and says so.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from against_fio import drop_cache, fio, touch, warm_cache  # noqa: E402

PEERS = ["runai-model-streamer", "fastsafetensors", "instanttensor", "humanize"]

LOADERS = {
    "forebay": "import forebay.torch\ndef load(): return forebay.torch.load_file(path)",
    "safetensors": "import safetensors.torch\ndef load(): return safetensors.torch.load_file(path)",
    "safetensors pread": """
import safetensors.torch
def load(): return safetensors.torch.load_file(path, backend="pread")
""",
    "runai-model-streamer": """
from runai_model_streamer import SafetensorsStreamer
def load():
    with SafetensorsStreamer() as streamer:
        streamer.stream_file(path)
        return {name: tensor.clone() for name, tensor in streamer.get_tensors()}
""",
    "fastsafetensors": """
from fastsafetensors import SafeTensorsFileLoader, SingleGroup
def load():
    loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
    loader.add_filenames({0: [path]})
    buffer = loader.copy_files_to_device()
    return {name: buffer.get_tensor(name) for name in loader.get_keys()}, loader, buffer
""",
    "instanttensor": """
import instanttensor
def load():
    with instanttensor.safe_open([path], framework="pt", device="cpu") as file:
        return {name: tensor.clone() for name, tensor in file.tensors()}
""",
}

TIMED = """
import json, os, resource, sys, time
path, group = sys.argv[1:]
if group:
    with open(os.path.join(group, "cgroup.procs"), "w") as file:
        file.write("0")
import torch
{loader}
def charged(name):
    if not group:
        return 0
    with open(os.path.join(group, name)) as file:
        return int(file.read())
def pages(tensor):
    flat = tensor.reshape(-1).view(torch.uint8)
    return int(flat[:: 4096].sum()) if flat.numel() else 0
charged_before = charged("{now}")
before = resource.getrusage(resource.RUSAGE_SELF)
started = time.monotonic()
loaded = load()
tensors = loaded[0] if isinstance(loaded, tuple) else loaded
check = sum(pages(tensor) for tensor in tensors.values())
seconds = time.monotonic() - started
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
size = sum(tensor.nbytes for tensor in tensors.values())
system = (charged("{peak}") - charged_before) / (1 << 20)
rss = (after.ru_maxrss - before.ru_maxrss) / 1024
print(json.dumps([seconds, cpu, rss, system, check, size]))
"""


def control_group():
    """A folder for a control group, and what its files are called; no folder where none is to be had."""
    mount = Path("/sys/fs/cgroup")
    older = (mount / "memory").is_dir()
    names = {"now": "memory.usage_in_bytes", "peak": "memory.max_usage_in_bytes"}
    if not older:
        names = {"now": "memory.current", "peak": "memory.peak"}
    return (mount / "memory" if older else mount) / f"forebay-peers-{os.getpid()}", names


def measure(python, name, path):
    """Seconds, CPU seconds, MiB of the process and of the system, a checksum, bytes; or why it
    does not load."""
    group, names = control_group()
    try:
        group.mkdir()
    except OSError:
        group = ""
    command = [python, "-c", TIMED.format(loader=LOADERS[name], **names), path, str(group)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        if group:
            group.rmdir()
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def table(results, rates):
    print(f"{'':22} GB/s   CPU s/GB  peak MiB  system MiB  runs")
    if rates:
        print(f"{'fio 1M x 32':22} {statistics.median(rates) / 1e9:5.2f}")
    checks = set()
    for name, runs in results.items():
        failed = next((run for run in runs if isinstance(run, str)), None)
        if failed:
            print(f"{name:22} {failed}")
            continue
        gigabytes = runs[0][5] / 1e9
        checks |= {run[4] for run in runs}
        seconds, cpu, memory, system = (
            statistics.median(run[it] for run in runs) for it in range(4)
        )
        each = " ".join(f"{gigabytes / run[0]:.2f}" for run in runs)
        print(
            f"{name:22} {gigabytes / seconds:5.2f} {cpu / gigabytes:10.2f} {memory:9.0f} "
            f"{system:11.0f}  {each}"
        )
    if len(checks) > 1:
        raise SystemExit("they do not load the same bytes")


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", choices=["cold", "warm"], default="cold")
    parser.add_argument("--touch", type=int, default=0, metavar="GIB")
    parser.add_argument("--venv", type=Path, default=root / "target" / "python-venv")
    parser.add_argument("--no-fio", action="store_true")
    arguments = parser.parse_args()
    python = str(arguments.venv / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *PEERS]
    subprocess.run(install, check=True)
    path = os.path.abspath(arguments.model)
    results = {name: [] for name in LOADERS}
    rates = []
    for number in range(1, arguments.rounds + 1):
        print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
        if not arguments.no_fio:
            rates.append(fio(path, "1M", 32))
        # None always comes after the same one.
        for name in random.sample(sorted(results), len(results)):
            if results[name] and isinstance(results[name][-1], str):
                continue
            (drop_cache if arguments.cache == "cold" else warm_cache)(path)
            touch(arguments.touch)
            results[name].append(measure(python, name, path))
    table(results, rates)


if __name__ == "__main__":
    main()
