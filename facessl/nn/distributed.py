"""Sums over the ranks of a run that gradients pass through; the number of ranks is asked, never configured."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks of the running job; 1 where `torch.distributed` is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # x of this rank enters the loss of every rank, so its gradient is the sum of all their gradients.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` (any shape, the same on every rank) over the ranks; `x` itself with one rank.

    The backward pass gives the gradient of the *sum* of the ranks' losses. DistributedDataParallel then
    divides by the number of ranks, so a loss that averages over its own samples ends up with the gradient
    of the average over the global batch.
    """
    if world_size() == 1:
        return x
    reduced: Tensor = _AllReduceSum.apply(x)
    return reduced


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean of `x` (any shape, the same on every rank) over the ranks; gradients as in `all_reduce_sum`."""
    return all_reduce_sum(x) / world_size()
