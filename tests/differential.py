#!/usr/bin/env python3
"""Damages the fixtures in thousands of ways, and compares `forebay` with the official readers.

    tests/differential.py [--forebay target/release/forebay] [--files 3000] [--seed 1] [--keep FOLDER]

Needs the PyPI packages of tests/requirements.txt. What the official `gguf` or `safetensors` package
refuses is to be refused here too, or accepted for a reason of LAXER. What it accepts is to have the same
names, dtypes, shapes and bytes here, or is refused for a reason of STRICTER. Whatever is refused is
refused with status 1, in words on one line; no file may cost more than a second of processor time or
64 MiB of memory. Of `.ptd` files and indexes, which have no official reader here, only that is asked.

Prints what came of how many. Fails on any difference without a reason, with its file in FOLDER.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import signal
import struct
import sys
import tempfile
import unicodedata
import warnings

CPU_SECONDS_MAX = 1.0
RSS_BYTES_MAX = 64 << 20
LINE_CHARS_MAX = 2000
# For the official reader, which counts to 2 to the 64th if a file tells it to.
OFFICIAL_SECONDS_MAX = 0.5
FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"

# Refused here and accepted there, on purpose: words of our error, and why.
STRICTER = {
    "gguf": [
        ("overlaps that of", "tensors that lie on one another"),
        ("more than the 4 of GGUF", "more dimensions than GGUF has"),
        (" is empty", "keys and names that are empty"),
        ("that are allowed", "lengths that nobody should set memory aside for"),
        ("the header goes on to byte", "headers that are cut: there, texts are just shorter"),
        ("the file has only", "counts and lengths of more than the file has"),
        ("is not one of GGUF's", "arrays of a type that does not exist, and of no elements"),
        ("deep in one another", "arrays in arrays, deeper than anybody writes"),
        ("overflow", "sizes and offsets that overflow: there, they wrap around"),
        ("big-endian", "big-endian files"),
        ("split.", "parts of a model that contradict themselves: there, parts are files as any"),
        ("parts and", "a part without the others: there, parts are files as any"),
        ("not a multiple of", "rows that end within a block, of tensors of no bytes"),
    ],
    "safetensors": [
        ("is there twice", "keys that are there twice: there, the last one counts"),
        ("does not begin with '{'", "white space before the header, which the format forbids"),
    ],
}

# Accepted here and refused there, on purpose: words of its error, and why.
LAXER = {
    "gguf": [
        ("Duplicate GGUF.", "keys with the names that it keeps the header's counts under"),
        ("Maximum allowed dimension", "shapes of no elements that numpy has no numbers for"),
    ],
    "safetensors": [
        ("number out of range", "fields that nobody asks for, with a number that it can't hold"),
        ("recursion limit exceeded", "fields that nobody asks for, deeper than it looks"),
        ("end of hex escape", "fields that nobody asks for, with half a surrogate"),
    ],
}


class Forebay:
    """Runs the command from a small process: Linux lays the memory of whoever starts a program to
    that program, and the official readers need more than is allowed here."""

    def __init__(self, command):
        orders_end, orders = os.pipe()
        answers, answers_end = os.pipe()
        if os.fork() == 0:
            os.close(orders)
            os.close(answers)
            with os.fdopen(orders_end) as lines, os.fdopen(answers_end, "w") as out:
                for line in lines:
                    print(json.dumps(self.perform([command, *json.loads(line)])), file=out, flush=True)
            os._exit(0)
        os.close(orders_end)
        os.close(answers_end)
        self.orders, self.answers = os.fdopen(orders, "w"), os.fdopen(answers)

    @staticmethod
    def perform(command):
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, errors.fileno(), 2)]
            process = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(process, signal.SIGKILL))
            signal.alarm(60)
            _, status, used = os.wait4(process, 0)
            signal.alarm(0)
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
            cpu_seconds = used.ru_utime + used.ru_stime
            return [os.waitstatus_to_exitcode(status), *texts, cpu_seconds, used.ru_maxrss * 1024]

    def run(self, *arguments):
        """What it printed, or None, and its error's line; raises if it behaves badly."""
        print(json.dumps(arguments), file=self.orders, flush=True)
        status, output, errors, cpu_seconds, rss_bytes = json.loads(self.answers.readline())
        lines = errors.removesuffix("\n").split("\n") if status else [""]
        follow = ("  because: ", "  remedy: ")
        if status not in (0, 1):
            raise Difference(f"ends with {status}: {errors}")
        if status and not (lines and lines[0].startswith("error: ")):
            raise Difference(f"no error but: {errors!r}")
        if not all(line.startswith(follow) for line in lines[1:]):
            raise Difference(f"an error of several lines: {errors!r}")
        controls = any(unicodedata.category(letter) == "Cc" for line in lines for letter in line)
        if controls or max(map(len, lines)) > LINE_CHARS_MAX:
            raise Difference(f"not to be read: {errors[:4000]!r}")
        if cpu_seconds > CPU_SECONDS_MAX or rss_bytes > RSS_BYTES_MAX:
            raise Difference(f"took {cpu_seconds:.2f} s and {rss_bytes >> 20} MiB")
        return (None if status else json.loads(output)), lines[0]


class Difference(Exception):
    """What is not as it should be."""


class NoAnswer(Exception):
    """The official reader took too long."""


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def official_gguf(path):
    import gguf
    import numpy
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        data = sha256(numpy.ascontiguousarray(tensor.data).tobytes())
        tensors[tensor.name] = (tensor.tensor_type.name, shape, data)
    return tensors


def official_safetensors(path):
    import safetensors
    return {name: (tensor["dtype"], list(tensor["shape"]), sha256(bytes(tensor["data"])))
            for name, tensor in safetensors.deserialize(path.read_bytes())}


OFFICIAL = {"gguf": official_gguf, "safetensors": official_safetensors}


def official(kind, path):
    """What the official reader makes of it, or None, and its error."""
    def too_long(*_):
        raise NoAnswer
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, OFFICIAL_SECONDS_MAX)
    try:
        return OFFICIAL[kind](path), ""
    except NoAnswer:
        raise
    # Whatever it raises is its refusal: errors of numpy and of Python among them.
    except (Exception, MemoryError) as error:
        return None, f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def flip(rng, data, header):
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(min(header, len(data)))
        data[at] = rng.choice([0, 255, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)])


def cut(rng, data, header):
    del data[rng.choice([rng.randrange(len(data)), rng.randrange(min(header, len(data)))]):]


def grow(rng, data, header):
    data.extend(bytes(rng.randrange(1, 100)))


def number(rng, data, header):
    """Puts a number that means trouble in the place of four or eight bytes."""
    form, bits = rng.choice([("<I", 32), ("<Q", 64)])
    at = rng.randrange(max(1, min(header, len(data)) - bits // 8))
    old = int.from_bytes(data[at:at + bits // 8], "little")
    new = rng.choice([old + 1, old - 1, 2 * old, 0, 1, 5, 1 << 16, 1 << 30, 1 << 31, 1 << bits - 1, -1])
    data[at:at + bits // 8] = struct.pack(form, new % (1 << bits))


def move(rng, data, header):
    """Takes a piece out, or puts it in once more."""
    start = rng.randrange(min(header, len(data)))
    piece = data[start:start + rng.randrange(1, 64)]
    if rng.random() < 0.5:
        del data[start:start + len(piece)]
    else:
        at = rng.randrange(min(header, len(data)))
        data[at:at] = piece


BYTES = {"flipped": flip, "cut": cut, "longer": grow, "number": number, "moved": move}


class Gguf:
    """A good file, and where in it its tensors are described."""

    def __init__(self, path):
        import gguf
        reader = gguf.GGUFReader(path)
        self.good, self.header, self.infos = path.read_bytes(), int(reader.data_offset), []
        for tensor in reader.tensors:
            length, name, count, dims, dtype, offset = tensor.field.parts
            name_at = tensor.field.offset + length.nbytes
            count_at = name_at + name.nbytes
            dims_at = count_at + count.nbytes
            dtype_at = dims_at + dims.nbytes
            self.infos.append((name_at, name.nbytes, count_at, dims_at, len(dims), dtype_at))

    def edit(self, rng, data):
        if len(self.infos) < 2:
            return "flipped", flip(rng, data, self.header)
        one, two = rng.sample(self.infos, 2)
        name_at, name_bytes, count_at, dims_at, dims, dtype_at = one
        what = rng.choice(["name twice", "overlap", "huge shape", "wrong dtype", "rank", "offset"])
        if what == "name twice":
            new = bytes(self.good[two[0]:two[0] + two[1]])
            data[name_at - 8:name_at + name_bytes] = struct.pack("<Q", len(new)) + new
        elif what == "overlap":
            data[dtype_at + 4:dtype_at + 12] = data[two[5] + 4:two[5] + 12]
        elif what == "huge shape" and dims:
            size = rng.choice([1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1, 0])
            at = dims_at + 8 * rng.randrange(dims)
            data[at:at + 8] = struct.pack("<Q", size)
        elif what == "wrong dtype":
            data[dtype_at:dtype_at + 4] = struct.pack("<I", rng.choice([*range(48), 1 << 31]))
        elif what == "rank":
            data[count_at:count_at + 4] = struct.pack("<I", rng.choice([0, 1, 2, 3, 4, 5, 1 << 31]))
        else:
            new = rng.choice([0, 1, 31, 1 << 40, (1 << 64) - 1, (1 << 64) - 32, rng.randrange(1 << 14)])
            data[dtype_at + 4:dtype_at + 12] = struct.pack("<Q", new)
        return what, None


class Safetensors:
    """A good file, and its header."""

    def __init__(self, path):
        self.good = path.read_bytes()
        self.header = 8 + int.from_bytes(self.good[:8], "little")
        self.json = json.loads(self.good[8:self.header])

    def edit(self, rng, data):
        header, body = json.loads(json.dumps(self.json)), data[self.header:]
        names = [name for name in header if name != "__metadata__"]
        entry = header[rng.choice(names)] if names else {}
        what = rng.choice(["dtype", "shape", "offsets", "key twice", "fields", "metadata", "space", "text"])
        text = None
        if what == "dtype":
            entry["dtype"] = rng.choice(["F32", "F4", "I8", "Q4_0", "f32", "", 5, None, "\ud800", "X" * 9000])
        elif what == "shape":
            entry["shape"] = rng.choice([[], [0], [1 << 63, 2], [1 << 32] * 2 + [0], [-1], [1.5], ["2"], None,
                                         "x" * 9000, [1] * 3000, [1 << 64], {}])
        elif what == "offsets" and names:
            begin, end = entry["data_offsets"]
            other = header[rng.choice(names)]["data_offsets"]
            entry["data_offsets"] = rng.choice([other, [end, begin], [begin, end + 1], [begin + 1, end + 1], [begin],
                                                [begin, 1 << 63], [(1 << 64) - 1] * 2, [0, end], [-1, end], None])
        elif what == "key twice":
            new = rng.choice([*names, "__metadata__", "new"])
            twice = json.dumps({new: header.get(new, {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})})
            text = twice[:-1] + ", " + json.dumps(header)[1:]
        elif what == "fields":
            new = rng.choice(["1", "1e999", "-0", "[[[]]]", '"\\ud800"', "[" * 200 + "]" * 200, "tru", "{}"])
            text = json.dumps(header).replace('"dtype"', f'"more": {new}, "dtype"', 1)
        elif what == "metadata":
            header["__metadata__"] = rng.choice([None, {}, {"a": "b"}, {"a": 1}, {"a": None}, [], "text", {"a": {}}])
        elif what == "space":
            text = rng.choice([" {}", "\n{}", "{}   ", "{}\0", "{}x", "\ufeff{}"]).replace("{}", json.dumps(header))
        else:
            renamed = {rng.choice([name, name + "\x1b[31m\n", "", "\u0085" * 300, name]): value
                       for name, value in header.items()}
            text = json.dumps(renamed, ensure_ascii=rng.random() < 0.5)
        text = (json.dumps(header) if text is None else text).encode()
        length = len(text) + rng.choice([0] * 9 + [1, -1, len(body)])
        data[:] = struct.pack("<Q", max(0, length)) + text + body
        return what, None


class Index:
    """The index of good shards."""

    def __init__(self, path):
        self.good = path.read_bytes()
        self.header, self.json = len(self.good), json.loads(self.good)

    def edit(self, rng, data):
        index = json.loads(json.dumps(self.json))
        names = index["weight_map"]
        one, two = rng.sample(list(names), 2)
        what = rng.choice(["key twice", "no shard", "other shard", "no tensor", "fields", "text"])
        text = None
        if what == "key twice":
            text = json.dumps(index).replace(f'"{one}":', f'"{two}": "{names[two]}", "{one}":', 1)
        elif what == "no shard":
            names[one] = rng.choice(["../model.safetensors", "/dev/zero", "", ".", "a\0b", "gone", "gone\n\x1b[31m",
                                     "\u0085\u202e", "gone" * 2000, "a/" * 3000 + "b", None, 1, []])
        elif what == "other shard":
            names[one] = names[two]
        elif what == "no tensor":
            names[rng.choice(["", "new", "new\n\x1b[31m", "new" * 9000, "__metadata__"])] = names.pop(one)
        elif what == "fields":
            index[rng.choice(["metadata", "more", "weight_map"])] = rng.choice([None, 1, "text" * 3000, [], {}])
        else:
            text = rng.choice(["", " {}", "{}x", "{}\0", "\ufeff{}", "[{}]"]).replace("{}", json.dumps(index))
        data[:] = (json.dumps(index) if text is None else text).encode()
        return what, None


class Plain:
    """A file that nothing is known of."""

    def __init__(self, path):
        self.good, self.header = path.read_bytes(), 2048

    def edit(self, rng, data):
        return "flipped", flip(rng, data, self.header)


SOURCES = [
    ("gguf", Gguf, "gguf", ["every-type", "odd-shapes", "values", "aligned-4096", "version-2"]),
    ("gguf", Gguf, "gguf", ["split-00002-of-00003"]),
    ("safetensors", Safetensors, "safetensors", ["every-dtype", "odd-offsets", "official", "no-tensors"]),
    ("ptd", Plain, "ptd", ["every-type", "odd-layouts", "nested", "tiny_ext"]),
    ("json", Index, "safetensors", ["model.safetensors.index"]),
]


def damage(rng, source):
    """A kind of damage, and a damaged copy."""
    data = bytearray(source.good)
    if rng.random() < 0.5:
        what, _ = source.edit(rng, data)
    else:
        what = rng.choice(list(BYTES))
        BYTES[what](rng, data, source.header)
    return what, data


def compare(forebay, kind, path):
    """Which of both accept it, and for what reason only one does."""
    inspected, error = forebay.run("inspect", str(path), "--json")
    if inspected is not None:
        loaded, load_error = forebay.run("load", str(path), "--device", "host", "--digest", "--json")
        if loaded is None:
            raise Difference(f"opened, but not loaded: {load_error}")
    if kind not in OFFICIAL:
        return ("accepted" if inspected else "refused"), None
    theirs, their_error = official(kind, path)
    if inspected is None:
        if theirs is None:
            return "both refuse", None
        return "refused here", reason(STRICTER[kind], error)
    if theirs is None:
        return "accepted here", reason(LAXER[kind], their_error)
    ours = {tensor["name"]: (tensor["dtype"], tensor["shape"], loaded["digests"][tensor["name"]])
            for tensor in inspected["tensors"]}
    if ours != theirs:
        wrong = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
        raise Difference("; ".join(f"{name!r}: {ours.get(name)}, there {theirs.get(name)}" for name in wrong))
    return "both accept", None


def reason(reasons, error):
    found = next((why for words, why in reasons if words in error), None)
    if found is None:
        raise Difference(f"no reason is known for: {error}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forebay", default="target/release/forebay")
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", default="target/differential")
    arguments = parser.parse_args()
    forebay = Forebay(arguments.forebay)
    warnings.simplefilter("ignore")
    rng, keep = random.Random(arguments.seed), pathlib.Path(arguments.keep)
    sources = [(kind, read(FIXTURES / folder / f"{name}.{kind}"))
               for kind, read, folder, names in SOURCES for name in names]
    table, reasons, differences = collections.Counter(), collections.Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        for shard in (FIXTURES / "safetensors").glob("model-*"):
            pathlib.Path(folder, shard.name).write_bytes(shard.read_bytes())
        for file in range(arguments.files):
            kind, source = sources[file % len(sources)]
            what, data = damage(rng, source)
            # A new name each time: nothing of the file before can be taken for this one's.
            path = pathlib.Path(folder, f"{file}.{kind}")
            path.write_bytes(data)
            try:
                verdict, why = compare(forebay, kind, path)
            except NoAnswer:
                verdict, why = "no answer there", None
            except Difference as difference:
                verdict, why, differences = "DIFFERENCES", None, differences + 1
                keep.mkdir(parents=True, exist_ok=True)
                (keep / path.name).write_bytes(data)
                print(f"{keep / path.name} ({what}): {difference}", file=sys.stderr, flush=True)
            table[kind, what, verdict] += 1
            if why:
                reasons[kind, verdict, why] += 1
            path.unlink()
    show(table, reasons)
    raise SystemExit(f"{differences} differences" if differences else 0)


def show(table, reasons):
    verdicts = sorted({verdict for _, _, verdict in table})
    print(f"{'':12}{'damage':14}" + "".join(f"{verdict:>17}" for verdict in verdicts))
    for kind, what in sorted({(kind, what) for kind, what, _ in table}):
        counts = "".join(f"{table[kind, what, verdict]:17}" for verdict in verdicts)
        print(f"{kind:12}{what:14}{counts}")
    for (kind, verdict, why), count in sorted(reasons.items()):
        print(f"{count:6}  {kind} {verdict}: {why}")


if __name__ == "__main__":
    main()
