"""Sizes of a method's network and of its step, counted on torch's meta device: seconds, and no memory for weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from facessl.config.pretrain import PretrainConfig
from facessl.core import plugins
from facessl.core.types import Batch, Progress
from facessl.pretrained import load

#: Images of the counted batch. What grows with its square (negatives) is left out of a count per image that way.
IMAGES = 4


@dataclass(frozen=True)
class Size:
    """Numbers of a method's network.

    Attributes:
        trained: parameters with a gradient, what is all-reduced.
        kept: elements of the state dict, with momentum networks and statistics; what a checkpoint holds.
        norms: batch norms.
    """

    trained: int
    kept: int
    norms: int


@dataclass(frozen=True)
class Cost:
    """Numbers of one step on one micro-batch.

    Attributes:
        flops: floating-point operations of products and convolutions per image, forward and backward; None where the
            step cannot be run on the meta device (masks, mixing and captions are drawn on a real one).
        messages: of batch norm over the ranks: one forward for each call on training statistics, one backward for
            each that has a gradient. Where the step cannot be run: both for every norm and view.
    """

    flops: float | None
    messages: int


def build(settings: PretrainConfig) -> Any:
    """The method that `settings` build, on the meta device, in training mode."""
    kind = plugins.find("methods", settings.method["name"])
    unread: frozenset[str] = getattr(kind, "initial", frozenset())
    method = {key: value for key, value in settings.method.items() if key not in unread}
    backbone = dataclasses.replace(settings.backbone, pretrained=False)
    with torch.device("meta"):
        module: Any = load.build_method(dataclasses.replace(settings, method=method, backbone=backbone))
    return module.train()


def size(module: nn.Module) -> Size:
    """Parameters and norms of `module`."""
    return Size(
        trained=sum(p.numel() for p in module.parameters() if p.requires_grad),
        kept=sum(t.numel() for t in module.state_dict().values()),
        norms=sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()),
    )


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """Precision changes no count, and torch has no autocast for tensors without memory."""
    real: Any = torch.autocast
    torch.autocast = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = real  # type: ignore[misc]


def cost(module: Any, settings: PretrainConfig) -> Cost:
    """What a step of `module`, a method that `build` made, asks for."""
    views = [round(view.size * settings.image_size) for view in settings.views or module.views]
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    messages = 0

    def called(norm: Any, *_: Any) -> None:
        nonlocal messages
        messages += (1 + torch.is_grad_enabled()) if norm.training else 0

    handles = [norm.register_forward_hook(called) for norm in norms]
    try:
        with torch.device("meta"), _without_autocast(), FlopCounterMode(display=False) as counter:
            images = [torch.empty(IMAGES, 3, side, side) for side in views]
            loss = module.step(Batch(images, [], torch.arange(IMAGES)), Progress(step=0, total_steps=1)).loss
            loss.backward()
    except Exception:  # whatever a method does that has no meaning without memory; there is no list of errors for it
        return Cost(None, 2 * len(norms) * len(views))
    finally:
        for handle in handles:
            handle.remove()
    return Cost(counter.get_total_flops() / IMAGES, messages)
