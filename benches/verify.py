#!/usr/bin/env python3
"""What digests cost: `forebay verify` beside `forebay load` of the same file, and fio.

    benches/verify.py MODEL [--rounds 7] [--touch GIB] [--forebay target/release/forebay] [-- FLAGS]

Every round runs, in an order drawn anew, a load, and a verification by each digest, cold and warm,
and fio's best shape; each is a process of its own, timed from its start to its end. Medians, and the
ratio of each to the load of its kind. The manifests are made first. FLAGS go to all of them;
--touch is that of against_fio.py.
"""

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time

from against_fio import drop_cache, fio, touch, warm_cache

WAYS = ["load", "blake3", "sha256"]


def command(arguments, way, manifests):
    if way == "load":
        return [arguments.forebay, "load", arguments.model, "--json", *arguments.flags]
    manifest = os.path.join(manifests, way)
    return [arguments.forebay, "verify", arguments.model, "--manifest", manifest, "--json",
            *arguments.flags]


def timed(words):
    """Seconds, and CPU seconds, of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{words} ended with status {status}")
    return seconds, usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--touch", type=int, default=0, metavar="GIB")
    parser.add_argument("--forebay", default="target/release/forebay")
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    size = os.path.getsize(arguments.model)
    seen = {(way, cache): [] for way in WAYS for cache in ["cold", "warm"]}
    ceiling = []
    with tempfile.TemporaryDirectory() as manifests:
        for way in WAYS[1:]:
            subprocess.run([*command(arguments, way, manifests), "--write", "--digest", way],
                           check=True, stdout=subprocess.DEVNULL)
        for _ in range(arguments.rounds):
            turns = [*seen, None]
            random.shuffle(turns)
            for turn in turns:
                drop_cache(arguments.model)
                if turn is None:
                    ceiling.append(fio(arguments.model, "1M", 8))
                    continue
                way, cache = turn
                if cache == "warm":
                    warm_cache(arguments.model)
                touch(arguments.touch)
                seen[turn].append(timed(command(arguments, way, manifests)))
    print(f"{size / 1e9:.2f} GB, {arguments.rounds} rounds, "
          f"fio 1M x 8: {statistics.median(ceiling) / 1e9:.2f} GB/s")
    print("| | seconds | of the load | GB/s | CPU s |\n|---|---|---|---|---|")
    for cache in ["cold", "warm"]:
        base = statistics.median(seconds for seconds, _ in seen["load", cache])
        for way in WAYS:
            runs = seen[way, cache]
            seconds = statistics.median(seconds for seconds, _ in runs)
            cpu = statistics.median(cpu for _, cpu in runs)
            print(f"| {cache}, {way} | {seconds:.2f} ({min(runs)[0]:.2f} to {max(runs)[0]:.2f}) "
                  f"| {seconds / base:.3f} | {size / seconds / 1e9:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
