"""Run by torchrun on two processes: measures every case and writes one JSON file, from the first process."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh


def main(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    # Whoever waits for a process that went another way is told so.
    dist.init_process_group("gloo", timeout=timedelta(seconds=90))
    world = dist.get_world_size()
    if kind == "sharded":
        from tests.distributed import sharded_cases

        found = dict(sharded_cases.run(init_device_mesh("cpu", (world,))))
    else:
        from tests.distributed import trainer_cases

        found = dict(trainer_cases.run(folder, *sys.argv[3:]))
    ranks = [None] * world
    dist.all_gather_object(ranks, dist.get_rank())
    if dist.get_rank() == 0:
        (folder / f"{kind}.json").write_text(json.dumps({"processes": ranks, "cases": found}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
