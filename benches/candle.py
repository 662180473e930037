#!/usr/bin/env python3
"""Loads into candle's tensors: by candle's own readers, and by forebay-candle, interleaved, medians.

    benches/candle.py [--safetensors MODEL] [--gguf MODEL] [--rounds 5] [--touch GIB]
                      [--rate target/release/examples/rate]

    cargo build --release -p forebay-candle --example rate

`candle-load` is `candle_core::safetensors::load`; `candle-mmap` maps the file and makes every tensor, as
a model that is built of `VarBuilder::from_mmaped_safetensors` has them; `candle-gguf` is `Content::tensor`
for every tensor; `forebay` and `forebay-gguf` are `forebay_candle::load` and `quantized::load`. All
end with every tensor in memory that candle owns, on the CPU.

Every load is a process of its own. The time is its own, from the start of the load to the last tensor; CPU
seconds (user and system, start and exit included) and peak RSS are the kernel's (wait4). RSS counts
pages of a mapping too. Cold loads find nothing of the file in the page cache, warm ones all of it. fio's
direct reads of the same file (1 MiB, 32 in flight) are measured in each round. `--touch` is
against_fio.py's: say in every result whether it was used.
"""

import argparse
import json
import os
import statistics
import subprocess

from against_fio import drop_cache, fio, touch, warm_cache

WAYS = {"safetensors": ["candle-load", "candle-mmap", "forebay"], "gguf": ["candle-gguf", "forebay-gguf"]}


def load(arguments, way, path, cache):
    if cache == "warm":
        warm_cache(path)
    else:
        drop_cache(path)
    touch(arguments.touch)
    process = subprocess.Popen([arguments.rate, way, path], stdout=subprocess.PIPE)
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{way} {path} ended with status {status}")
    answer = json.loads(answer)
    return {
        "rate": answer["bytes"] / answer["seconds"] / 1e9,
        "cpu_s_per_gb": (usage.ru_utime + usage.ru_stime) / (answer["bytes"] / 1e9),
        "beyond_tensors_mib": (usage.ru_maxrss * 1024 - answer["bytes"]) / (1 << 20),
    }


def measure(arguments, path, ways):
    rows = [(cache, way) for cache in ["cold", "warm"] for way in ways]
    found, ceilings = {row: [] for row in rows}, []
    for number in range(1, arguments.rounds + 1):
        drop_cache(path)
        ceilings.append(fio(path, "1M", 32) / 1e9)
        for cache, way in rows:
            found[cache, way].append(load(arguments, way, path, cache))
        told = ", ".join(f"{cache} {way} {found[cache, way][-1]['rate']:.2f}" for cache, way in rows)
        print(f"round {number}: fio {ceilings[-1]:.2f}, {told} GB/s", flush=True)
    drop_cache(path)
    print(f"\nfio, direct, 1 MiB x 32: {statistics.median(ceilings):.2f} GB/s\n")
    print("| cache | way | GB/s | from, to | CPU s/GB | MiB beyond the tensors |\n|---|---|---|---|---|---|")
    for (cache, way), runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rates = [run["rate"] for run in runs]
        print(f"| {cache} | {way} | {middle['rate']:.2f} | {min(rates):.2f}, {max(rates):.2f} | "
              f"{middle['cpu_s_per_gb']:.2f} | {middle['beyond_tensors_mib']:.0f} |")
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--safetensors")
    parser.add_argument("--gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--touch", type=int, default=0, metavar="GIB")
    parser.add_argument("--rate", default="target/release/examples/rate")
    arguments = parser.parse_args()
    for kind, ways in WAYS.items():
        if path := getattr(arguments, kind):
            measure(arguments, path, ways)


if __name__ == "__main__":
    main()
