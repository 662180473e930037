#!/usr/bin/env python3
"""Holds the logits of the example `decoder` against those of llama.cpp, on 32 prompts.

    cargo build --release -p forebay --example decoder
    pip install -r tests/decoder/requirements.txt    # builds llama.cpp: a C++ compiler, minutes
    tests/decoder/compare.py "$(tests/decoder/fetch FOLDER)" [target/release/examples/decoder]

llama.cpp multiplies block types with an input rounded to eight bits; we don't. So it runs the
model twice: with its weights converted to F32, by llama.cpp, into a temporary folder (four bytes a
weight), which is what the weights say; and as the file is. Distances are |a - b| / |b| over the
logits at a prompt's last token:

    distance   ours from llama.cpp's on F32 weights: another order of sums, and nothing else
    rounding   llama.cpp's on the file from llama.cpp's on F32 weights: what its rounding costs
    as it is   ours from llama.cpp's on the file: by the first two, about as far as `rounding`

The example runs twice: streamed, with room for a quarter of the weights on the device, and with all of them
resident. Both are to be the same to the bit.

A prompt passes if `distance` is at most MOST, the likeliest token is that of llama.cpp on F32
weights, and so are the next GENERATED tokens, each chosen as the likeliest. Exit status 1 if one
does not.

The likeliest token of llama.cpp on the file is to be the same too, but where `lead`, by which the
first logit exceeds the second, is within what rounding moved these two: there llama.cpp differs
from itself. Such prompts are marked `tie`, and counted.

MOST: the median of SmolLM2-135M (Q4_1 and Q8_0) was 1.5e-6, its largest 5.3e-6 (llama-cpp-python
0.3.36, AVX2, two threads); ten times that leaves room for other processors. It is narrow enough:
one bit changed in one of the model's weights moved 11 to 27 of the prompts past it, in a block's
scale 29 to 31, an epsilon of 1e-6 for 1e-5 30, while `as it is` showed none of these. Rounding our
input to eight bits, in blocks of 32, made a median of 0.035, as llama.cpp's does.
"""

import argparse
import ctypes
import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy

MOST = 5e-5
GENERATED = 8
F32 = 0  # of both llama.cpp's enums: of tensors, and of files

PROMPTS = [
    "The capital of France is",
    "The",
    "\n",
    "Once upon a time, in a small village by the sea, there lived",
    "2 + 2 =",
    "1, 2, 3, 4, 5, 6, 7,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "fn main() {\n    println!(\"Hello,",
    "SELECT name, age FROM people WHERE age >",
    "{\"name\": \"Ada\", \"born\": 1815, \"field\":",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou answer in one word.<|im_end|>\n<|im_start|>user\nThe colour of grass?"
    "<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at a temperature of",
    "The opposite of hot is",
    "Monday, Tuesday, Wednesday,",
    "To be, or not to be, that is the",
    "The mitochondrion is the powerhouse of the",
    "In 1969, Neil Armstrong became the first person to walk on the",
    "La capitale de l'Italie est",
    "Der Himmel ist",
    "El perro corre por el",
    "日本の首都は",
    "Zażółć gęślą jaźń",
    "🙂🙃🙂🙃🙂",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "    \t  \t    ",
    "- [x] read the file\n- [x] place the tensors\n- [ ]",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: How many legs does a spider have?\nA:",
    "E = mc^2 means that energy equals mass times the speed of",
    "The quick brown fox jumps over the lazy dog. " * 12 + "The quick brown fox jumps over the",
    "A forebay is a basin of water above a turbine. Water gathers there before it falls through the "
    "penstock, and its level evens out what the river brings and what the machine takes. In the "
    "same way, a loader gathers what the storage brings in memory of its own, and lets it fall to "
    "where it is needed at full rate. The most important thing about a forebay is that it never",
]


class Reference:
    """A model run by llama.cpp on the CPU, its cache in full precision as ours is."""

    def __init__(self, path):
        self.llama = llama_cpp.Llama(str(path), n_ctx=1024, n_gpu_layers=0, type_k=F32, type_v=F32,
                                     verbose=False)

    def tokens(self, text):
        return self.llama.tokenize(text.encode(), special=True)

    def logits(self, tokens):
        """At the last token; the tokens follow those of the calls since `reset`."""
        self.llama.eval(tokens)
        logits = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return numpy.ctypeslib.as_array(logits, (self.llama.n_vocab(),)).copy()

    def start(self, tokens):
        self.llama.reset()
        return self.logits(tokens)

    def generate(self, logits):
        generated = [int(logits.argmax())]
        while len(generated) < GENERATED:
            generated.append(int(self.logits(generated[-1:]).argmax()))
        return generated


def in_full_precision(model, path):
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize = F32, True
    if llama_cpp.llama_model_quantize(str(model).encode(), str(path).encode(), ctypes.byref(how)):
        sys.exit(f"llama.cpp can't convert {model}")
    return path


def of_the_example(decoder, model, prompts, folder, budget=()):
    """The logits of every prompt, and the tokens that follow it: streamed with room for a quarter of
    the weights if no other budget is given."""
    logits = folder / "logits"
    command = [decoder, model, "--generate", str(GENERATED), "--logits", logits, *budget]
    for tokens in prompts:
        command += ["--tokens", ",".join(map(str, tokens))]
    run = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    lines = run.stdout.splitlines()
    generated = [json.loads(line[:line.index("]") + 1]) for line in lines]
    return numpy.fromfile(logits, "<f4").reshape(len(prompts), -1), generated


def distance(found, expected):
    return float(numpy.linalg.norm(found - expected) / numpy.linalg.norm(expected))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("decoder", nargs="?", default="target/release/examples/decoder")
    parser.add_argument("--write", type=pathlib.Path, help="what llama.cpp says, for check.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        on_file = Reference(arguments.model)
        on_f32 = Reference(in_full_precision(arguments.model, folder / "f32.gguf"))
        prompts = [on_file.tokens(text) for text in PROMPTS]
        ours, generated = of_the_example(arguments.decoder, arguments.model, prompts, folder)
        resident = of_the_example(arguments.decoder, arguments.model, prompts, folder,
                                  ("--budget", str(arguments.model.stat().st_size * 2)))
        if ours.tobytes() != resident[0].tobytes() or generated != resident[1]:
            sys.exit("streamed and resident differ")
        print("streamed and resident: the same to the bit")
        sys.exit(not compare(prompts, ours, generated, on_file, on_f32, arguments.write))


def compare(prompts, ours, generated, on_file, on_f32, write):
    """Prints the table; whether all prompts pass."""
    print("tokens   next   lead  distance  rounding  as it is   alike  prompt")
    failed = ties = 0
    said = []
    most = numpy.zeros(3)
    for text, tokens, ours, generated in zip(PROMPTS, prompts, ours, generated, strict=True):
        file, exact = on_file.start(tokens), on_f32.start(tokens)
        distances = distance(ours, exact), distance(file, exact), distance(ours, file)
        most = numpy.maximum(most, distances)
        expected = on_f32.generate(exact)
        said.append({"tokens": tokens, "next": expected})
        alike = sum(a == b for a, b in zip(generated, expected, strict=True))
        first, of_file = int(exact.argmax()), int(file.argmax())
        lead = float(numpy.diff(numpy.sort(exact)[-2:])[0])
        moved = numpy.abs(file - exact)
        tie = of_file != first and lead <= float(moved[of_file] + moved[first])
        passed = (distances[0] <= MOST and int(ours.argmax()) == first and alike == GENERATED
                  and (of_file == first or tie))
        failed, ties = failed + (not passed), ties + tie
        print(f"{len(tokens):6}  {int(ours.argmax()):5}  {lead:5.2f}  {distances[0]:8.1e}"
              f"  {distances[1]:8.4f}  {distances[2]:8.4f}  {alike} of {GENERATED}  {text[-32:]!r}"
              f"{'  tie' if tie else ''}{'' if passed else '  FAILED'}")
    print(f"{'at most':>20}  {most[0]:8.1e}  {most[1]:8.4f}  {most[2]:8.4f}")
    print(f"{ties} of {len(prompts)} prompts are ties that llama.cpp's own rounding decides otherwise")
    print(f"{len(prompts) - failed} passed, {failed} failed")
    if write and not failed:
        lines = ",\n".join(json.dumps(prompt, separators=(",", ":")) for prompt in said)
        write.write_text(f"[\n{lines}\n]\n")
    return failed == 0


if __name__ == "__main__":
    main()
