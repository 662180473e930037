"""What ranks find out by themselves, and then agree upon: that all have opened the same model, and
were asked for the same, before anything of it is read."""

import hashlib
import importlib
import json
from typing import Any, Callable, Optional, TypeVar

from ._exchange import Group, RankError, describe
from ._frameworks import cuda_ordinal, device_name
from ._model import Model, StrPath
from ._sharding import STEP_BYTES_MIN, Layout, Slices, dims, layout

_BUDGET_BYTES_MIN = 1 << 20
_Made = TypeVar("_Made")


class Setup:
    """What a rank finds out by itself before anything is exchanged."""

    def __init__(
        self, group: Group, path: StrPath, device: Any, slices: Slices, budget_bytes: int
    ):
        if budget_bytes < _BUDGET_BYTES_MIN:
            raise ValueError(f"a budget of {budget_bytes} bytes: at least {_BUDGET_BYTES_MIN}")
        self.device = _named(device)
        self.exchanged = group.exchanged(self.device)
        self.model = Model(path, "torch")
        # Two steps are under way, each with what is given and taken, and there is the scratch.
        self.step_bytes = max(budget_bytes * 2 // 5, STEP_BYTES_MIN)
        infos = self.model.infos()
        self.dims = dims([info.name for info in infos], slices)
        self.layouts: "list[Layout]" = []
        for info, dim in zip(infos, self.dims):
            self.model._framework.dtype(info.dtype)
            order = self.model._order(info.name)
            self.layouts.append(layout(info, dim, order, group.world, self.step_bytes))

    def told(self) -> "dict[str, Any]":
        """What must be the same on all ranks."""
        infos = self.model.infos()
        listed = [self.model.format, [it[1] for it in self.model._opened().files()], infos]
        listed.append([it.order for it in self.layouts])
        digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        path = self.model.files[0] if self.model.files else ""
        nbytes = sum(info.nbytes for info in infos)
        summary = f"{len(infos)} tensors of {nbytes} bytes, the first file is {path}"
        return {
            "catalog": {"digest": digest, "told": summary},
            "arguments": json.dumps([self.dims, self.step_bytes, self.exchanged.partition(":")[0]]),
        }


def _named(device: Any) -> str:
    """A device as a word, with the number of a GPU."""
    name = device_name(device)
    kind = name.partition(":")[0]
    if kind == "cuda":
        return f"cuda:{cuda_ordinal(name, importlib.import_module('torch'))}"
    return "cpu" if kind == "cpu" else name


def _most_common(values: "list[str]") -> str:
    """Of values as common as each other, the one of the lowest rank."""
    return max(values, key=lambda value: (values.count(value), -values.index(value)))


def _disagreement(told: "list[dict[str, Any]]") -> "dict[int, str]":
    """Who has failed, has another model, or was asked for something else, and why."""
    causes = {rank: it["error"] for rank, it in enumerate(told) if it["error"]}
    if causes:
        return causes
    if "catalog" not in told[0]:
        return {}
    models = [it["catalog"]["digest"] for it in told]
    common = _most_common(models)
    usual = told[models.index(common)]["catalog"]["told"]
    for rank, digest in enumerate(models):
        if digest != common:
            other = told[rank]["catalog"]["told"]
            causes[rank] = (
                f"has another model than rank {models.index(common)}: {other}; there {usual}"
            )
    if causes:
        return causes
    arguments = [it["arguments"] for it in told]
    common = _most_common(arguments)
    for rank, given in enumerate(arguments):
        if given != common:
            causes[rank] = (
                f"was given other slices, another budget or another kind of device than rank "
                f"{arguments.index(common)}"
            )
    return causes


def together(
    group: Group, prepare: "Callable[[], _Made]", tell: "Callable[[_Made], dict[str, Any]]"
) -> "_Made":
    """What each rank prepares by itself; raises on all ranks if one fails, or tells something
    else than the others."""
    made: "list[_Made]" = []
    error: Optional[Exception] = None
    said: "dict[str, Any]" = {"error": None}
    try:
        made.append(prepare())
        said.update(tell(made[0]))
    except Exception as caught:  # noqa: BLE001  told to all
        error = caught
        said["error"] = describe(caught).decode()
    told = [json.loads(it) for it in group.gather(json.dumps(said).encode())]
    causes = _disagreement(told)
    if error is not None and list(causes.values()) == [said["error"]] * group.world:
        # What all did wrong alike is no matter of ranks.
        raise error
    if causes:
        raise RankError(causes, group.world) from error
    return made[0]
