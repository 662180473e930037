#!/usr/bin/env python3
"""Runs a command in a small virtual machine, for what this machine lacks.

    tests/vm/run.py [options] -- COMMAND [ARGUMENT…]
    tests/vm/run.py --numa 2 -- ls /sys/devices/system/node
    tests/vm/run.py --add target/debug/forebay --nvme disk.ext4 -- forebay load /nvme0/m.gguf

The machine is QEMU's, emulated, so that it needs neither root nor KVM: several NUMA nodes, NVMe
drives with faults, a kernel of another age. It boots a distribution's kernel in about four seconds
from a file system in memory that holds busybox, the files of --add and their shared libraries, and
is gone when COMMAND is done. Kernel and busybox are fetched by apt-get once, unpacked without being
installed, and kept under target/vm; remove that folder to fetch newer ones.

COMMAND runs as root in /root, and its words are handed on as they are (for a pipe: sh -c '…').
What it writes comes out here, both streams on standard output. What the kernel says goes to
target/vm/console-PID.log, which is kept and named if the machine fails.

Drives (--nvme, repeatable) are raw files, left as they were: what the machine writes is forgotten.
Drive number N has the serial number driveN, and is mounted at /nvmeN if it holds ext4; kernels that
look for drives on several threads may give /dev/nvmeNn1 to another one. The name goes to QEMU, so
read errors are `--nvme blkdebug:errors.conf:disk.ext4`. So do more properties, of what is plugged in
and of what is behind it:

    --device 1,logical_block_size=4096,physical_block_size=4096   drive 1 has sectors of 4096 bytes
    --drive 1,throttling.bps-read=8000000                         drive 1 is slow

With --monitor, COMMAND has QEMU's monitor at /dev/ttyS2, and may take drive 1 out of the machine that
it runs on: `echo device_del nvme1 >/dev/ttyS2`.

Exit status: COMMAND's; 77 if something is missing here (with a line `SKIPPED: …`; 0 with
--skip-ok); 124 after --timeout; 125 if the machine could not be started, or ended without a
word from COMMAND.
"""

import argparse
import lzma
import os
import pathlib
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "vm"
KERNELS = ["linux-image-cloud-amd64", "linux-image-virtual"]  # Debian's, Ubuntu's.
MODULES = ["nvme", "ext4", "crc32c_generic"]  # Where they are not built in.
STATUS = "vm: status "

# The first console is the kernel's and ours, the second is the command's.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=dumb
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
for module in $(cat /modules/order); do
  insmod /modules/$module $(tr ' ' '\\n' </proc/cmdline | sed -n "s/^$module\\.//p")
done
for serial in /sys/class/nvme/*/serial; do
  [ -e $serial ] || continue
  drive=$(basename $(dirname $serial)) folder=/nvme$(sed 's/[^0-9]//g' $serial)
  mkdir -p $folder && mount -t ext4 /dev/${drive}n1 $folder 2>/dev/null || rmdir $folder
done
ip link set lo up
for console in /dev/ttyS1 /dev/ttyS2; do stty -F $console raw -echo 2>/dev/null; done
cd /root
sh /command </dev/null >/dev/ttyS1 2>&1
echo "vm: status $?"
reboot -f
"""


class Missing(Exception):
    """This machine lacks something that the virtual one needs."""


class Archive:
    """A file system in memory for the kernel to unpack: cpio, format `newc`."""

    def __init__(self):
        self.parts, self.names = [], set()

    def add(self, name, data=b"", mode=stat.S_IFREG | 0o755):
        """A file (or folder, or device by its mode), and the folders it lies in."""
        name = name.strip("/")
        if name in self.names:
            return
        if "/" in name:
            self.add(name.rpartition("/")[0], mode=stat.S_IFDIR | 0o755)
        self.names.add(name)
        # Number, mode, owner, group, links, time, bytes, device, node, length of the name, sum.
        device = (5, 1) if stat.S_ISCHR(mode) else (0, 0)  # /dev/console is the only one.
        fields = [len(self.names), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self.parts += [pad(header + os.fsencode(name) + b"\0"), pad(data)]

    def add_program(self, path):
        """A file as /bin/NAME, and the shared libraries it is linked with, where they are here."""
        path = pathlib.Path(path)
        self.add(f"bin/{path.name}", path.read_bytes())
        linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
        for library in re.findall(r"(/\S+) \(0x", linked.stdout):
            self.add(library, pathlib.Path(library).read_bytes())

    def contents(self):
        self.add("TRAILER!!!", mode=0)
        return b"".join(self.parts)


def pad(data):
    return data + bytes(-len(data) % 4)


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def fetched(package):
    """The unpacked folder of a package, or of a .deb, with what a meta-package stands for."""
    folder = CACHE / pathlib.Path(package).name
    if folder.exists():
        return folder
    if not shutil.which("apt-get") and not package.endswith(".deb"):
        raise Missing(f"apt-get, to fetch {package}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        unpacked = pathlib.Path(scratch, "unpacked")
        try:
            for deb in debs(package, scratch):
                run("dpkg", "-x", deb, unpacked)
        except subprocess.CalledProcessError as error:
            raise Missing(f"{package}: {error.stderr.strip()}") from error
        if not folder.exists():
            unpacked.rename(folder)
    return folder


def debs(package, folder):
    if package.endswith(".deb"):
        return [package]
    names, new = {package}, [package]
    while new:  # An image that another package stands for, the modules of an image.
        depends = run("apt-cache", "depends", "--important", new.pop())
        found = set(re.findall(r"Depends: (linux-(?:image|modules)-\S+)", depends)) - names
        names |= found
        new += found
    run("apt-get", "download", *names, cwd=folder)
    return sorted(pathlib.Path(folder).glob("*.deb"))


def kernel_folder(packages):
    for package in packages:
        try:
            return fetched(package)
        except Missing as missing:
            reason = missing
    raise reason


def add_modules(archive, kernel):
    """The modules of MODULES that are files, each after those it depends on."""
    files = {path.name.partition(".")[0].replace("-", "_"): path
             for path in kernel.glob("**/lib/modules/**/*.ko*")}
    order = []

    def add(name):
        if name in order or name not in files:
            return
        data = uncompressed(files[name])
        depends = re.search(rb"\0depends=([^\0]*)", data)
        for other in depends[1].decode().split(",") if depends else []:
            add(other.replace("-", "_"))
        order.append(name)
        archive.add(f"modules/{name}", data)

    for name in MODULES:
        add(name)
    archive.add("modules/order", "\n".join(order).encode())


def uncompressed(path):
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        if not shutil.which("zstd"):
            raise Missing(f"zstd, to unpack {path.name}")
        return subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    return path.read_bytes()


def initramfs(options, kernel):
    archive = Archive()
    archive.add("init", INIT.encode())
    archive.add("command", shlex.join(options.command).encode())
    archive.add("bin/busybox", (fetched("busybox-static") / "bin/busybox").read_bytes())
    for folder in ["proc", "sys", "dev", "tmp", "root"]:
        archive.add(folder, mode=stat.S_IFDIR | 0o755)
    archive.add("dev/console", mode=stat.S_IFCHR | 0o600)
    for path in options.add:
        archive.add_program(path)
    add_modules(archive, kernel)
    return archive.contents()


def numa_arguments(nodes, cpus, memory_mib):
    """Memory in equal parts; processors in turns of equal length, none for nodes past them."""
    arguments = []
    for node in range(nodes):
        size = memory_mib // nodes + (memory_mib % nodes if node == 0 else 0)
        first, end = node * cpus // nodes, (node + 1) * cpus // nodes
        own = f",cpus={first}-{end - 1}" if first < end else ""
        arguments += ["-object", f"memory-backend-ram,id=memory{node},size={size}M",
                      "-numa", f"node,nodeid={node},memdev=memory{node}{own}"]
    return arguments


def properties(texts, number):
    """What of `N,PROPERTIES` is about drive `number`, to be put behind its others."""
    parts = [text.partition(",") for text in texts]
    return "".join(f",{rest}" for drive, _, rest in parts if drive == str(number))


def monitor_arguments(path):
    """Two ends of a socket in the same QEMU: its monitor listens, a serial port is connected."""
    return ["-chardev", f"socket,id=monitor,path={path},server=on,wait=off",
            "-mon", "chardev=monitor",
            "-chardev", f"socket,id=guest,path={path}", "-serial", "chardev:guest"]


def machine(options, kernel, initrd, console):
    [image] = kernel.glob("boot/vmlinuz-*")
    # Where the host is so busy that the emulated timer stands still for a moment, the kernel would take
    # it for broken: no_timer_check.
    # One thread for all processors: with one for each, on fewer processors, QEMU loses a wakeup once
    # in some dozens of machines, and the kernel waits for it for ever.
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "max",
               "-smp", str(options.cpus), "-m", f"{options.memory}M",
               "-nodefaults", "-display", "none", "-no-reboot",
               "-serial", f"file:{console}", "-serial", "stdio",
               "-kernel", image, "-initrd", initrd, "-append",
               f"console=ttyS0 quiet panic=-1 no_timer_check {options.append}",
               *numa_arguments(options.numa, options.cpus, options.memory)]
    for number, drive in enumerate(options.nvme):
        name = drive.replace(",", ",,")
        more_drive = properties(options.drive, number)
        more_device = properties(options.device, number)
        command += [
            "-drive", f"if=none,id=drive{number},format=raw,snapshot=on,file={name}{more_drive}",
            "-device", f"nvme,id=nvme{number},drive=drive{number},serial=drive{number}{more_device}"]
    if options.monitor:
        command += monitor_arguments(f"{initrd}.monitor")
    return [*command, *shlex.split(options.qemu)]


def boot(options):
    """COMMAND's status, or one of our own."""
    if not shutil.which("qemu-system-x86_64"):
        raise Missing("qemu-system-x86_64 (Debian's package qemu-system-x86)")
    kernel = kernel_folder([options.kernel] if options.kernel else KERNELS)
    console = CACHE / f"console-{os.getpid()}.log"
    with tempfile.NamedTemporaryFile(dir=CACHE) as initrd:
        initrd.write(initramfs(options, kernel))
        initrd.flush()
        command = machine(options, kernel, initrd.name, console)
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=options.timeout, check=False)
            own, why = 125, "ended without a word from the command"
        except subprocess.TimeoutExpired:
            own, why = 124, f"was ended after {options.timeout} s"
    said = console.read_text(errors="replace") if console.exists() else ""
    status = re.search(rf"^{STATUS}(\d+)", said, re.MULTILINE)
    if status:
        console.unlink()
        return int(status[1])
    tail = "\n".join(said.splitlines()[-20:])
    print(f"{tail}\nerror: the machine {why}; its console: {console}", file=sys.stderr)
    return own


def mebibytes(text):
    unit = {"M": 1, "G": 1024}
    if not re.fullmatch(r"\d+[MG]", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 512M or 2G")
    return int(text[:-1]) * unit[text[-1]]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numa", type=int, default=1, metavar="N", help="NUMA nodes (1)")
    parser.add_argument("--cpus", type=int, default=4, metavar="N", help="processors (4)")
    parser.add_argument("--memory", type=mebibytes, default="2G", metavar="SIZE", help="(2G)")
    parser.add_argument("--add", action="append", default=[], metavar="FILE",
                        help="put FILE into /bin there, with its shared libraries")
    parser.add_argument("--nvme", action="append", default=[], metavar="FILE",
                        help="a drive that holds FILE")
    parser.add_argument("--drive", action="append", default=[], metavar="N,PROPERTIES",
                        help="more for QEMU about what is behind drive N")
    parser.add_argument("--device", action="append", default=[], metavar="N,PROPERTIES",
                        help="more for QEMU about drive N itself")
    parser.add_argument("--monitor", action="store_true",
                        help="QEMU's monitor is /dev/ttyS2 there")
    parser.add_argument("--kernel", metavar="PACKAGE",
                        help=f"its apt package, or a .deb ({' or '.join(KERNELS)})")
    parser.add_argument("--append", default="", metavar="TEXT",
                        help="for the kernel's command line")
    parser.add_argument("--qemu", default="", metavar="TEXT", help="more arguments for QEMU")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds (600)")
    parser.add_argument("--skip-ok", action="store_true",
                        help="status 0 where something is missing")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    # An exception, so that the machine ends with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(boot(options))
    except Missing as missing:
        print(f"SKIPPED: {missing}", file=sys.stderr)
        sys.exit(0 if options.skip_ok else 77)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(125)


if __name__ == "__main__":
    main()
