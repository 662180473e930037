#!/usr/bin/env python3
"""Whether reads and uploads overlap: loads onto an emulated GPU, beside the slower of the two alone.

    benches/overlap.py MODEL [--rounds 5] [--disk 200e6]

For machines without a GPU, so no rate here says anything about hardware; what it says is how much of the
slower stage's time the whole load takes. The disk is held to --disk bytes a second (the blkio or io
controller of a cgroup; root), so that this machine's processors are no stage of their own. Copies are held
to half, equal and twice that by the emulated driver. Every round reads the file raw (O_DIRECT, 1 MiB, in the
same cgroup), then loads it with each rate, with default staging and with 16 MiB; medians are shown.

    cargo build --release -p forebay-cli -p forebay-cuda-emulator
"""

import argparse
import json
import mmap
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Throttle:
    """A cgroup whose reads from the model's disk are held to a rate."""

    def __init__(self, model, rate):
        number = os.stat(model).st_dev
        # A partition is throttled with its disk.
        name = f"{os.major(number)}:{os.minor(number)}"
        disk = pathlib.Path(f"/sys/dev/block/{name}/partition")
        if disk.exists():
            name = (disk.parent.parent / "dev").read_text().strip()
        v1 = pathlib.Path("/sys/fs/cgroup/blkio")
        if v1.exists():
            self.folder = v1 / "forebay-overlap"
            self.folder.mkdir(exist_ok=True)
            (self.folder / "blkio.throttle.read_bps_device").write_text(f"{name} {rate}")
        else:
            self.folder = pathlib.Path("/sys/fs/cgroup/forebay-overlap")
            self.folder.mkdir(exist_ok=True)
            (self.folder / "io.max").write_text(f"{name} rbps={rate}")

    def enter(self):
        """For a child, before it becomes another program."""
        (self.folder / "cgroup.procs").write_text("0")

    def remove(self):
        time.sleep(0.2)
        self.folder.rmdir()


def drop_cache(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read_raw(path, throttle):
    """Seconds for the whole file, nothing done with it."""
    drop_cache(path)
    command = ["dd", f"if={path}", "of=/dev/null", "iflag=direct", "bs=1M", "status=none"]
    started = time.monotonic()
    subprocess.run(command, check=True, preexec_fn=throttle.enter)
    return time.monotonic() - started


def load(arguments, throttle, driver, rate, staging):
    drop_cache(arguments.model)
    words = f"devices=1 memory=16GiB strict=0 upload={rate}"
    environment = {**os.environ, "LD_LIBRARY_PATH": driver, "FOREBAY_CUDA_EMULATOR": words}
    command = [arguments.forebay, "load", arguments.model, "--device", "cuda", "--load-mode", "dio", "--json"]
    command += ["--staging", staging] if staging else []
    ended = subprocess.run(command, check=True, capture_output=True, env=environment, preexec_fn=throttle.enter)
    report = json.loads(ended.stdout)
    assert report["devices"][0]["emulated"]
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk", type=float, default=200e6, help="bytes a second")
    parser.add_argument("--forebay", default=str(ROOT / "target/release/forebay"))
    parser.add_argument("--emulator", default=str(ROOT / "target/release/libforebay_cuda_emulator.so"))
    arguments = parser.parse_args()
    rates = [("half", arguments.disk / 2), ("equal", arguments.disk), ("twice", arguments.disk * 2)]
    rows = [(name, rate, staging) for name, rate in rates for staging in (None, "16MiB")]
    throttle = Throttle(arguments.model, int(arguments.disk))
    raw, loads = [], {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as driver:
        os.symlink(arguments.emulator, f"{driver}/libcuda.so.1")
        for number in range(arguments.rounds):
            raw.append(read_raw(arguments.model, throttle))
            for row in rows:
                loads[row].append(load(arguments, throttle, driver, row[1], row[2]))
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
    throttle.remove()
    disk = statistics.median(raw)
    print(f"raw read {disk:.3f} s ({os.path.getsize(arguments.model) / disk / 1e6:.0f} MB/s)")
    print("copies  staging  copies alone s  load s  of the slower stage  reader waited s  uploader waited s")
    for (name, rate, staging), reports in loads.items():
        median = lambda get: statistics.median(get(report) for report in reports)
        copies = reports[0]["upload"]["bytes"] / rate
        total = median(lambda report: report["time"]["total_s"])
        print(f"{name:6}  {staging or 'default':7}  {copies:14.3f}  {total:6.3f}  {total / max(copies, disk):19.3f}"
              f"  {median(lambda report: report['stall']['reader_waited_s']):15.3f}"
              f"  {median(lambda report: report['stall']['uploader_waited_s']):17.3f}")


if __name__ == "__main__":
    main()
