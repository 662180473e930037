"""Pickles, which are refused with a word on what to do instead."""

import os
from typing import Any

from ._errors import FormatError
from ._model import Model

# What torch.save writes today, what it wrote before, and a pickle that is nothing else.
_MARKS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")
_OURS = (".safetensors", ".safetensors.index.json", ".gguf", ".ptd")


def is_pickle(data: bytes) -> bool:
    """Whether a file that begins so is a pickle, or torch's archive of one."""
    return data.startswith(_MARKS)


def _is_pickled(path: str) -> bool:
    """Whether that is what lies there, in a folder as well."""
    if os.path.isdir(path):
        names = os.listdir(path)
        return any(it.endswith(_ENDINGS) for it in names) and not any(
            it.endswith(_OURS) for it in names
        )
    if path.endswith(".bin.index.json"):
        return True
    with open(path, "rb") as file:
        return is_pickle(file.read(4))


def refusal(path: str) -> FormatError:
    """What is raised for one."""
    return FormatError(
        f"{path}: is a pickle, and to read one is to run the program in it, which forebay never "
        "does; convert it once, if you trust it: "
        "safetensors.torch.save_file(torch.load(file, map_location='cpu', weights_only=True), "
        "'model.safetensors'), then load that file"
    )


def open_model(path: Any, framework: str, device: Any, **options: Any) -> Model:
    """As ``Model``; a pickle is refused by its name."""
    try:
        return Model(path, framework, device, **options)
    except FormatError as error:
        if _is_pickled(os.fspath(path)):
            raise refusal(os.fspath(path)) from error
        raise
