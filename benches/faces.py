#!/usr/bin/env python3
"""Every face of the library beside the command line: the same model to `host`, interleaved, medians.

    benches/faces.py MODEL... [--rounds 5] [--cache cold|warm] [--touch 10] [--capi PREFIX]
                            [--disk BYTES_PER_S]

    cargo build --release && cargo build --release -p forebay-benches --example faces
    PREFIX=PREFIX crates/forebay-capi/install

Without --capi, C and C++ are left out. Each load is a process of its own. Rates are of the time that a face takes from its first call to the
whole model; the order of the faces is another one in every round. `--touch` is as in against_fio.py. `--disk` (root)
holds reads to a rate: where the machine's own varies by more than the faces do, that shows what they add to it.

First the digests of all faces are compared with the command line's; `--digests-only` ends there. Rates are of the
first model.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

from against_fio import drop_cache, touch, warm_cache
from overlap import Throttle

RUST = ["sync", "none", "tokio", "tokio-uring"]


def run(command, enter=None):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=enter)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with status {status}")
    return output, usage.ru_utime + usage.ru_stime


def digests_of_lines(output):
    """Of `sha256  name` lines; a name may have line breaks of its own."""
    _, *parts = re.split(r"(?m)^([0-9a-f]{64})  ", output.decode())
    return {name.removesuffix("\n"): digest for digest, name in zip(parts[::2], parts[1::2])}


def compile_programs(prefix, folder):
    """The C and the C++ program, on the library as it is installed."""
    here = Path(__file__).resolve().parent
    wrapper = here.parent / "crates/forebay-capi/examples"
    library = [f"-I{prefix}/include", f"-L{prefix}/lib", "-lforebay", f"-Wl,-rpath,{prefix}/lib"]
    programs = {"c": ["cc", "-std=c11", here / "examples/faces.c"],
                "c++": ["c++", "-std=c++17", f"-I{wrapper}", here / "examples/faces.cpp"]}
    for name, command in programs.items():
        program = Path(folder) / name
        subprocess.run([*command, "-O2", "-Wall", "-Wextra", "-Werror", *library, "-o", program], check=True)
        yield name, program


class Face:
    def __init__(self, arguments, name, program=None):
        self.name, self.program = name, program
        self.forebay, self.faces = arguments.forebay, arguments.faces

    def command(self, model, digest):
        if self.name == "command line":
            return [self.forebay, "load", model, "--device", "host", "--json", *(["--digest"] if digest else [])]
        program = [self.program] if self.program else [self.faces, self.name]
        return [*program, model, *(["--digest"] if digest else [])]

    def seconds(self, model, enter):
        """Seconds and CPU seconds of a load."""
        output, cpu = run(self.command(model, digest=False), enter)
        if self.program:
            return float(output), cpu
        report = json.loads(output)
        return report["seconds"] if self.name in RUST else report["time"]["total_s"], cpu

    def digests(self, model):
        output, _ = run(self.command(model, digest=True))
        return digests_of_lines(output) if self.program else json.loads(output)["digests"]


def check_digests(faces, model):
    expected = faces[0].digests(model)
    for face in faces[1:]:
        if face.digests(model) != expected:
            raise SystemExit(f"{model} by {face.name}: other digests than the command line's")
    print(f"{model}: {len(expected)} digests are equal by {', '.join(face.name for face in faces)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", choices=["cold", "warm"], default="cold")
    parser.add_argument("--touch", type=int, default=0)
    parser.add_argument("--digests-only", action="store_true")
    parser.add_argument("--forebay", default="target/release/forebay")
    parser.add_argument("--faces", default="target/release/examples/faces")
    parser.add_argument("--capi")
    parser.add_argument("--disk", type=float)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        programs = compile_programs(arguments.capi, folder) if arguments.capi else []
        faces = [Face(arguments, name) for name in ["command line", *RUST]]
        faces += [Face(arguments, name, program) for name, program in programs]
        for model in arguments.models:
            check_digests(faces, model)
        if not arguments.digests_only:
            measure(arguments, faces, arguments.models[0])


def measure(arguments, faces, model):
    size = os.path.getsize(model)
    found = {face.name: [] for face in faces}
    throttle = Throttle(model, int(arguments.disk)) if arguments.disk else None
    for number in range(arguments.rounds):
        order = random.sample(faces, len(faces))
        for face in order:
            (drop_cache if arguments.cache == "cold" else warm_cache)(model)
            touch(arguments.touch)
            found[face.name].append(face.seconds(model, throttle and throttle.enter))
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    if throttle:
        throttle.remove()
    of = statistics.median(seconds for seconds, _ in found["command line"])
    print(f"{'face':<14}GB/s  of the command line's  CPU s/GB  rounds (GB/s), {arguments.cache}")
    for name, runs in found.items():
        median = statistics.median(seconds for seconds, _ in runs)
        cpu = statistics.median(cpu for _, cpu in runs) / (size / 1e9)
        rounds = " ".join(f"{size / seconds / 1e9:.2f}" for seconds, _ in runs)
        print(f"{name:<14}{size / median / 1e9:.2f}  {of / median:<22.3f}  {cpu:<8.2f}  {rounds}")


if __name__ == "__main__":
    main()
