"""Without torch, numpy or safetensors: what needs none of them works, the rest says what is missing."""

import subprocess
import sys

import pytest
from conftest import FIXTURES, is_installed

PATH = str(FIXTURES / "safetensors/official.safetensors")


def run(absent, code):
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in absent)
    script = f"import sys\n{blocked}path = {PATH!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_looked_at_without_any_of_them():
    code = """
import forebay
with forebay.open(path) as model:
    print(model.keys(), model.metadata(), model.info("b").shape, model.plan()["model"]["tensors"])
    try:
        model.get_tensor("a")
    except ImportError as error:
        print(error)
"""
    output = run(["numpy", "torch", "safetensors"], code)
    assert "(3, 5)" in output and "numpy, which is not installed" in output


@pytest.mark.skipif(not is_installed("numpy"), reason="numpy is not installed")
def test_numpy_serves_without_torch_and_safetensors():
    code = """
import forebay.numpy
print(sorted(forebay.numpy.load_file(path)) == sorted(forebay.open(path)))
print(issubclass(forebay.SafetensorError, Exception))
try:
    forebay.numpy.save_file({}, "nowhere")
except ImportError as error:
    print(error)
import forebay.torch
try:
    forebay.torch.load_file(path)
except ImportError as error:
    print(error)
"""
    output = run(["torch", "safetensors"], code)
    assert output.startswith("True\nTrue\n")
    assert "save_file is safetensors' own" in output and "torch, which is not installed" in output


@pytest.mark.skipif(not is_installed("torch"), reason="torch is not installed")
def test_torch_serves_without_numpy_and_safetensors():
    code = """
import warnings
warnings.simplefilter("ignore")
import forebay.torch
loaded = forebay.torch.load_file(path)
with forebay.safe_open(path, "pt") as file:
    print(all(bool((file.get_tensor(name) == loaded[name]).all()) for name in loaded))
"""
    assert run(["numpy", "safetensors"], code) == "True\n"


def test_nothing_is_imported_before_it_is_needed():
    code = "import forebay\nprint([it for it in ('numpy', 'torch') if it in sys.modules])"
    assert run([], code) == "[]\n"
