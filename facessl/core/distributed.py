"""Collectives over the ranks of a job, whose number is asked, never configured."""

import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional

T = TypeVar("T")


def world_size() -> int:
    """Number of ranks of the running job; 1 if `torch.distributed` is not initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, from 0; 0 if `torch.distributed` is not initialized."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> tuple[int, int]:
    """World size and ranks per node as `torchrun` or `srun` set them; 1, 1 otherwise, as in a batch script of SLURM."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:
        return int(env.get("WORLD_SIZE", "1")), int(env["LOCAL_WORLD_SIZE"])
    if "SLURM_STEP_NUM_TASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        world = int(env["SLURM_STEP_NUM_TASKS"])
        return world, world // int(env.get("SLURM_STEP_NUM_NODES", "1"))
    return 1, 1


def launched() -> tuple[int, int]:
    """Rank of this process and number of ranks, as `torchrun` or `srun` set them; 0, 1 otherwise."""
    world, _ = ranks()
    return int(os.environ.get("RANK") or os.environ["SLURM_PROCID"]) if world > 1 else 0, world


def own_part(count: int) -> slice:
    """Contiguous part of `count` items that this rank works on; all of them with one rank."""
    return slice(rank() * count // world_size(), (rank() + 1) * count // world_size())


def gathered(value: T) -> list[T]:
    """Values of all ranks, which are pickled. Collective call: returns once all ranks have called it."""
    parts: list[Any] = [value] * world_size()
    if len(parts) > 1:
        dist.all_gather_object(parts, value)
    return parts


def totals(*counts: int) -> list[int]:
    """Sums of whole numbers over the ranks. Collective call."""
    return [sum(column) for column in zip(*gathered(counts), strict=True)]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` (any shape, the same on every rank) over the ranks; `x` itself with one rank.

    The backward pass gives the gradient of the *sum* of the ranks' losses, which DistributedDataParallel divides by
    the number of ranks.
    """
    return x if world_size() == 1 else functional.all_reduce(x)


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean of `x` (any shape, the same on every rank) over the ranks; gradients as in `all_reduce_sum`."""
    return all_reduce_sum(x) / world_size()


def rank_mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted values, so that N ranks equal one process; 0 if none is counted.

    The sum of this rank's values is divided by the ranks' mean count, so that the average over the ranks is the mean
    over the global batch. Collective call.

    `counted` has the shape of `values` and is 0 at those to leave out, which must be finite.
    """
    mask = counted.to(values.dtype)
    total = mask.sum()
    if (ranks := world_size()) > 1:
        dist.all_reduce(total)  # of a count: nothing to differentiate
    return (values * mask).sum() * ranks / total.clamp_min(1)


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.count = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Rows of this rank enter the loss of every rank: the sum of all their gradients, of these rows.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.count : (rank() + 1) * ctx.count]


def all_gather_rows(x: Tensor) -> Tensor:
    """Rows (B, ...) of all W ranks -> (W * B, ...) in their order; gradients as in `all_reduce_sum`."""
    if world_size() == 1:
        return x
    return _AllGatherRows.apply(x.contiguous())
