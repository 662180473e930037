#!/usr/bin/env python3
"""Cold loads into `host` beside fio's best io_uring O_DIRECT shape, interleaved, medians.

    benches/against_fio.py MODEL [--rounds 5] [--forebay target/release/forebay] [-- FLAGS OF LOAD]

Needs fio and Linux. On a virtual machine whose host gives memory out at first touch and takes freed
memory back (free page reporting), fresh memory costs more than the disk: `--touch 10` has another
process touch and free 10 GiB just before every measurement, so that the guest's free memory is there
as it is on a machine of one's own. Say in every result which it was.

Every round runs each fio shape, a cold load and a warm load; each load is a
process of its own, whose CPU seconds (user and system, start and exit included) and peak RSS are
the kernel's (wait4).
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess

SHAPES = [("1M", 8), ("4M", 8), ("1M", 32)]


def drop_cache(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    size = os.fstat(descriptor).st_size
    os.close(descriptor)
    # Pages that somebody has mapped or is reading stay: then nothing is cold.
    found = ["fincore", "--bytes", "--noheadings", "--output", "RES", path]
    left = int(subprocess.run(found, capture_output=True, text=True, check=True).stdout)
    if left > size // 64:
        raise SystemExit(f"{path}: {left} bytes stay in the page cache: who else uses the file?")


def warm_cache(path):
    with open(path, "rb", buffering=0) as file:
        while file.read(4 << 20):
            pass


def touch(gib):
    """Has a child populate memory and end, so that the next process finds it backed."""
    if gib and (child := os.fork()) == 0:
        memory = mmap.mmap(-1, gib << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(23)  # MADV_POPULATE_WRITE
        os._exit(0)
    elif gib:
        os.waitpid(child, 0)


def prepare(arguments, cache):
    if cache == "warm" or arguments.prewarm:
        warm_cache(arguments.model)
    if cache == "cold":
        drop_cache(arguments.model)
    touch(arguments.touch)


def fio(path, block, depth):
    command = ["fio", "--name=ceiling", f"--filename={path}", "--rw=read", f"--bs={block}",
               f"--iodepth={depth}", "--ioengine=io_uring", "--direct=1", "--fixedbufs=1",
               "--readonly", "--output-format=json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result["jobs"][0]["read"]["bw_bytes"]


def load(forebay, path, flags):
    command = [forebay, "load", path, "--device", "host", "--json", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    report = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with status {status}")
    size = report["model"]["bytes"]
    return {
        "rate": size / report["time"]["total_s"],
        "cpu_s_per_gb": (usage.ru_utime + usage.ru_stime) / (size / 1e9),
        "beyond_tensors_mib": (report["memory"]["peak_rss_bytes"] - size) / (1 << 20),
        "reader_waited_s": report["stall"]["reader_waited_s"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forebay", default="target/release/forebay")
    parser.add_argument("--prewarm", action="store_true",
                        help="read the file into the page cache before each cold measurement drops it")
    parser.add_argument("--touch", type=int, default=0, metavar="GIB")
    parser.add_argument("flags", nargs="*", help="passed on to forebay load")
    arguments = parser.parse_args()
    ceilings = {shape: [] for shape in SHAPES}
    runs = {"cold": [], "warm": []}
    for round_number in range(1, arguments.rounds + 1):
        for shape in SHAPES:
            prepare(arguments, "cold")
            ceilings[shape].append(fio(arguments.model, *shape))
        for cache in runs:
            prepare(arguments, cache)
            runs[cache].append(load(arguments.forebay, arguments.model, arguments.flags))
        drop_cache(arguments.model)
        print(f"round {round_number}: fio " +
              ", ".join(f"{b}x{d} {c[-1] / 1e9:.2f}" for (b, d), c in ceilings.items()) +
              "; " + ", ".join(f"{cache} {r[-1]['rate'] / 1e9:.2f} GB/s ({r[-1]['cpu_s_per_gb']:.2f} CPU s/GB)"
                               for cache, r in runs.items()), flush=True)
    median = {shape: statistics.median(values) for shape, values in ceilings.items()}
    best = max(median, key=median.get)
    print(f"ceiling: {median[best] / 1e9:.2f} GB/s (fio {best[0]} x {best[1]})")
    for cache, values in runs.items():
        middle = {key: statistics.median(value[key] for value in values) for key in values[0]}
        print(f"{cache}: {middle['rate'] / 1e9:.2f} GB/s, {middle['rate'] / median[best]:.2f} of the ceiling, "
              f"{middle['cpu_s_per_gb']:.2f} CPU s/GB, {middle['beyond_tensors_mib']:.0f} MiB beyond the tensors")


if __name__ == "__main__":
    main()
