"""Batch normalization over all ranks: torch's own on CUDA, one of plain operations on a CPU, which torch's refuses."""

from itertools import chain

import torch
from timm.layers import SyncBatchNormAct
from torch import Tensor, nn

from facessl.core.distributed import all_reduce_sum, world_size
from facessl.core.precision import at_least_float32


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm, or timm's BatchNormAct, whose training statistics span the ranks.

    Input (B, C) or (B, C, ...) of any floating type, output of the same shape and type; ranks may hold different B,
    also none. State-dict keys, momentum (None: the cumulative average) and evaluation mode are those of BatchNorm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        alone = not self.training or world_size() == 1
        out: Tensor = super().forward(x) if alone else self._over_ranks(x)
        return self.get_submodule("act")(self.get_submodule("drop")(out)) if hasattr(self, "act") else out

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions."""

    def _over_ranks(self, x: Tensor) -> Tensor:
        values = at_least_float32(x)
        over = [d for d in range(x.ndim) if d != 1]
        if x.numel():
            var, mean = torch.var_mean(values, over, correction=0)  # (C,) each, of this rank
        else:
            var = mean = values.sum(over)
        # Chan et al. (1979) in one message; float64, because sums around zero cancel digits.
        own_mean, own_var = mean.double(), var.double()
        moments = torch.cat([own_mean, own_var + own_mean.square(), own_mean.new_ones(1)])
        *sums, total = all_reduce_sum(moments * (x.numel() // x.shape[1])).split([len(mean), len(mean), 1])
        mean, square = (s / total for s in sums)
        var = (square - mean.square()).clamp_min(0)
        self._track(mean.detach(), (var * total / (total - 1).clamp_min(1)).detach())
        each = (1, -1, *[1] * (x.ndim - 2))  # (C,) -> (1, C, 1, ...)
        scale = (var + self.eps).rsqrt().to(values)
        out = (values - mean.to(values).view(each)) * (scale if self.weight is None else scale * self.weight).view(each)
        return (out if self.bias is None else out + self.bias.view(each)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(var.to(self.running_var), momentum)


def spans_ranks(module: nn.Module) -> bool:
    """Whether `module` is a batch norm over the ranks, torch's or ours."""
    return isinstance(module, SyncBatchNorm | nn.SyncBatchNorm)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """`module`, in which every BatchNorm of torch or timm has become one over the ranks, in place.

    On CUDA they become torch's, so move the network there first. Optimizers and EMA pairs remain valid.
    """
    on_cuda = any(tensor.is_cuda for tensor in chain(module.parameters(), module.buffers()))
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not spans_ranks(norm):
            # timm's Act runs an activation only if there is one.
            norm.__class__ = SyncBatchNormAct if on_cuda else SyncBatchNorm
            norm.process_group = None  # type: ignore[assignment]
    return module
