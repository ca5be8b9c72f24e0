"""Batch normalisation over all ranks: torch's own on CUDA, one of plain operations elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from timm.layers import convert_sync_batchnorm as of_torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facessl.core.distributed import world_size
from facessl.core.precision import at_least_float32


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics span the ranks.

    Input (B, C) or (B, C, ...) of any floating type, output of the same shape and type; ranks may hold different B,
    also none. State-dict keys, momentum (None: the cumulative average) and evaluation mode are those of BatchNorm.

    For devices that torch's class refuses (CPU, MPS): one all-reduce of 2 C + 1 numbers in the forward pass and one of
    2 C in the backward pass, whatever the number of ranks.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        out, mean, var, total = _OverRanks.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None:
            self._track(mean, var * (total / (total - 1).clamp_min(1)))
        normalised: Tensor = out
        return normalised

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C) or more dimensions, got {tuple(input.shape)}")

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Moves the running statistics towards mean and unbiased variance (C,) of the global batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        for running, value in ((self.running_mean, mean), (self.running_var, var)):
            if self.momentum is None:
                running.lerp_(value.to(running.dtype), self.num_batches_tracked.to(running.dtype).reciprocal())
            else:
                running.lerp_(value.to(running.dtype), self.momentum)


class SyncBatchNormAct(SyncBatchNorm):
    """timm's BatchNormAct2d (norm, then drop, then activation) with statistics over the ranks."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


class _OverRanks(torch.autograd.Function):
    """x (B, C, ...), weight and bias (C,) or None -> normalised x; mean, biased variance (C,), values per channel (1,).

    The gradient of x is that of the *sum* of the ranks' losses, those of weight and bias are this rank's part, as
    DistributedDataParallel expects.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        x = _dense(x)
        count = x.numel() // x.shape[1]
        own_mean, own_var = (s.double() for s in _statistics(x))  # (C,)
        # Sums around zero cancel digits where the mean is far from it. Of float64 that leaves more than float32 has,
        # and the variances within the ranks are centred: the formula of Chan et al. (1979), in one message.
        moments = torch.cat([own_mean, own_var + own_mean.square(), own_mean.new_ones(1)]) * count
        dist.all_reduce(moments)
        total = moments[-1:]
        mean, square = (moments[:-1] / total).chunk(2)
        var = (square - mean.square()).clamp_min(0)
        kind = at_least_float32(x).dtype
        centre, scale = mean.to(kind), (var + eps).rsqrt().to(kind)
        weight, bias = (None if p is None else p.to(kind) for p in (weight, bias))
        ctx.save_for_backward(x, weight, centre, scale, total)
        ctx.mark_non_differentiable(mean, var, total)
        return _normalised(x, weight, bias, centre, scale), mean, var, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, centre, scale, total = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_format(x))
        sums = _gradient_sums(gradient, x, centre, scale)  # (2 C,): of the gradients, and times x - mean
        of_bias, of_weight = sums.chunk(2)
        own = None
        if ctx.needs_input_grad[0]:
            over_ranks = sums.clone()
            dist.all_reduce(over_ranks)
            own = _input_gradient(gradient, x, weight, centre, scale, over_ranks, total)
        return (own, None, None, None) if weight is None else (own, of_weight * scale, of_bias, None)


def _format(x: Tensor) -> torch.memory_format:
    for ndim, kind in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.ndim == ndim and x.is_contiguous(memory_format=kind):
            return kind
    return torch.contiguous_format


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_format(x))


def _along(x: Tensor, values: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...), as many dimensions as x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of this rank's values, at least float32; zeros where it has none."""
    if x.numel() == 0:
        zeros = at_least_float32(x.new_zeros(x.shape[1]))
        return zeros, zeros
    var, mean = torch.var_mean(at_least_float32(x), [d for d in range(x.ndim) if d != 1], correction=0)
    return mean, var


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, centre: Tensor, scale: Tensor) -> Tensor:
    """(x - centre) * scale * weight + bias, of the type of x."""
    values = (at_least_float32(x) - _along(x, centre)) * _along(x, scale if weight is None else scale * weight)
    return (values if bias is None else values + _along(x, bias)).to(x.dtype)


def _gradient_sums(gradient: Tensor, x: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """(2 C,) sums of the gradient and of gradient * (x - centre) over this rank's values."""
    over = [d for d in range(x.ndim) if d != 1]
    g = at_least_float32(gradient)
    return torch.cat([g.sum(over), (g * (at_least_float32(x) - _along(x, centre))).sum(over)])


def _input_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor | None, centre: Tensor, scale: Tensor, sums: Tensor, total: Tensor
) -> Tensor:
    """weight * scale * (gradient - mean gradient - (x - centre) * scale^2 * mean of gradient * (x - centre))."""
    first, second = (sums / total.to(sums.dtype)).chunk(2)
    centred = (at_least_float32(x) - _along(x, centre)) * _along(x, scale.square() * second)
    values = at_least_float32(gradient) - _along(x, first) - centred
    return (values * _along(x, scale if weight is None else scale * weight)).to(x.dtype)


def spans_ranks(module: nn.Module) -> bool:
    """Whether `module` is a batch norm over the ranks, torch's or ours."""
    return isinstance(module, SyncBatchNorm | nn.SyncBatchNorm)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """`module` with every BatchNorm replaced by one over the ranks; parameters, buffers and keys stay the same.

    On CUDA the new ones are torch's (timm's, where a norm has an activation), so move the network there first.
    Parameter objects are reused, so optimisers and EMA pairs made before remain valid. A module that is itself
    a BatchNorm is returned as a new object; every other module is changed in place.

    Args:
        module: a network with torch's or timm's BatchNorm layers, on the device it will run on.
    """
    on_cuda = any(tensor.is_cuda for tensor in chain(module.parameters(), module.buffers()))
    return _replaced(module, of_torch if on_cuda else _converted)


def _replaced(module: nn.Module, convert: Callable[[Any], nn.Module]) -> nn.Module:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not spans_ranks(module):
        return convert(module)
    for name, child in module.named_children():
        new = _replaced(child, convert)
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
