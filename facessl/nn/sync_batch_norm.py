"""Batch normalisation over all ranks on any device, for every kind of BatchNorm that timm and torch build."""

from __future__ import annotations

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.nn.distributed import all_reduce_sum, world_size


class SyncBatchNorm(nn.SyncBatchNorm):
    """BatchNorm whose statistics span the ranks: torch's own kernel on CUDA, plain collectives elsewhere.

    Input (B, C) or (B, C, ...), output of the same shape and type; state-dict keys are those of BatchNorm.
    Torch's class refuses CPU tensors, which would leave two-rank runs untestable without a GPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if input.is_cuda:
            return super().forward(input)
        if not self.training or world_size() == 1:
            return self._local(input)
        return self._global(input)

    def _local(self, x: Tensor) -> Tensor:
        use_batch = self.training or self.running_mean is None
        factor = self._count_step() if self.training else 0.0
        running = self.training is False or self.track_running_stats
        return F.batch_norm(
            x,
            self.running_mean if running else None,
            self.running_var if running else None,
            self.weight,
            self.bias,
            use_batch,
            factor,
            self.eps,
        )

    def _global(self, x: Tensor) -> Tensor:
        values = x.float()  # statistics in float32 under autocast
        over = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32)
        sums = all_reduce_sum(torch.cat([values.sum(over), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = values - mean.view(shape)
        # Second pass around the global mean: E[x^2] - E[x]^2 would cancel digits.
        var = all_reduce_sum(centred.square().sum(over)) / total
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            factor = self._count_step()
            with torch.no_grad():
                unbiased = var * (total / (total - 1).clamp_min(1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        return out.to(x.dtype)

    def _count_step(self) -> float:
        """Counts a training pass; returns the weight of its statistics in the running ones."""
        if not self.track_running_stats or self.num_batches_tracked is None:
            return 0.0 if self.momentum is None else self.momentum
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


class SyncBatchNormAct(SyncBatchNorm):
    """timm's BatchNormAct2d (norm, then drop, then activation) with statistics over the ranks."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """`module` with every BatchNorm replaced by one over the ranks; parameters, buffers and keys stay the same.

    Parameter objects are reused, so optimisers and EMA pairs made before remain valid. A module that is itself
    a BatchNorm is returned as a new object; every other module is changed in place.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
        return _converted(module)
    for name, child in module.named_children():
        new = convert_sync_batchnorm(child)
        if new is not child:
            setattr(module, name, new)
    return module


def _converted(norm: nn.modules.batchnorm._BatchNorm) -> SyncBatchNorm:
    kind = SyncBatchNormAct if isinstance(norm, BatchNormAct2d) else SyncBatchNorm
    new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    if isinstance(new, SyncBatchNormAct):
        new.drop, new.act = norm.drop, norm.act  # type: ignore[assignment]
    return new.train(norm.training)
