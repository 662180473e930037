"""The package and what its users write are typed, as mypy sees it."""

import subprocess
import sys

import pytest
from conftest import is_installed

pytestmark = pytest.mark.skipif(not is_installed("mypy"), reason="mypy is not installed")

USES = """
from pathlib import Path
from typing import Optional

import forebay
import forebay.numpy
import forebay.torch

with forebay.open(Path("m.gguf"), load_mode="dio") as model:
    names: list[str] = model.keys()
    report: "Optional[dict[str, object]]" = model.report
    shape: tuple[int, ...] = model.info(names[0]).shape
    reveal_type(model.get_slice("w").get_dtype())
for name, tensor in forebay.stream("m.gguf", progress=lambda done, total: None):
    reveal_type(name)
tensors: dict[str, object] = forebay.torch.load_file("m.safetensors", device=0)
forebay.numpy.load_file(5)
"""


def mypy(*arguments):
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_package_is_typed():
    done = mypy("-p", "forebay")
    assert done.returncode == 0, done.stdout


def test_users_see_the_types(tmp_path):
    path = tmp_path / "uses.py"
    path.write_text(USES)
    done = mypy(str(path))
    notes = [line for line in done.stdout.splitlines() if "note: Revealed" in line]
    assert [line.split('"')[1] for line in notes] == ["builtins.str", "builtins.str"] or [
        line.split('"')[1] for line in notes
    ] == ["str", "str"]
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1 and "load_file" in errors[0] and "int" in errors[0], done.stdout
