#!/usr/bin/env python3
"""Runs the example `decoder` on 32 prompts, and compares what follows them with what llama.cpp said.

    cargo build -p forebay --example decoder
    tests/decoder/check.py "$(tests/decoder/fetch FOLDER)" [target/debug/examples/decoder]

Needs no llama.cpp: `expected.json` holds the tokens of the prompts and of what follows them, written by
`compare.py --write`, which holds the logits themselves against llama.cpp's. The model is streamed with room for
a quarter of its weights on the device, then with all of them resident; the logits are to be the same to the bit.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

EXPECTED = pathlib.Path(__file__).parent / "expected.json"


def run(decoder, model, prompts, logits, budget=()):
    command = [decoder, model, "--generate", str(len(prompts[0]["next"])), "--logits", logits, *budget]
    for prompt in prompts:
        command += ["--tokens", ",".join(map(str, prompt["tokens"]))]
    lines = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
    return [json.loads(line[:line.index("]") + 1]) for line in lines], logits.read_bytes()


def main():
    model, decoder = sys.argv[1], (sys.argv[2:] or ["target/debug/examples/decoder"])[0]
    prompts = json.loads(EXPECTED.read_text())
    with tempfile.TemporaryDirectory() as folder:
        logits = pathlib.Path(folder) / "logits"
        streamed = run(decoder, model, prompts, logits)
        resident = run(decoder, model, prompts, logits, ("--budget", str(1 << 40)))
    wrong = [prompt["tokens"] for prompt, found in zip(prompts, streamed[0], strict=True)
             if found != prompt["next"]]
    for tokens in wrong:
        print(f"what follows {tokens} is not what llama.cpp says", file=sys.stderr)
    if streamed != resident:
        sys.exit("streamed and resident differ")
    print(f"{len(prompts) - len(wrong)} of {len(prompts)} prompts as llama.cpp has them, streamed and resident")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
