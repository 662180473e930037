"""Lets torch's wheel for CUDA be imported without the 2 GB of NVIDIA's libraries it depends on.

PyPI has no wheel of torch for the CPU only. This one links NVIDIA's libraries; where there is no
GPU, none of their functions is needed, yet the linker wants all of them. So each gets a stand-in
whose functions answer an error. For tests only: `python torch_without_cuda.py SITE_PACKAGES`.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# What the answer of a stand-in means: cudaErrorNoDevice.
NO_DEVICE = 100


def output(*command: "str | Path") -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(library: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", output("readelf", "-d", library))


def versions(library: Path) -> dict[str, str]:
    """The library that each version of a symbol comes from."""
    owners, owner = {}, ""
    for line in output("readelf", "-V", "-W", library).splitlines():
        if file := re.search(r"File: (\S+)", line):
            owner = file[1]
        elif name := re.search(r"Name: (\S+) +Flags", line):
            owners[name[1]] = owner
    return owners


def undefined(library: Path) -> list[tuple[str, str]]:
    """The symbols that others must have, each with its version, if it has one."""
    lines = output("nm", "-D", "--undefined-only", library).splitlines()
    parted = (line.split()[-1].partition("@") for line in lines)
    return [(name, version) for name, _, version in parted]


def build(folder: Path, library: str, functions: dict[str, set[str]]) -> None:
    """A library with functions by version."""
    with tempfile.TemporaryDirectory() as temporary:
        source, script = Path(temporary, "stub.c"), Path(temporary, "stub.map")
        names = sorted(name for of_version in functions.values() for name in of_version)
        source.write_text("".join(f"int {it}() {{ return {NO_DEVICE}; }}\n" for it in names))
        command: list[str | Path] = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}"]
        nodes = [
            f"{version} {{ global: {'; '.join(sorted(of_version))}; }};\n"
            for version, of_version in functions.items()
            if version
        ]
        if nodes:
            script.write_text("".join(nodes))
            command.append(f"-Wl,--version-script,{script}")
        subprocess.run([*command, source, "-o", folder / library], check=True)


def main(site_packages: Path) -> None:
    folder = site_packages / "torch" / "lib"
    libraries = sorted(folder.glob("*.so*"))
    missing = {name for library in libraries for name in needed(library)}
    missing = {it for it in missing if re.match(r"lib(cu|nv|nccl)", it)}
    missing -= {library.name for library in libraries}
    functions: dict[str, defaultdict[str, set[str]]]
    functions = {library: defaultdict(set) for library in missing}
    unversioned: set[str] = set()
    for library in libraries:
        owners = versions(library)
        for name, version in undefined(library):
            if owners.get(version) in missing:
                functions[owners[version]][version].add(name)
            elif not version and re.fullmatch(r"_*(cu|nv|nccl)[a-zA-Z0-9_]+", name):
                unversioned.add(name)
    for library in sorted(missing):
        if not functions[library]:
            # Which of them has a symbol without a version does not matter to the linker.
            functions[library][""] = unversioned
        build(folder, library, functions[library])
    print(f"{len(missing)} of NVIDIA's libraries are stand-ins in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
