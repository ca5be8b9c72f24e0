"""Optimisers of fine-tuning: learning rates by part and depth, and the published schedules."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from facessl.backbones import Backbone
from facessl.errors import UnknownName
from facessl.finetune_config import TuneOptim
from facessl.optim import fused_on_cpu, parameter_groups, warmup_cosine


def build_tuning_optimizer(task: nn.Module, optim: TuneOptim) -> torch.optim.Optimizer:
    """The optimiser of a fine-tuning run.

    Every group carries `lr_scale`, its learning rate over `optim.lr`: of the longest name in `optim.lrs` that the
    parameter's begins with and, in the backbone, `optim.layer_decay` to the power of its layer's distance from the end.

    Args:
        task: its children are the parts: `backbone`, `head`.
        optim: settings.

    Raises:
        UnknownName: `optim.lrs` names no module of the task.
    """
    scales = _scales(task, optim)
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(task, optim.weight_decay):
        del group["adapt"]
        if optim.decay_norms:
            group["weight_decay"] = optim.weight_decay
        for scale in sorted({scales[id(p)] for p in group["params"]}):
            chosen = [p for p in group["params"] if scales[id(p)] == scale]
            groups.append({**group, "params": chosen, "lr_scale": scale})
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
    if optim.name == "adam":  # weight decay inside the gradient, as its published users have it
        return torch.optim.Adam(groups, lr=optim.lr, betas=optim.betas, fused=fused_on_cpu(groups))
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused_on_cpu(groups))


def _scales(task: nn.Module, optim: TuneOptim) -> dict[int, float]:
    """Learning rate of each parameter, by its id, over `optim.lr`."""
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
        own = max((part for part in optim.lrs if name.startswith(part + ".")), key=len, default=None)
        rate = optim.lr if own is None else optim.lrs[own]
        scales[id(parameter)] = rate / optim.lr * optim.layer_decay ** depth.get(id(parameter), 0)
    return scales


def schedule(optim: TuneOptim, *, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Learning rate by optimiser step (0 = the first).

    The warm-up is linear. `cosine` ends at `final_lr`; `step` and `exponential` count whole epochs, warm-up included.
    """
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), total_steps)
    milestones = sorted(round(m * steps_per_epoch) for m in optim.milestones)
    final = optim.final_lr / optim.lr

    def rate(step: int) -> float:
        if optim.schedule == "cosine" or step < warmup:
            return warmup_cosine(step, peak=optim.lr, warmup_steps=warmup, total_steps=total_steps, final=final)
        if optim.schedule == "step":
            return optim.lr * optim.gamma ** bisect.bisect_right(milestones, step)
        if optim.schedule == "exponential":
            return optim.lr * optim.gamma ** math.floor(step / steps_per_epoch)
        return optim.lr

    return rate
