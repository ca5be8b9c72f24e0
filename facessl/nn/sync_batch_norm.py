"""Batch normalisation over all ranks on any device, for every kind of BatchNorm that timm and torch build."""

from __future__ import annotations

import timm.layers
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from facessl.nn.distributed import all_reduce_sum, world_size
from facessl.nn.precision import at_least_float32


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics span the ranks, by plain collectives, on any device.

    Input (B, C) or (B, C, ...), output of the same shape and type; ranks may hold different B. State-dict keys are
    those of BatchNorm. Torch's own class is faster on CUDA but refuses CPU tensors.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        return self._global(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C) or more dimensions, got {tuple(input.shape)}")

    def _global(self, x: Tensor) -> Tensor:
        values = at_least_float32(x)
        over = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_full((1,), x.numel() / x.shape[1], dtype=values.dtype)
        sums = all_reduce_sum(torch.cat([values.sum(over), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = values - mean.view(shape)
        # Second pass around the global mean: E[x^2] - E[x]^2 would cancel digits.
        var = all_reduce_sum(centred.square().sum(over)) / total
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        if self.track_running_stats:
            unbiased = var.detach() * (total / (total - 1).clamp_min(1))
            self._track(mean.detach(), unbiased)
        return out.to(x.dtype)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Moves the running statistics towards mean and unbiased variance (C,) of the global batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


class SyncBatchNormAct(SyncBatchNorm):
    """timm's BatchNormAct2d (norm, then drop, then activation) with statistics over the ranks."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


def convert_sync_batchnorm(module: nn.Module, device: torch.device | None = None) -> nn.Module:
    """`module` with every BatchNorm replaced by one over the ranks; parameters, buffers and keys stay the same.

    Parameter objects are reused, so optimisers and EMA pairs made before remain valid. A module that is itself
    a BatchNorm is returned as a new object; every other module is changed in place.

    Args:
        module: a network with torch's or timm's BatchNorm layers.
        device: where it will run (default: where its parameters are): torch's SyncBatchNorm on CUDA, ours elsewhere.
    """
    if device is None:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        converted: nn.Module = timm.layers.convert_sync_batchnorm(module)  # torch's, and timm's fused norms with it
        return converted
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SyncBatchNorm):
        return _converted(module)
    for name, child in module.named_children():
        new = convert_sync_batchnorm(child, device)
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
