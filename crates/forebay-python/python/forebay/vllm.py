"""vLLM's load format ``forebay``: ``vllm serve MODEL --load-format forebay``.

The package's entry point in ``vllm.general_plugins`` is :func:`register`, which vLLM calls in each
of its processes. Options go the way vLLM has for them:
``--model-loader-extra-config '{"load_mode": "dio"}'``.
"""

import glob
import importlib
import json
import os
from collections.abc import Iterator
from typing import Any, Optional

from ._errors import Error
from ._model import Model
from ._pickles import refusal

__all__ = ["register"]

LOAD_FORMAT = "forebay"
_INDEX = "model.safetensors.index.json"
_PATTERNS = ["*.safetensors"]


def _vllm(module: str) -> Any:
    """A module of vLLM's loaders."""
    return importlib.import_module(f"vllm.model_executor.model_loader{module}")


def _indexed(folder: str, files: "list[str]") -> "list[str]":
    """The files that the folder's index names, if it has one: others repeat them."""
    path = os.path.join(folder, _INDEX)
    if not os.path.isfile(path):
        return files
    with open(path, encoding="utf-8") as index:
        names = set(json.load(index)["weight_map"].values())
    named = {os.path.join(folder, name) for name in names}
    absent = sorted(named - set(files))
    if absent:
        raise FileNotFoundError(f"{path} names files that are not there: {', '.join(absent)}")
    return [file for file in files if file in named]


def weight_files(folder: str, patterns: "Optional[list[str]]" = None) -> "list[str]":
    """The files of a model: those that match the first of the patterns that any file matches."""
    for pattern in patterns or _PATTERNS:
        files = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
        if files and not all(file.endswith(".safetensors") for file in files):
            raise refusal(next(it for it in files if not it.endswith(".safetensors")))
        if files:
            # A model that names its files means these, whatever the index says.
            return files if patterns else _indexed(folder, files)
    for name in sorted(os.listdir(folder)):
        if name.endswith((".bin", ".pt", ".pth")):
            raise refusal(os.path.join(folder, name))
    raise FileNotFoundError(f"{folder} holds no {' or '.join(patterns or _PATTERNS)}")


def _weights(files: "list[str]", options: "dict[str, Any]") -> Iterator["tuple[str, Any]"]:
    """Names and tensors of the files, as they land: one file after the other, so that what waits
    to be taken is never more than one file."""
    for file in files:
        with Model(file, "torch", **options) as model, model.stream() as stream:
            yield from stream


def _loader_class() -> Any:
    base: Any = _vllm(".base_loader").BaseModelLoader

    class ForebayModelLoader(base):  # type: ignore[misc]
        """Reads safetensors by forebay, and hands tensors to the model as they land."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            options = load_config.model_loader_extra_config or {}
            if not isinstance(options, dict):
                raise ValueError("model_loader_extra_config takes a dict of forebay's options")
            self.options: "dict[str, Any]" = options

        def _folder(
            self,
            name: str,
            revision: Any,
            patterns: "Optional[list[str]]" = None,
            subfolder: Optional[str] = None,
        ) -> str:
            """Where a model lies; it is downloaded if it is none of this machine's."""
            folder = name
            if not os.path.isdir(name):
                folder = _vllm(".weight_utils").download_weights_from_hf(
                    name,
                    self.load_config.download_dir,
                    patterns or _PATTERNS,
                    revision,
                    subfolder=subfolder,
                    ignore_patterns=self.load_config.ignore_patterns,
                )
            return os.path.join(folder, subfolder) if subfolder else folder

        def download_model(self, model_config: Any) -> None:
            """Downloads the model, unless it lies on this machine."""
            self._folder(model_config.model, model_config.revision)

        def _all_weights(self, model: Any, model_config: Any) -> Iterator["tuple[str, Any]"]:
            name = getattr(model_config, "model_weights", None) or model_config.model
            patterns = getattr(model, "allow_patterns_overrides", None)
            folder = self._folder(name, model_config.revision, patterns)
            yield from _weights(weight_files(folder, patterns), self.options)
            # What a model takes from elsewhere: each says where, and what to call it.
            for source in getattr(model, "secondary_weights", ()):
                patterns = source.allow_patterns_overrides
                folder = self._folder(
                    source.model_or_path, source.revision, patterns, source.subfolder
                )
                files = weight_files(folder, patterns)
                for key, tensor in _weights(files, self.options):
                    yield source.prefix + key, tensor

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Loads the weights into a model that is there already."""
            if model_config.quantization == "torchao":
                raise Error(
                    "what torchao quantised is to be put together after reading, which vLLM's "
                    "own load format does: --load-format safetensors"
                )
            loaded = model.load_weights(self._all_weights(model, model_config))
            if model_config.quantization is None and loaded is not None:
                self._check(model, set(loaded))

        def _check(self, model: Any, loaded: "set[str]") -> None:
            """That each parameter came from the files, except those that are made afterwards."""
            made = {
                f"{prefix}.{name}" if prefix else name
                for prefix, module in model.named_modules()
                if hasattr(getattr(module, "quant_method", None), "process_weights_after_loading")
                for name, _ in module.named_parameters()
            }
            missing = {name for name, _ in model.named_parameters()} - loaded - made
            if missing:
                raise ValueError(
                    f"weights that the files do not have: {', '.join(sorted(missing))}"
                )

    return ForebayModelLoader


def register() -> None:
    """Makes the load format known to vLLM. May be called again and again."""
    loaders = _vllm("")
    known = getattr(loaders, "_LOAD_FORMAT_TO_MODEL_LOADER", {})
    if LOAD_FORMAT not in known:
        loaders.register_model_loader(LOAD_FORMAT)(_loader_class())
