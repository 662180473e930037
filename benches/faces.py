#!/usr/bin/env python3
"""Every face of the library beside the command line: the same model to `host`, interleaved, medians.

    benches/faces.py MODEL [--rounds 5] [--cache cold|warm] [--touch 10] [--c PROGRAM] [--cpp PROGRAM]

    cargo build --release && cargo build --release -p forebay-benches --example faces

The C and C++ programs are the examples of forebay-capi (see its tests/valgrind for how they are built); without them
those rows are left out. Each load is a process of its own. Rates are of the time that a face takes from its first call to the
whole model; the order of the faces is another one in every round. `--touch` is as in against_fio.py.

First the digests of all faces are compared with the command line's; `--digests-only` ends there.
"""

import argparse
import json
import os
import random
import statistics
import subprocess

from against_fio import drop_cache, touch, warm_cache

RUST = ["sync", "none", "tokio", "tokio-uring"]


def run(command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with status {status}")
    return output, usage.ru_utime + usage.ru_stime


def digests_of_lines(output):
    lines = (line.split("  ", 1) for line in output.decode().splitlines() if "  " in line)
    return {name: digest for digest, name in lines if len(digest) == 64}


class Face:
    def __init__(self, arguments, name):
        self.name, self.model = name, arguments.model
        self.programs = {"c": arguments.c, "c++": arguments.cpp}
        self.forebay, self.faces = arguments.forebay, arguments.faces

    def seconds(self):
        """Seconds and CPU seconds of a load."""
        if self.name == "command line":
            output, cpu = run([self.forebay, "load", self.model, "--device", "host", "--json"])
            return json.loads(output)["time"]["total_s"], cpu
        if self.name in RUST:
            output, cpu = run([self.faces, self.name, self.model])
            return json.loads(output)["seconds"], cpu
        output, cpu = run([self.programs[self.name], "--option", "device=host", "--seconds", self.model])
        return float(output.split()[-1]), cpu

    def digests(self):
        if self.name == "command line":
            command = [self.forebay, "load", self.model, "--device", "host", "--digest", "--json"]
            return json.loads(run(command)[0])["digests"]
        if self.name in RUST:
            return json.loads(run([self.faces, self.name, self.model, "--digest"])[0])["digests"]
        command = [self.programs[self.name], "--option", "device=host", "--digest", self.model]
        return digests_of_lines(run(command)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", choices=["cold", "warm"], default="cold")
    parser.add_argument("--touch", type=int, default=0)
    parser.add_argument("--digests-only", action="store_true")
    parser.add_argument("--forebay", default="target/release/forebay")
    parser.add_argument("--faces", default="target/release/examples/faces")
    parser.add_argument("--c")
    parser.add_argument("--cpp")
    arguments = parser.parse_args()
    names = ["command line", *RUST, *(["c"] if arguments.c else []), *(["c++"] if arguments.cpp else [])]
    faces = [Face(arguments, name) for name in names]
    expected = faces[0].digests()
    for face in faces[1:]:
        if face.digests() != expected:
            raise SystemExit(f"{face.name}: other digests than the command line's")
    print(f"{len(expected)} digests are equal by {', '.join(names)}", flush=True)
    if arguments.digests_only:
        return
    size = os.path.getsize(arguments.model)
    found = {face.name: [] for face in faces}
    for number in range(arguments.rounds):
        order = random.sample(faces, len(faces))
        for face in order:
            (drop_cache if arguments.cache == "cold" else warm_cache)(arguments.model)
            touch(arguments.touch)
            found[face.name].append(face.seconds())
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    of = statistics.median(seconds for seconds, _ in found["command line"])
    print(f"{'face':<14}GB/s  of the command line's  CPU s/GB  rounds (GB/s), {arguments.cache}")
    for name, runs in found.items():
        median = statistics.median(seconds for seconds, _ in runs)
        cpu = statistics.median(cpu for _, cpu in runs) / (size / 1e9)
        rounds = " ".join(f"{size / seconds / 1e9:.2f}" for seconds, _ in runs)
        print(f"{name:<14}{size / median / 1e9:.2f}  {of / median:<22.3f}  {cpu:<8.2f}  {rounds}")


if __name__ == "__main__":
    main()
