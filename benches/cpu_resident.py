#!/usr/bin/env python3
"""Tensors that stay on the CPU, beside what the same disk and memory do by other means.

    benches/cpu_resident.py MODEL [--rounds 5] [--only cold,memory,warm,half,owned]
                            [--readahead KIB] [--touch GIB] [--forebay target/release/forebay]

Prints markdown. In one run, interleaved, medians of the rounds, each measurement a process of its
own, of which the seconds of the processor are the kernel's (wait4):

- cold: a mapped load with prefetch, beside fio's buffered sequential reads (psync, 1 MiB and
  128 KiB) and beside touching a mapping page after page, with the disk's readahead and without any
  (`MADV_RANDOM`, one page a fault; on a part of the file);
- memory: the peak RSS of a mapped load to `host` with pages given back and without;
- warm: loads of a cached file beside `cp` of it to a tmpfs;
- half: a file of which every second 64 MiB are cached: auto beside pure dio and pure none;
- owned: cold `cpu=dio`, read straight into place, beside `host` and fio's direct reads.

Needs Linux, fio and cc. `--readahead KIB` measures `cold` a second time with the disk's
read_ahead_kb at that value, as root; it is put back at the end, on an error too. Caches are dropped
for this one file only (posix_fadvise). On a virtual machine `--touch 10` has memory touched and
freed before each measurement, see against_fio.py; say in a result whether it was.
"""

import argparse
import contextlib
import datetime
import json
import mmap
import os
import pathlib
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
HALF_PIECE = 64 * MIB
# One page a fault is slow: this much of the file tells its rate.
RANDOM_BYTES_MAX = 256 * MIB
SECTIONS = ["cold", "memory", "warm", "half", "owned"]

TOUCH_C = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
int main(int count, char **words) {
    size_t bytes = strtoull(words[2], 0, 10);
    int file = open(words[1], O_RDONLY);
    struct timespec from, to;
    struct rusage usage;
    clock_gettime(CLOCK_MONOTONIC, &from);
    unsigned char *start = mmap(0, bytes, PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || start == MAP_FAILED) return perror(words[1]), 1;
    if (count > 3 && madvise(start, bytes, MADV_RANDOM)) return perror("madvise"), 1;
    volatile unsigned sum = 0;
    for (size_t at = 0; at < bytes; at += 4096) sum += start[at];
    clock_gettime(CLOCK_MONOTONIC, &to);
    getrusage(RUSAGE_SELF, &usage);
    printf("%.9f %ld\n", to.tv_sec - from.tv_sec + (to.tv_nsec - from.tv_nsec) / 1e9, usage.ru_majflt);
}
"""


def drop_cache(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def fill_cache(path, is_wanted=lambda offset: True):
    """Reads the pieces that are wanted, without readahead into those that are not."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    for offset in range(0, os.fstat(descriptor).st_size, MIB):
        if is_wanted(offset):
            os.pread(descriptor, MIB, offset)
    os.close(descriptor)


def cached_share(path):
    size = os.stat(path).st_size
    text = subprocess.run(["fincore", "--json", "--bytes", path], check=True, capture_output=True).stdout
    return int(json.loads(text)["fincore"][0]["res"]) / size


def touch_memory(gib):
    """Has a child populate memory and end, so that the next process finds it backed."""
    if gib and (child := os.fork()) == 0:
        memory = mmap.mmap(-1, gib << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(23)  # MADV_POPULATE_WRITE
        os._exit(0)
    elif gib:
        os.waitpid(child, 0)


def timed(command):
    """What a command printed, its wall time, and the seconds of the processor it took."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(command)} ended with status {status}")
    return printed, time.monotonic() - started, usage.ru_utime + usage.ru_stime


def disk_queue(path):
    """The request queue in sysfs of the disk under a file, or None where it has none."""
    device = os.stat(path).st_dev
    node = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return next((queue.resolve() for queue in (node / "queue", node / "../queue") if queue.is_dir()), None)


@contextlib.contextmanager
def readahead(queue, kib):
    setting = queue / "read_ahead_kb"
    before = setting.read_text()
    setting.write_text(str(kib))
    try:
        yield
    finally:
        setting.write_text(before)


class Bench:
    def __init__(self, arguments, folder):
        self.arguments, self.model = arguments, arguments.model
        self.size = os.stat(self.model).st_size
        self.toucher = folder / "touch"
        (folder / "touch.c").write_text(TOUCH_C)
        subprocess.run(["cc", "-O2", "-o", self.toucher, folder / "touch.c"], check=True)
        self.values = {}

    def note(self, row, **values):
        for key, value in values.items():
            self.values.setdefault(row, {}).setdefault(key, []).append(value)

    def median(self, row, key):
        return statistics.median(self.values[row][key])

    def prepare(self, cache):
        drop_cache(self.model)
        touch_memory(self.arguments.touch)
        if cache == "warm":
            fill_cache(self.model)
        elif cache == "half":
            fill_cache(self.model, lambda offset: offset // HALF_PIECE % 2 == 0)

    def load(self, row, cache, *flags):
        self.prepare(cache)
        command = [self.arguments.forebay, "load", self.model, "--device", "host", "--json", *flags]
        printed, wall, processor = timed(command)
        report = json.loads(printed)
        size = report["model"]["bytes"]
        memory = report["memory"]
        self.note(row, rate=size / report["time"]["total_s"], wall_rate=size / wall,
                  cpu=processor / (size / 1e9), peak=memory["peak_rss_bytes"], size=size,
                  resident=memory["resident_bytes"] / size, in_place=memory["in_place_bytes"] / size,
                  before=(report["files"][0]["cached_bytes_before"] or 0) / self.size)

    def fio(self, row, *flags):
        self.prepare("cold")
        command = ["fio", "--name=beside", f"--filename={self.model}", "--rw=read", "--readonly",
                   "--output-format=json", *flags]
        printed, _, processor = timed(command)
        job = json.loads(printed)["jobs"][0]["read"]
        self.note(row, rate=job["bw_bytes"], cpu=processor / (job["io_bytes"] / 1e9))

    def touch(self, row, bytes_, *flags):
        self.prepare("cold")
        printed, _, processor = timed([self.toucher, self.model, str(bytes_), *flags])
        seconds, faults = printed.split()
        self.note(row, rate=bytes_ / float(seconds), cpu=processor / (bytes_ / 1e9), faults=int(faults))

    def copy(self, row):
        self.prepare("warm")
        copy = f"/dev/shm/forebay-bench-{os.getpid()}"
        try:
            _, wall, processor = timed(["cp", self.model, copy])
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
        self.note(row, rate=self.size / wall, wall_rate=self.size / wall, cpu=processor / (self.size / 1e9))

    def table(self, title, rows, columns, against=None):
        """Columns are (heading, key, how to show it); `against` is the row that rates are set beside."""
        print(f"\n### {title}\n")
        headings = ["", *(heading for heading, _, _ in columns)] + (["beside it"] if against else [])
        print("| " + " | ".join(headings) + " |\n|" + " --- |" * len(headings))
        for row in rows:
            cells = [row] + [show(self.median(row, key)) if key in self.values[row] else ""
                             for _, key, show in columns]
            if against:
                cells.append(f"{self.median(row, columns[0][1]) / self.median(against, columns[0][1]):.2f}")
            print("| " + " | ".join(cells) + " |")
        sys.stdout.flush()

    def cold_round(self, name):
        self.load(f"forebay mmap, prefetch on{name}", "cold", "--gpu-layers", "0", "-lm", "mmap",
                  "--prefetch", "on")
        for block in ["1M", "128k"]:
            self.fio(f"fio buffered psync {block}{name}", "--ioengine=psync", f"--bs={block}",
                     "--direct=0", "--invalidate=1")
        self.touch(f"touching pages in order{name}", self.size)
        self.touch(f"touching pages, no readahead{name}", min(self.size, RANDOM_BYTES_MAX), "random")

    def memory_round(self):
        for reclaim in ["off", "auto"]:
            self.load(f"mmap to host, reclaim {reclaim}", "cold", "-lm", "mmap", "--reclaim", reclaim)

    def warm_round(self):
        self.load("warm load to host", "warm")
        self.copy("cp to tmpfs")
        self.load("warm load to cpu, mmap", "warm", "--gpu-layers", "0", "-lm", "mmap")

    def half_round(self):
        for mode in ["auto", "dio", "none"]:
            self.load(f"half-cached, {mode}", "half", "-lm", mode)

    def owned_round(self):
        self.load("cpu=dio, in place", "cold", "--gpu-layers", "0", "-lm", "dio")
        self.load("host, dio", "cold", "-lm", "dio")
        self.fio("fio direct io_uring 1M x 8", "--ioengine=io_uring", "--bs=1M", "--iodepth=8",
                 "--direct=1", "--fixedbufs=1")


def gb(value):
    return f"{value / 1e9:.2f}"


def percent(value):
    return f"{value * 100:.1f} %"


RATE = [("GB/s", "rate", gb), ("CPU s/GB", "cpu", lambda value: f"{value:.2f}")]


def report_cold(bench, name):
    rows = [row for row in bench.values if row.endswith(name) and
            row.startswith(("forebay mmap, prefetch", "fio buffered", "touching"))
            and (name or "readahead at" not in row)]
    best = max((row for row in rows if row.startswith("fio")), key=lambda row: bench.median(row, "rate"))
    columns = RATE + [("resident at the end", "resident", percent),
                      ("major faults", "faults", lambda value: f"{value:.0f}")]
    bench.table(f"Cold, mapped{name}", rows, columns, best)
    ours = bench.median(f"forebay mmap, prefetch on{name}", "rate")
    print(f"\n{ours / bench.median(best, 'rate'):.2f} of {best.removesuffix(name)}; " + "; ".join(
        f"{ours / bench.median(f'{row}{name}', 'rate'):.1f} times {row}"
        for row in ["touching pages in order", "touching pages, no readahead"]))


def report(bench, chosen):
    if "memory" in chosen:
        rows = ["mmap to host, reclaim off", "mmap to host, reclaim auto"]
        columns = [("peak RSS GB", "peak", gb), ("model GB", "size", gb), ("GB/s", "rate", gb)]
        bench.table("Peak memory of a mapped load to host", rows, columns, rows[0])
    if "warm" in chosen:
        rows = ["cp to tmpfs", "warm load to host", "warm load to cpu, mmap"]
        columns = [("GB/s, process", "wall_rate", gb), ("GB/s, load", "rate", gb), RATE[1]]
        bench.table("Warm", rows, columns, rows[0])
    if "half" in chosen:
        rows = [f"half-cached, {mode}" for mode in ["auto", "dio", "none"]]
        best = max(rows[1:], key=lambda row: bench.median(row, "rate"))
        bench.table("Half of the file cached, to host", rows, RATE + [("cached before", "before", percent)], best)
    if "owned" in chosen:
        rows = ["cpu=dio, in place", "host, dio", "fio direct io_uring 1M x 8"]
        bench.table("Cold, owned memory of the cpu", rows, RATE + [("read into place", "in_place", percent)], rows[2])


def machine(arguments, queue):
    def first_line(path):
        with contextlib.suppress(OSError):
            return pathlib.Path(path).read_text().strip()
        return ""
    product = " ".join(filter(None, (first_line(f"/sys/class/dmi/id/{name}") for name in ["sys_vendor", "product_name"])))
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kind = "virtual machine" if "hypervisor" in pathlib.Path("/proc/cpuinfo").read_text() else "machine"
    ahead = first_line(queue / "read_ahead_kb") + " KiB" if queue else "unknown"
    print(f"- {kind}{f' ({product})' if product else ''}: {os.cpu_count()} x {cpu}, {memory >> 30} GiB")
    print(f"- Linux {platform.release()}; disk {queue.parent.name if queue else 'unknown'}, readahead {ahead}")
    print(f"- {datetime.date.today()}, {arguments.rounds} rounds, medians, --touch {arguments.touch}, "
          f"model of {os.stat(arguments.model).st_size / 1e9:.2f} GB")
    print(f"- `{shlex.join(sys.argv)}`", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forebay", default="target/release/forebay")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--readahead", type=int, metavar="KIB")
    parser.add_argument("--touch", type=int, default=0, metavar="GIB")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if "warm" in chosen and shutil.disk_usage("/dev/shm").free < os.stat(arguments.model).st_size * 1.1:
        parser.error("/dev/shm has no room for the model: leave 'warm' out of --only")
    queue = disk_queue(arguments.model)
    if arguments.readahead is not None and (not queue or not os.access(queue / "read_ahead_kb", os.W_OK)):
        parser.error("--readahead needs root, and a disk that has a readahead")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, pathlib.Path(folder))
        drop_cache(arguments.model)
        if cached_share(arguments.model) > 0.01:
            parser.error("the model does not leave the page cache: is it on a tmpfs, or mapped by somebody?")
        machine(arguments, queue)
        name = f", readahead at {arguments.readahead} KiB"
        for number in range(1, arguments.rounds + 1):
            if "cold" in chosen:
                bench.cold_round("")
                if arguments.readahead is not None:
                    with readahead(queue, arguments.readahead):
                        bench.cold_round(name)
            for section in chosen:
                if section != "cold":
                    getattr(bench, f"{section}_round")()
            print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
        drop_cache(arguments.model)
        if "cold" in chosen:
            report_cold(bench, "")
            if arguments.readahead is not None:
                report_cold(bench, name)
        report(bench, chosen)


if __name__ == "__main__":
    main()
