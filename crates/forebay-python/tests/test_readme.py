"""What the README shows runs."""

import re
from pathlib import Path

import pytest
from conftest import is_installed

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with the models that the README names."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    monkeypatch.chdir(tmp_path)
    weights = {"embedding": numpy.ones((8, 6), "float32"), "a": numpy.ones(3, "float16")}
    safetensors.save_file(weights, "model.safetensors")
    writer = gguf.GGUFWriter("model.gguf", "llama")
    blocks = numpy.zeros((4, 34), "uint8")
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_there_is_something_to_run():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readme_runs(block, models, capsys):
    if "torch" in block and not is_installed("torch"):
        pytest.skip("torch is not installed")
    scope: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), scope)  # noqa: S102
    if "rows" in scope:
        assert scope["rows"].shape == (4, 3) and set(scope["weights"]) == {"embedding", "a"}
    if "values" in scope:
        assert scope["values"].shape == (4, 32) and scope["raw"].shape == (4, 34)
        assert "llama" in capsys.readouterr().out
    if "stream" in scope:
        assert "GiB/s" in capsys.readouterr().out
