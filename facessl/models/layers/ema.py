"""The momentum (target) network: frozen copies that follow their originals by an exponential moving average."""

import copy
import math
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from facessl.core.distributed import world_size
from facessl.models.layers.sync_batch_norm import spans_ranks

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """A deep copy of `module` whose parameters take no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


def cosine_momentum(base: float, fraction: float) -> float:
    """Momentum that rises from `base` to 1 by half a cosine (BYOL); `fraction` of the run is done, 0 to 1."""
    return 1 - (1 - base) * (math.cos(math.pi * fraction) + 1) / 2


class MomentumUpdate:
    """target <- m target + (1 - m) online, over all parameters in one multi-tensor call.

    By default parameters only: batch-norm statistics of the target come from its own forward pass in training mode, as
    in BYOL and the released FRA. Lists are made at the first call, after device moves and SyncBN conversion.
    """

    def __init__(self, *pairs: tuple[nn.Module, nn.Module], buffers: bool = False) -> None:
        """
        Args:
            pairs: (online, target) modules of the same structure.
            buffers: batch-norm statistics (every floating-point buffer) are averaged too and counters are copied; the
                target then belongs in evaluation mode (Cai et al., "Exponential moving average normalization", CVPR
                2021). Online statistics that differ by rank become their mean over the ranks first.
        """
        self._pairs = pairs
        self._buffers = buffers
        self._per_rank: list[Tensor] = []  # online statistics that differ by rank
        self._online: list[Tensor] = []
        self._target: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def __call__(self, momentum: float) -> None:
        """Moves the target by the fraction `1 - momentum` of the way; collective where norms do not span the ranks."""
        if not self._target:
            self._collect()
        if self._per_rank and world_size() > 1:  # their mean over the ranks, in one message
            flat = torch.cat([tensor.flatten() for tensor in self._per_rank])
            dist.all_reduce(flat)
            parts = (flat / world_size()).split([tensor.numel() for tensor in self._per_rank])
            torch._foreach_copy_(self._per_rank, [p.view_as(t) for p, t in zip(parts, self._per_rank, strict=True)])
        torch._foreach_lerp_(self._target, self._online, 1 - momentum)
        for online, target in self._copied:
            target.copy_(online)

    def _collect(self) -> None:
        for online, target in self._pairs:
            self._online += [_local(p.detach()) for p in online.parameters()]
            self._target += [_local(p.detach()) for p in target.parameters()]
            if not self._buffers:
                continue
            for online_buffer, target_buffer in zip(online.buffers(), target.buffers(), strict=True):
                if online_buffer.is_floating_point():
                    self._online.append(online_buffer)
                    self._target.append(target_buffer)
                else:
                    self._copied.append((online_buffer, target_buffer))
            for norm in online.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not spans_ranks(norm):
                    self._per_rank += [b for b in norm.buffers(recurse=False) if b.is_floating_point()]


def _local(parameter: Tensor) -> Tensor:
    """This rank's part of a sharded parameter; both networks are cut alike. Another parameter as it is."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
