#!/usr/bin/env python3
"""Compiles every *.cu beside it to PTX.

    python3 -m venv /tmp/nvrtc
    /tmp/nvrtc/bin/pip install nvidia-cuda-nvrtc-cu12==12.0.140 nvidia-cuda-runtime-cu12==12.0.146
    /tmp/nvrtc/bin/python make.py
"""

import ctypes
import importlib.util
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = {"sweep": ["compute_75", "compute_90"]}


def package(name: str) -> Path:
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def compile_ptx(library: ctypes.CDLL, source: Path, target: str) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    text, name = source.read_bytes(), source.name.encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None) == 0
    include = package("nvidia.cuda_runtime") / "include"
    options = [f"--gpu-architecture={target}", "-std=c++17", f"-I{include}"]
    pointers = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = library.nvrtcCompileProgram(program, len(options), pointers)
    kind = "ProgramLog" if failed else "PTX"
    assert getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(library, f"nvrtcGet{kind}")(program, buffer) == 0
    if failed:
        raise SystemExit(f"{source.name}, {target}: {buffer.value.decode()}")
    return buffer.value


def without_unused_tables(ptx: bytes) -> bytes:
    """cuda_fp16.h drags in fifty constants of <nv/target> that nothing refers to."""
    lines = ptx.splitlines(keepends=True)
    return b"".join(line for line in lines if b"2nv6target" not in line)


def main() -> None:
    library = ctypes.CDLL(str(package("nvidia.cuda_nvrtc") / "lib" / "libnvrtc.so.12"))
    for source in sorted(HERE.glob("*.cu")):
        targets = TARGETS.get(source.stem, ["compute_80"])
        for target in targets:
            suffix = f".{target}" if len(targets) > 1 else ""
            out = source.with_name(f"{source.stem}{suffix}.ptx")
            out.write_bytes(without_unused_tables(compile_ptx(library, source, target)))
            print(out.name, out.stat().st_size)


if __name__ == "__main__":
    main()
