"""Loads that several processes share: `distributed/worker.py` under torchrun, over gloo."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES, is_installed

WORKER = Path(__file__).parent / "distributed" / "worker.py"
SECONDS_MAX = 600

pytestmark = pytest.mark.skipif(not is_installed("torch"), reason="torch is not installed")
CASES = [
    line.split("(")[0].removeprefix("def ")
    for module in ("loads.py", "failures.py")
    for line in WORKER.with_name(module).read_text().splitlines()
    if line.startswith("def case_")
]


def environment(folder):
    """With reads written down and made to fail, where there is a compiler."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    # What is freed goes back at once, so that peaks are seen.
    given |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    compiler, library = shutil.which("cc"), folder / "pread.so"
    if compiler:
        source = WORKER.parent / "pread.c"
        command = [compiler, "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl"]
        subprocess.run(command, check=True)
        given |= {"LD_PRELOAD": str(library), "READ_LOG": str(folder / "reads"), "EIO_RANK": "1"}
    return given


@pytest.fixture(scope="module", params=[2, 3])
def outcomes(request, tmp_path_factory):
    """What came of every case, by rank."""
    if not is_installed("safetensors"):
        pytest.skip("safetensors is not installed")
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(request.param), str(WORKER), str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=environment(folder),
        timeout=SECONDS_MAX,
    )
    written = [folder / f"outcomes.{rank}.json" for rank in range(request.param)]
    assert all(it.exists() for it in written), done.stdout + done.stderr
    yield [json.loads(it.read_text()) for it in written], done
    shutil.rmtree(folder)


@pytest.mark.parametrize("case", CASES)
def test_ranks(outcomes, case):
    by_rank, done = outcomes
    for rank, cases in enumerate(by_rank):
        assert case in cases, f"rank {rank} ended before it\n{done.stderr}"
        if (cases[case] or "").startswith("SKIPPED"):
            pytest.skip(cases[case])
        assert cases[case] is None, f"rank {rank}: {cases[case]}"


ENDS = """
import os, sys
import torch.distributed as dist
from datetime import timedelta
from forebay import Error
from forebay.distributed import stream
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
try:
    with stream(sys.argv[1], budget_bytes=1 << 20) as loading:
        for number, _ in enumerate(loading):
            if dist.get_rank() == 1 and number == 2:
                os._exit(7)
except Error as error:
    print("raised:", error)
    os._exit(3)
"""


def test_a_process_that_ends_leaves_nobody_waiting(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "model.safetensors"
    save_file({f"tensor.{number}": torch.ones(250_000) for number in range(40)}, path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ENDS, str(path)],
            env={**given, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=SECONDS_MAX)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [3, 7], told
    assert "raised: the exchange between ranks failed" in told[0]


def test_without_a_process_group():
    from forebay.distributed import load_file

    with pytest.raises(RuntimeError, match="init_process_group"):
        load_file(FIXTURES / "safetensors/official.safetensors")


PAGE = WORKER.parents[2] / "DISTRIBUTED.md"


def test_the_page_runs(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    names = ["embed_tokens", "layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj", "norm"]
    weights = {f"model.{name}.weight": torch.ones(6, 4) for name in names}
    save_file(weights, tmp_path / "model.safetensors")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    # In one piece, as the ranks share the pipe.
    shown = """
import os
shapes = {name: list(tensor.shape) for name, tensor in parameters.items()}
os.write(1, f"{shapes} {len(weights)}\\n".encode())
"""
    (tmp_path / "load.py").write_text("\n".join([*blocks, shown]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "load.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=SECONDS_MAX
    )
    assert done.returncode == 0, done.stderr
    shapes = [[3, 4], [3, 4], [6, 2], [6, 4]]
    expected = {f"model.{name}.weight": shape for name, shape in zip(names, shapes)}
    ordered = dict(sorted(expected.items()))
    assert done.stdout.count(f"{ordered} 4") == 2, done.stdout


def test_reads_for_a_device_go_by_memory_of_a_bounded_size(tmp_path):
    torch = pytest.importorskip("torch")
    from forebay._model import Model
    from forebay._ranks import Reader

    class Elsewhere:
        """As much of a tensor on a device as is looked at."""

        device = torch.device("meta")

        def __init__(self, memory):
            self.memory = memory

        def __getitem__(self, index):
            return Elsewhere(self.memory[index])

        def copy_(self, source):
            assert source.numel() <= 1000
            self.memory.copy_(source)

    path = FIXTURES / "gguf/aligned-4096.gguf"
    with Model(path, "torch") as model:
        info = max(model.infos(), key=lambda it: it.nbytes)
        assert info.nbytes > 4000
        scratch = type("Scratch", (), {"memory": torch.zeros(1000, dtype=torch.uint8)})
        group = type("Group", (), {"rank": 0})
        reader = Reader(model, group, [], scratch, "cpu")
        memory = torch.zeros(info.nbytes - 7, dtype=torch.uint8)
        bounds = [(7, 1, info.nbytes - 7)]
        reader._read_to(Elsewhere(memory), info.name, [info.nbytes], bounds)
    assert reader.read_bytes == info.nbytes - 7
    data = path.read_bytes()[info.offset + 7 : info.offset + info.nbytes]
    assert bytes(memory.tolist()) == data


def test_another_backend_than_memory_wants():
    from forebay._exchange import Group, _backends

    def listed(config):
        given = type("Distributed", (), {"get_backend_config": lambda group: config})
        return _backends(given, None)

    assert listed("cpu:nccl,cuda:nccl") == listed("cuda:nccl") == {"cuda": "nccl"}
    assert listed("cpu:gloo,cuda:nccl") == {"cpu": "gloo", "cuda": "nccl"}

    group = Group.__new__(Group)
    group.world = 2
    both, gloo = {"cpu": "gloo", "cuda": "nccl"}, {"cpu": "gloo", "cuda": "gloo"}
    for backends, device, exchanged in (
        (gloo, "cpu", "cpu"),
        (gloo, "cuda:1", "cpu"),
        (both, "cuda:1", "cuda:1"),
        (both, "cpu", "cpu"),
        ({"cuda": "nccl"}, "cuda:1", "cuda:1"),
    ):
        group._backends = backends
        assert group.exchanged(device) == exchanged
    with pytest.raises(ValueError, match="nccl.*has gloo"):
        group.exchanged("cpu")
