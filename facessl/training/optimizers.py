"""Optimizers, parameter groups and learning-rate schedules, of pre-training and of fine-tuning."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from facessl.config.optim import FinetuneOptim, PretrainOptim
from facessl.core.errors import UnknownName
from facessl.models.backbone import Backbone


class LARS(torch.optim.Optimizer):
    """SGD with momentum and layer-wise adaptive rates (You et al. 2017, arXiv:1708.03888, as BYOL uses it).

    For a tensor w with gradient g, both of non-zero norm, the update direction is

        d = trust * |w| / |g + weight_decay * w| * (g + weight_decay * w)

    and 1 * (g + weight_decay * w) otherwise; then v <- momentum * v + d, w <- w - lr * v. Groups with
    `adapt=False` (biases, norms, one-dimensional parameters) take plain momentum steps. On a GPU all tensors of a group
    are updated together, without reading anything back; on a CPU one after the other, while they are in its caches.

    Differences from the optimizer in FRA's release: there the denominator is |g| + weight_decay * |w| + 1e-8, the
    learning rate is inside the momentum buffer, a tensor of zero norm does not move, and exclusion goes by names, so
    that the batch norms of the heads and layer norms are decayed and adapted; here they are not.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            on_cpu = all(p.device.type == "cpu" for p in params)
            for tensors in [[p] for p in params] if on_cpu else [params]:
                self._update(group, tensors)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        directions = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if group["adapt"]:
            weight_norm = torch.stack(torch._foreach_norm(params))  # (P,)
            update_norm = torch.stack(torch._foreach_norm(directions))  # (P,)
            ratio = group["trust"] * weight_norm / update_norm
            ratio = torch.where((weight_norm > 0) & (update_norm > 0), ratio, 1.0)
            torch._foreach_mul_(directions, list(ratio.unbind()))
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        velocity = [self.state[p]["momentum"] for p in params]
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, directions)
        torch._foreach_add_(params, velocity, alpha=-group["lr"])


def parameter_groups(module: nn.Module, weight_decay: float, *, decay_positions: bool = True) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights, and those without decay and adaptation.

    The second group holds biases, the parameters of norms of every kind (batch, layer, group, instance, RMS) and
    everything else of one dimension or none; without `decay_positions` also the position tables and tokens that a
    network of timm names in `no_weight_decay`, which the released code of pre-training (MAE, MoCo v3, CLIP) decays.
    """
    decay: list[Tensor] = []
    no_decay: list[Tensor] = []
    seen: set[int] = set()
    skip: set[int] = set()
    for owner in module.modules():
        is_norm = "norm" in type(owner).__name__.lower()
        if not decay_positions and callable(no_weight_decay := getattr(owner, "no_weight_decay", None)):
            names = no_weight_decay()
            skip |= {id(p) for name, p in owner.named_parameters() if name in names}
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            excluded = is_norm or parameter.ndim <= 1 or name == "bias" or id(parameter) in skip
            (no_decay if excluded else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": weight_decay, "adapt": True},
        {"params": no_decay, "weight_decay": 0.0, "adapt": False},
    ]
    return [g for g in groups if g["params"]]


def build_optimizer(module: nn.Module, optim: PretrainOptim, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer of a pre-training run; `lr` is the derived (scaled) peak learning rate."""
    groups = parameter_groups(module, optim.weight_decay)
    if optim.name == "lars":
        return LARS(groups, lr=lr, momentum=optim.momentum, trust=optim.trust)
    return torch.optim.AdamW(groups, lr=lr, betas=optim.betas, fused=fused_on_cpu(groups))


def fused_on_cpu(groups: list[dict[str, Any]]) -> bool | None:
    """`fused` of torch's Adam and AdamW: True on a CPU, else torch's default.

    torch's default on a CPU is five times as slow. On a GPU the fused kernel would exclude clipping with fp16.
    """
    return True if all(p.device.type == "cpu" for group in groups for p in group["params"]) else None


def build_finetune_optimizer(task: nn.Module, optim: FinetuneOptim) -> torch.optim.Optimizer:
    """Build the optimizer of a fine-tuning run.

    Every group has `lr_scale`, its learning rate over `optim.lr`: from the longest prefix of the parameter's name in
    `optim.lrs`, times `optim.layer_decay` to the power of its layer's distance from the end of the backbone.

    UnknownName: `optim.lrs` names no module of the task (`backbone`, `head`).
    """
    scales = _scales(task, optim)
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(task, optim.weight_decay, decay_positions=False):
        if optim.decay_norms:
            group["weight_decay"] = optim.weight_decay
        for scale in sorted({scales[id(p)] for p in group["params"]}):
            params = [p for p in group["params"] if scales[id(p)] == scale]
            groups.append({**group, "params": params, "lr_scale": scale})
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
    if optim.name == "adam":  # weight decay inside the gradient, as published
        return torch.optim.Adam(groups, lr=optim.lr, betas=optim.betas, fused=fused_on_cpu(groups))
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused_on_cpu(groups))


def _scales(task: nn.Module, optim: FinetuneOptim) -> dict[int, float]:
    modules = dict(task.named_modules())
    for name in optim.lrs:
        if name not in modules:
            raise UnknownName("part of the task (optim.lrs)", name, [n for n in modules if n and n.count(".") < 2])
    depth: dict[int, int] = {}
    backbone = modules.get("backbone")
    if isinstance(backbone, Backbone) and optim.layer_decay < 1:
        layers = group_parameters(backbone.model, backbone.model.group_matcher(coarse=False), reverse=True)
        last = max(layers.values())
        depth = {id(p): last - layers[name] for name, p in backbone.model.named_parameters()}
    scales = {}
    for name, parameter in task.named_parameters():
        prefix = max((part for part in optim.lrs if name.startswith(part + ".")), key=len, default=None)
        rate = optim.lr if prefix is None else optim.lrs[prefix]
        scales[id(parameter)] = rate / optim.lr * optim.layer_decay ** depth.get(id(parameter), 0)
    return scales


def schedule(
    optim: PretrainOptim | FinetuneOptim,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    steps_per_epoch: int | None,
) -> Callable[[int], float]:
    """Learning rate by optimizer step (0 = the first).

    The warm-up is linear from peak / warmup_steps; how many steps it has is decided in `training/derived`. `cosine`
    ends at `final_lr` after `total_steps`; `step` and `exponential` count whole epochs, warm-up included.
    """

    def rate(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        if optim.schedule == "cosine":
            done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            final = optim.final_fraction
            return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
        assert isinstance(optim, FinetuneOptim)
        assert steps_per_epoch is not None
        if optim.schedule == "step":
            return peak * optim.gamma ** sum(round(m * steps_per_epoch) <= step for m in optim.milestones)
        if optim.schedule == "exponential":
            return peak * optim.gamma ** (step // steps_per_epoch)
        return peak

    return rate
