"""Several processes of one training: which is first, and what they tell each other.

Under torchrun or SLURM every rank runs the whole command; otherwise `volrec.training.launch` starts them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from volrec.errors import ConfigError, RunError, VolrecError

__all__ = [
    "any_rank",
    "check_world",
    "gather",
    "is_launched",
    "is_main_process",
    "local_size",
    "on_main",
    "process_group",
    "rank",
    "world_size",
]

Result = TypeVar("Result")

# Others wait while the first rank decodes a folder, which may take hours.
_PATIENCE = timedelta(days=7)


def is_launched() -> bool:
    """Tell whether this process is one rank of several, started by torchrun, SLURM or `run_processes`."""
    _adopt_slurm()
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def rank() -> int:
    """Return the number of this process among all (0 when alone)."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """Return the number of processes (1 when alone)."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def is_main_process() -> bool:
    """Tell whether this process prepares the data and writes the run folder."""
    return rank() == 0


def _adopt_slurm() -> None:
    """Give the ranks that ``srun`` starts the names torch.distributed reads."""
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) < 2:
        return
    # An interactive shell inside an allocation has these variables too, but is no rank.
    if "SLURM_PROCID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in {"bash", "interactive"}:
        return
    from lightning_fabric.plugins.environments import SLURMEnvironment

    first = SLURMEnvironment.resolve_root_node_address(os.environ.get("SLURM_NODELIST", "127.0.0.1"))
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=os.environ["SLURM_NTASKS"],
        LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"),
        # As many ranks on every machine: "2(x3)" says two on each of three.
        LOCAL_WORLD_SIZE=os.environ.get("SLURM_TASKS_PER_NODE", os.environ["SLURM_NTASKS"]).split("(")[0],
    )
    # The same on every machine, and another for every job.
    os.environ.setdefault("MASTER_ADDR", first)
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:])))


def local_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size()))) if is_launched() else 1


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """Join the other ranks while the block runs; nothing happens when there are none.

    Parameters
    ----------
    accelerator : {"cpu", "cuda", "mps"}
        Kind of device; on GPUs gradients go over nccl, and what is said between processes over gloo.
    """
    if not is_launched():
        yield
        return
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def on_main(function: Callable[[], Result]) -> Result:
    """Run `function` in the first process and give its result, or the `VolrecError` it raises, to all."""
    if not is_launched():
        return function()
    from torch import distributed

    box: list[Any] = [None, None]
    failure: BaseException | None = None
    if is_main_process():
        try:
            box[0] = function()
        except VolrecError as error:
            box[1] = failure = error
        except BaseException as error:
            # The others must not wait for a process that is gone; the traceback is this process's to show.
            failure = error
            box[1] = RunError(f"the first process failed ({type(error).__name__}: {error}).", code="rank-failed")
            distributed.broadcast_object_list(box, src=0)
            raise
    distributed.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise box[1]
    return box[0]


def gather(items: list[Any]) -> list[Any]:
    """Return the items of all ranks, in the order of the ranks, in every rank."""
    if not is_launched():
        return items
    from torch import distributed

    boxes: list[Any] = [None] * world_size()
    distributed.all_gather_object(boxes, items)
    return [item for box in boxes for item in box]


def any_rank(flag: bool) -> bool:
    """Tell every rank whether the flag is up in at least one of them."""
    if not is_launched():
        return flag
    import torch
    from torch import distributed

    # A tensor in host memory: it goes over gloo and does not wait for the GPU.
    box = torch.tensor([int(flag)])
    distributed.all_reduce(box, op=distributed.ReduceOp.MAX)
    return bool(box.item())


def check_world(devices: int, num_nodes: int) -> None:
    """Check that the processes there are fit the configuration.

    Raises
    ------
    ConfigError
        Several machines are asked for, but nobody started the ranks.
    """
    if is_launched():
        expected = devices * num_nodes
        if world_size() != expected and (devices, num_nodes) != (1, 1):
            raise ConfigError(
                f"trainer.devices x num_nodes is {devices} x {num_nodes}, but {world_size()} processes were started.",
                remedy="Give torchrun the same --nproc-per-node and --nnodes, or leave both at 1.",
                where="trainer.devices",
                code="config",
            )
    elif num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes is {num_nodes}, but this process was started alone.",
            remedy="Start it with torchrun --nnodes or srun on every machine.",
            where="trainer.num_nodes",
            code="config",
        )
