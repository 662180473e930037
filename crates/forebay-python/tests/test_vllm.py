"""vLLM's load format: on a stand-in for vLLM's interface, against vLLM's source, and in vLLM.

The stand-in has what the loader uses of vLLM, with its signatures; whether vLLM still has it so is
looked up in the source, of an installed vLLM or of the folder that FOREBAY_VLLM_SOURCE names: an
unpacked wheel, or the sdist (47 MB), which comes without its dependencies by

    VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=0.33.0 pip download vllm==0.33.0 \\
        --no-deps --no-binary vllm --no-build-isolation

(with setuptools-scm and setuptools-rust installed). The engine itself runs where a vLLM for the
CPU is installed.
"""

import ast
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from conftest import is_installed

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

import forebay  # noqa: E402
import forebay.vllm  # noqa: E402

PACKAGE = Path(__file__).resolve().parents[1]
LOADERS = "vllm.model_executor.model_loader"
SHARDS = {
    "model-1.safetensors": {"linear.weight": torch.arange(6.0).reshape(2, 3)},
    "model-2.safetensors": {"linear.bias": torch.tensor([1.0, 2.0])},
}


class BaseModelLoader:
    def __init__(self, load_config):
        self.load_config = load_config


class Weights(torch.nn.Module):
    """A model as vLLM has them: it takes weights out of an iterator, and says which."""

    def __init__(self, **given):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.__dict__.update(given)

    def load_weights(self, weights):
        loaded = set()
        for name, tensor in weights:
            self.get_parameter(name).data.copy_(tensor)
            loaded.add(name)
        return loaded


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in, with what was registered and what was downloaded."""
    loaders = types.ModuleType(LOADERS)
    loaders.registered, loaders.downloaded = {}, []

    def register_model_loader(load_format):
        def keep(loader_class):
            assert issubclass(loader_class, BaseModelLoader)
            assert load_format not in loaders.registered
            loaders.registered[load_format] = loader_class
            return loader_class

        return keep

    def download_weights_from_hf(
        model_name_or_path, cache_dir, allow_patterns, revision=None, subfolder=None,
        ignore_patterns=None,
    ):  # fmt: skip
        asked = model_name_or_path, cache_dir, allow_patterns, revision, subfolder, ignore_patterns
        loaders.downloaded.append(asked)
        return loaders.cache

    loaders.register_model_loader = register_model_loader
    loaders._LOAD_FORMAT_TO_MODEL_LOADER = loaders.registered
    base = types.ModuleType(f"{LOADERS}.base_loader")
    base.BaseModelLoader = BaseModelLoader
    utils = types.ModuleType(f"{LOADERS}.weight_utils")
    utils.download_weights_from_hf = download_weights_from_hf
    for module in (loaders, base, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("vllm", "vllm.model_executor"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return loaders


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, tensors in SHARDS.items():
        safetensors.save_file(tensors, folder / name)
    return folder


def loader(vllm, **options):
    forebay.vllm.register()
    forebay.vllm.register()
    config = types.SimpleNamespace(
        model_loader_extra_config=options, download_dir="cache", ignore_patterns=["original/**/*"]
    )
    return vllm.registered["forebay"](config)


def config(model, **more):
    return types.SimpleNamespace(model=str(model), revision=None, quantization=None, **more)


def assert_loaded(model):
    for tensors in SHARDS.values():
        for name, tensor in tensors.items():
            assert torch.equal(model.get_parameter(name), tensor)


@pytest.mark.parametrize("options", [{}, {"load_mode": "dio", "engine": "threads"}])
def test_a_model_gets_its_weights(vllm, folder, options):
    model = Weights()
    loader(vllm, **options).load_weights(model, config(folder))
    assert_loaded(model)
    assert not vllm.downloaded


def test_options_that_forebay_has_not_are_an_error(vllm, folder):
    with pytest.raises((TypeError, ValueError), match="num_threads"):
        loader(vllm, num_threads=4).load_weights(Weights(), config(folder))


def test_files_that_the_index_does_not_name_are_left_alone(vllm, folder):
    safetensors.save_file({"linear.weight": torch.ones(2, 3)}, folder / "consolidated.safetensors")
    files = {name: file for file, tensors in SHARDS.items() for name in tensors}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    model = Weights()
    loader(vllm).load_weights(model, config(folder))
    assert_loaded(model)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-2.safetensors"):
        loader(vllm).load_weights(model, config(folder))


def test_a_model_may_name_its_files_and_others(vllm, folder):
    more = folder / "more"
    more.mkdir()
    safetensors.save_file(
        {"bias": SHARDS["model-2.safetensors"]["linear.bias"]}, more / "m.safetensors"
    )
    source = types.SimpleNamespace(
        model_or_path=str(folder), revision=None, subfolder="more", prefix="linear.",
        allow_patterns_overrides=None,
    )  # fmt: skip
    model = Weights(allow_patterns_overrides=["*-1.safetensors"], secondary_weights=[source])
    loader(vllm).load_weights(model, config(folder))
    assert_loaded(model)


def test_models_of_the_hub_are_downloaded(vllm, folder):
    vllm.cache = str(folder)
    model, wanted = Weights(), config("someone/something")
    wanted.revision = "main"
    loader(vllm).download_model(wanted)
    loader(vllm).load_weights(model, wanted)
    assert_loaded(model)
    asked = ("someone/something", "cache", ["*.safetensors"], "main", None, ["original/**/*"])
    assert vllm.downloaded == [asked, asked]


def test_weights_that_the_files_do_not_have_are_an_error(vllm, folder):
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"linear\.bias"):
        loader(vllm).load_weights(Weights(), config(folder))
    # Quantised models make some of theirs.
    wanted = config(folder)
    wanted.quantization = "fp8"
    loader(vllm).load_weights(Weights(), wanted)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused(vllm, tmp_path, name):
    torch.save({}, tmp_path / name)
    with pytest.raises(forebay.FormatError, match="is a pickle"):
        loader(vllm).load_weights(Weights(), config(tmp_path))
    model = Weights(allow_patterns_overrides=["*.bin", "*.pt"])
    with pytest.raises(forebay.FormatError, match="is a pickle"):
        loader(vllm).load_weights(model, config(tmp_path))


def test_what_cannot_be_loaded_is_an_error(vllm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        loader(vllm).load_weights(Weights(), config(tmp_path))
    wanted = config(tmp_path)
    wanted.quantization = "torchao"
    with pytest.raises(forebay.Error, match="torchao"):
        loader(vllm).load_weights(Weights(), wanted)


def test_the_package_names_the_plugin():
    text = (PACKAGE / "pyproject.toml").read_text()
    assert (
        '[project.entry-points."vllm.general_plugins"]\nforebay = "forebay.vllm:register"' in text
    )
    if "site-packages" not in str(Path(forebay.__file__).parent):
        pytest.skip("forebay is not installed: it runs from its folder")
    plugins = importlib.metadata.entry_points(group="vllm.general_plugins")
    (entry,) = [plugin for plugin in plugins if plugin.name == "forebay"]
    assert entry.load() is forebay.vllm.register


def vllm_source():
    named = os.environ.get("FOREBAY_VLLM_SOURCE")
    if named:
        return next(iter(sorted(Path(named).glob("**/vllm/plugins/__init__.py")))).parents[1]
    found = importlib.util.find_spec("vllm")
    if found is None:
        pytest.skip("vLLM's source is not here: set FOREBAY_VLLM_SOURCE to an unpacked wheel")
    return Path(found.origin).parent


def parsed(path):
    return ast.parse((vllm_source() / path).read_text())


def named(tree, kind, name):
    return next(it for it in ast.walk(tree) if isinstance(it, kind) and it.name == name)


def parameters(function):
    given = function.args
    return [it.arg for it in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def fields(tree, name):
    body = named(tree, ast.ClassDef, name).body
    return {it.target.id for it in body if isinstance(it, ast.AnnAssign)}


def test_vllm_has_the_loader_interface():
    tree = parsed("model_executor/model_loader/base_loader.py")
    base = named(tree, ast.ClassDef, "BaseModelLoader")
    methods = {it.name: it for it in base.body if isinstance(it, ast.FunctionDef)}
    assert parameters(methods["__init__"]) == ["self", "load_config"]
    assert parameters(methods["download_model"]) == ["self", "model_config"]
    assert parameters(methods["load_weights"]) == ["self", "model", "model_config"]
    abstract = {
        name
        for name, method in methods.items()
        if any(
            isinstance(it, ast.Name) and it.id == "abstractmethod" for it in method.decorator_list
        )
    }
    # More than these, and the loader could not be made.
    assert abstract == {"download_model", "load_weights"}


def test_vllm_has_the_functions():
    tree = parsed("model_executor/model_loader/__init__.py")
    assert parameters(named(tree, ast.FunctionDef, "register_model_loader")) == ["load_format"]
    tree = parsed("model_executor/model_loader/weight_utils.py")
    assert parameters(named(tree, ast.FunctionDef, "download_weights_from_hf")) == [
        "model_name_or_path",
        "cache_dir",
        "allow_patterns",
        "revision",
        "subfolder",
        "ignore_patterns",
    ]
    tree = parsed("plugins/__init__.py")
    values = [it.value for it in ast.walk(tree) if isinstance(it, ast.Constant)]
    assert "vllm.general_plugins" in values


def test_vllm_has_the_settings():
    used = {"model_loader_extra_config", "download_dir", "ignore_patterns"}
    assert used <= fields(parsed("config/load.py"), "LoadConfig")
    used = {"model", "revision", "quantization", "model_weights"}
    assert used <= fields(parsed("config/model.py"), "ModelConfig")
    used = {"model_or_path", "revision", "subfolder", "prefix", "allow_patterns_overrides"}
    tree = parsed("model_executor/model_loader/default_loader.py")
    assert used <= fields(named(tree, ast.ClassDef, "DefaultModelLoader"), "Source")


ENGINE = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    how = json.loads(sys.argv[1])
    llm = LLM(sys.argv[2], skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
              max_model_len=64, **how)
    sampling = SamplingParams(max_tokens=8, temperature=0, detokenize=False, ignore_eos=True)
    out = llm.generate([{"prompt_token_ids": [5, 6, 7, 8]}], sampling)
    from vllm.model_executor.model_loader import get_model_loader
    loader = get_model_loader(llm.llm_engine.vllm_config.load_config)
    print("\\nRESULT", json.dumps([type(loader).__name__, list(out[0].outputs[0].token_ids)]))
"""


def generated(model, site, how):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)]),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    script = site / "engine.py"
    script.write_text(ENGINE)
    command = [sys.executable, str(script), json.dumps(how), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=site)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = (it for it in done.stdout.splitlines() if it.startswith("RESULT "))
    return json.loads(line[len("RESULT ") :])


@pytest.mark.skipif(
    not is_installed("vllm") or torch.cuda.is_available(), reason="no vLLM for the CPU is installed"
)
def test_vllm_generates_the_same(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    config = transformers.LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "m", max_shard_size="300KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    site = tmp_path / "site"
    site.mkdir()
    if "site-packages" not in str(Path(forebay.__file__).parent):
        # What installing forebay would leave.
        about = site / "forebay-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: forebay\nVersion: 0\n")
        text = "[vllm.general_plugins]\nforebay = forebay.vllm:register\n"
        (about / "entry_points.txt").write_text(text)
    options = {"load_format": "forebay", "model_loader_extra_config": {"load_mode": "dio"}}
    ours = generated(tmp_path / "m", site, options)
    theirs = generated(tmp_path / "m", site, {"load_format": "safetensors"})
    assert (ours[0], theirs[0]) == ("ForebayModelLoader", "DefaultModelLoader")
    assert ours[1] == theirs[1] and len(ours[1]) == 8
