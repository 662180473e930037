#!/usr/bin/env python3
"""Whether streamed layers cost no more than their slowest stage, and experts what their bytes cost.

    benches/streaming.py layers MODEL [--rounds 3] [--disk 200e6]
    benches/streaming.py experts MOE [--rounds 5]

`layers` (root): a quarter of the model as budget on an emulated GPU, so no rate here says anything about
hardware, and on the stand-in `host`, where copies take what they take. The disk is held to --disk bytes a second
(a cgroup's blkio or io controller), copies by the emulated driver, and computing to a set time a layer, so that each
stage is the slowest one in turn. Shown is the median pass after the first beside the slowest stage alone, of the
bytes and layers that this pass moved.

`experts`: random slices of the stacked tensors of a mixture, from storage, 8 on their way at a time, beside fio's
random reads of the same size and depth, interleaved. Medians are shown.

    cargo build --release -p forebay-benches --example streaming && cargo build --release -p forebay-cuda-emulator
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

from overlap import ROOT, Throttle, drop_cache

PASSES = 3
AHEAD = 8


def run(arguments, words, environment=None, enter=None):
    drop_cache(arguments.model)
    command = [arguments.program, *map(str, words)]
    ended = subprocess.run(command, check=True, capture_output=True, env=environment, preexec_fn=enter)
    return json.loads(ended.stdout)


def layers(arguments):
    budget = os.path.getsize(arguments.model) // 4
    disk = arguments.disk
    # Milliseconds a layer: a layer's share of the disk's time for the model, half or twice of it.
    probe = run(arguments, ["layers", arguments.model, "host", budget, 1, 0])
    share = os.path.getsize(arguments.model) / disk / probe["layers"] * 1000
    rows = [("disk", disk * 2, share / 2), ("link", disk / 2, share / 2), ("computing", disk * 2, share * 2),
            ("disk and computing", disk * 2, share), ("disk, host", None, share / 2),
            ("computing, host", None, share * 2)]
    throttle = Throttle(arguments.model, int(disk))
    found = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as driver:
        os.symlink(arguments.emulator, f"{driver}/libcuda.so.1")
        for number in range(arguments.rounds):
            for row in rows:
                words = f"devices=1 memory=16GiB strict=0 upload={row[1]}"
                environment = {**os.environ, "LD_LIBRARY_PATH": driver, "FOREBAY_CUDA_EMULATOR": words}
                device = "cuda:0" if row[1] else "host"
                command = ["layers", arguments.model, device, budget, PASSES, round(row[2])]
                found[row].append(run(arguments, command, environment, throttle.enter))
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
    throttle.remove()
    print("slowest             read s  upload s  compute s  pass s  of the slowest  resident  streamed  bays")
    for (name, upload, compute), reports in found.items():
        ratios, shown = [], None
        for report in reports:
            for done in report["passes"][1:]:
                stages = (done["read_bytes"] / disk, done["uploaded_bytes"] / upload if upload else 0,
                          round(compute) / 1000 * report["layers"])
                ratios.append(done["seconds"] / max(stages))
                shown = (*stages, done["seconds"])
        tiers = reports[-1]["tiers"]
        print(f"{name:18}  {shown[0]:6.3f}  {shown[1]:8.3f}  {shown[2]:9.3f}  {shown[3]:6.3f}"
              f"  {statistics.median(ratios):14.3f}  {tiers['resident_bytes'] >> 20:4} MiB"
              f"  {tiers['streamed_bytes'] >> 20:4} MiB  {reports[-1]['depth']:4}")


def fio(model, block, count):
    drop_cache(model)
    command = ["fio", "--name=r", f"--filename={model}", "--rw=randread", f"--bs={block}", f"--iodepth={AHEAD}",
               "--ioengine=io_uring", "--direct=1", f"--number_ios={count}", "--output-format=json", "--norandommap=0"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return report["jobs"][0]["read"]["bw_bytes"]


def experts(arguments):
    fetches, rates, ceilings, extra = 384, [], [], 0
    for _round in range(arguments.rounds):
        report = run(arguments, ["experts", arguments.model, "host", 256 << 20, fetches, AHEAD])
        stats = report["stats"]
        rates.append(stats["wanted_bytes"] / report["seconds"])
        extra = stats["read_bytes"] / stats["wanted_bytes"]
        block = stats["wanted_bytes"] // fetches // 4096 * 4096
        ceilings.append(fio(arguments.model, block, fetches))
    ours, best = statistics.median(rates), statistics.median(ceilings)
    print(f"{fetches} slices of {block} bytes, {AHEAD} ahead: {ours / 1e9:.2f} GB/s, fio {best / 1e9:.2f} GB/s:"
          f" {ours / best:.2f}; {extra:.4f} bytes read for each that was wanted")
    print("rounds:", [f"{a / 1e9:.2f}/{b / 1e9:.2f}" for a, b in zip(rates, ceilings)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layers", "experts"])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", type=float, default=200e6, help="bytes a second")
    parser.add_argument("--program", default=str(ROOT / "target/release/examples/streaming"))
    parser.add_argument("--emulator", default=str(ROOT / "target/release/libforebay_cuda_emulator.so"))
    arguments = parser.parse_args()
    {"layers": layers, "experts": experts}[arguments.what](arguments)


if __name__ == "__main__":
    main()
