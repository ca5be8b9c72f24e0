"""Optimisers, parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from facessl.config import OptimConfig


class LARS(torch.optim.Optimizer):
    """SGD with momentum and layer-wise adaptive rates (You et al. 2017, arXiv:1708.03888, as BYOL uses it).

    For a tensor w with gradient g, both of non-zero norm, the update direction is

        d = trust * |w| / |g + weight_decay * w| * (g + weight_decay * w)

    and 1 * (g + weight_decay * w) otherwise; then v <- momentum * v + d, w <- w - lr * v. Groups with
    `adapt=False` (biases, norms, one-dimensional parameters) take plain momentum steps. Nothing is read back from the
    device. On a GPU all tensors of a group are updated together, to launch few kernels (one per tensor remains: torch
    multiplies by rates that stay on the device one at a time); on a CPU one after the other, while they are in its
    caches. Both give the same numbers.

    Differences from the optimiser in FRA's release: there the denominator is |g| + weight_decay * |w| + 1e-8, the
    learning rate is inside the momentum buffer, a tensor of zero norm does not move, and exclusion goes by names, so
    that the batch norms of the heads and layer norms are decayed and adapted; here they are not.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if params[0].device.type == "cpu":
            for parameter in params:
                self._update_together(group, [parameter])
        else:
            self._update_together(group, params)

    def _update_together(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        directions = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if group["adapt"]:
            weight_norm = torch.stack(torch._foreach_norm(params))  # (P,)
            update_norm = torch.stack(torch._foreach_norm(directions))  # (P,)
            ratio = torch.where(
                (weight_norm > 0) & (update_norm > 0),
                group["trust"] * weight_norm / update_norm,
                torch.ones_like(weight_norm),
            )
            torch._foreach_mul_(directions, list(ratio.unbind()))
        fresh = [p for p in params if "momentum" not in self.state[p]]
        for p in fresh:
            self.state[p]["momentum"] = torch.zeros_like(p)
        velocity = [self.state[p]["momentum"] for p in params]
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, directions)
        torch._foreach_add_(params, velocity, alpha=-group["lr"])


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights, and those without decay and adaptation.

    The second group holds biases, the parameters of norms of every kind (batch, layer, group, instance, RMS) and
    everything else of one dimension or none.
    """
    plain: list[Tensor] = []
    decayed: list[Tensor] = []
    seen: set[int] = set()
    for owner in module.modules():
        is_norm = "norm" in type(owner).__name__.lower()
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            excluded = is_norm or parameter.ndim <= 1 or name == "bias"
            (plain if excluded else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "adapt": True},
        {"params": plain, "weight_decay": 0.0, "adapt": False},
    ]
    return [g for g in groups if g["params"]]


def build_optimizer(module: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """The optimiser of a run; `lr` is the derived (scaled) peak learning rate."""
    groups = parameter_groups(module, optim.weight_decay)
    if optim.name == "lars":
        return LARS(groups, lr=lr, momentum=optim.momentum, trust=optim.trust)
    for group in groups:
        del group["adapt"]
    return torch.optim.AdamW(groups, lr=lr, betas=optim.betas, fused=fused_on_cpu(groups))


def fused_on_cpu(groups: list[dict[str, Any]]) -> bool | None:
    """`fused` of torch's Adam and AdamW for these parameter groups: True on a CPU, else torch's choice.

    torch's choice on a CPU is a loop with a temporary per operation, five times as slow. On a GPU it stays: with the
    fused kernel fp16's loss scaling and gradient clipping exclude one another.
    """
    return True if all(p.device.type == "cpu" for group in groups for p in group["params"]) else None


def warmup_cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int, final: float = 0.0) -> float:
    """Learning rate of a step (0 = the first): linear from peak / warmup_steps to peak, then half a cosine to
    `final` * peak at total_steps."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
