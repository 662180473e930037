"""What the page on engines shows runs."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "ENGINES.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run(block, capsys):
    exec(compile(block, str(PAGE), "exec"), {})  # noqa: S102
    return capsys.readouterr().out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_run():
    assert ["transformers" in block for block in BLOCKS] == [True, True, False]


@pytest.mark.parametrize("block", BLOCKS[:2], ids=range(2))
def test_transformers(block, folder, capsys):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    config = transformers.BertConfig(num_attention_heads=2, vocab_size=50, **sizes)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    out = run(block, capsys)
    assert "GiB/s" in out or "patch" not in block


def test_torch(folder, capsys):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"weight": torch.ones(8, 6)}, folder / "model.safetensors")
    assert "All keys matched" in run(BLOCKS[2], capsys)
