"""One rank of the tests: `torchrun … worker.py FOLDER`. Runs every case in turn, and writes what
came of each into FOLDER, by rank. A case that fails on one rank must leave the others able to go on."""

import json
import os
import traceback
from datetime import timedelta

import failures
import loads
import torch
import torch.distributed as dist
from common import FOLDER, RANK, Skipped, gathered, write_large


def outcome(case):
    """`None`, or why not."""
    try:
        case()
    except Skipped as why:
        return f"SKIPPED: {why}"
    except BaseException:  # noqa: BLE001  the test's business
        return traceback.format_exc()
    return None


def main():
    dist.init_process_group("gloo", timeout=timedelta(seconds=90))
    torch.set_num_threads(1)
    if RANK == 0:
        write_large()
    dist.barrier()
    outcomes, only = {}, os.environ.get("CASE", "")
    for name, case in [*vars(loads).items(), *vars(failures).items()]:
        if not name.startswith("case_") or only not in name:
            continue
        outcomes[name] = outcome(case)
        (FOLDER / f"outcomes.{RANK}.json").write_text(json.dumps(outcomes))
        # A rank that fails may leave others in the middle of a case; here they meet again.
        if any(gathered(outcomes[name] is not None)) and outcomes[name] is None:
            outcomes[name] = "failed on another rank"
    (FOLDER / f"outcomes.{RANK}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
