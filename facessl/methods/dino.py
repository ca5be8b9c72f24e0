"""DINO (arXiv:2104.14294): every crop predicts what a momentum network says of the large crops of its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_reduce_mean
from facessl.core.errors import ConfigError
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FRACTION, FROM_0, FROM_1, POSITIVE, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers.ema import MomentumUpdate, cosine_momentum, frozen_copy
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD
from facessl.views.spec import View

#: The momentum network sees these views alone, the first ones; the trained one sees all.
GLOBAL = 2

_WHOLE: dict[str, Any] = {"scale": (0.4, 1.0)}
_LOCAL = View(size=96 / 224, scale=(0.05, 0.4), blur=0.5)
#: Two large crops, augmented as BYOL's two views, and eight small ones.
DINO_VIEWS = (View(**_WHOLE, blur=1.0), View(**_WHOLE, blur=0.1, solarize=0.2), *[_LOCAL] * 8)


@dataclass(frozen=True)
class DINOArgs:
    """Hyper-parameters of DINO; the defaults are its paper's for ViT-S.

    Attributes:
        hidden: width of the two hidden layers of the head.
        dim: width of the head's output before the last layer.
        prototypes: K, outputs of the last layer.
        student_temperature: of the predictions.
        teacher_temperature: of the targets after their warm-up.
        warmup_temperature: of the targets at the start; it moves to `teacher_temperature` linearly.
        warmup_steps: optimizer steps of that warm-up; 37,530 are the paper's 30 epochs of ImageNet in batches of 1024.
        frozen_steps: optimizer steps at the start with a frozen last layer; 1,251 are an epoch of ImageNet.
        center_momentum: of the moving average of the targets' logits, which is subtracted from them.
        momentum: momentum of the target network at the start; it rises to 1 by a cosine.
    """

    hidden: int = 2048
    dim: int = 256
    prototypes: int = 65536
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    warmup_temperature: float = 0.04
    warmup_steps: int = 37530
    frozen_steps: int = 1251
    center_momentum: float = 0.9
    momentum: float = 0.996

    def __post_init__(self) -> None:
        check_values(
            self,
            {
                "hidden dim prototypes": FROM_1,
                "student_temperature teacher_temperature warmup_temperature": POSITIVE,
                "warmup_steps frozen_steps": FROM_0,
                "center_momentum momentum": FRACTION,
            },
        )

    def temperature(self, step: int) -> float:
        """Temperature of the targets in this step."""
        done = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return self.warmup_temperature + done * (self.teacher_temperature - self.warmup_temperature)


class Head(nn.Module):
    """Three linear layers with GELU between them, unit length, and a last layer whose rows have length 1.

    The last layer is the paper's weight-normalized one with a fixed gain of 1.
    """

    def __init__(self, features: int, args: DINOArgs) -> None:
        """`features` is C, the width of the backbone's embedding."""
        super().__init__()
        first, middle = nn.Linear(features, args.hidden), nn.Linear(args.hidden, args.hidden)
        self.layers = nn.Sequential(first, nn.GELU(), middle, nn.GELU(), nn.Linear(args.hidden, args.dim))
        self.last = nn.Parameter(torch.randn(args.prototypes, args.dim))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """(B, C) -> logits (B, K), at least float32; `frozen` gives the last layer a gradient of zero."""
        # Not detached alone: DDP waits for a gradient of every parameter.
        last = self.last.detach() + 0 * self.last if frozen else self.last
        z = self.layers(x)
        with full_precision(z):
            return F.normalize(at_least_float32(z), dim=1) @ F.normalize(at_least_float32(last), dim=1).t()


class DINO(nn.Module):
    """Self-distillation with no labels (Caron et al., ICCV 2021), Eq. 1-4 with multi-crop, centering and sharpening.

    Differences:
        Warm-up of the temperature and freezing of the last layer are counted in steps, the temperature moves with each
        of them (there once per epoch), and a frozen last layer has a zero gradient. Drop path is left to
        `--backbone.options '{drop_path_rate: 0.1}'`, and is then also in the momentum network (there it is not). Weight
        decay is not scheduled. All: docs/methods.md.
    """

    Args: ClassVar[type[DINOArgs]] = DINOArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    views: ClassVar[tuple[View, ...]] = DINO_VIEWS
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`backbone` takes views of several sizes from now on, if it can; `values` are fields of `DINOArgs`."""
        super().__init__()
        self.args = args = DINOArgs(**values)
        self.backbone = backbone
        self.backbone.take_any_size()
        self.head = Head(backbone.num_features, args)
        self.target_backbone = frozen_copy(self.backbone)
        self.target_head = frozen_copy(self.head)
        self.center = nn.Buffer(torch.zeros(args.prototypes))
        self._follow = MomentumUpdate((self.backbone, self.target_backbone), (self.head, self.target_head))
        self._noted: list[Tensor] = []  # sum of the targets' mean logits over the micro-batches, and their number

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of V >= 2 views (B, 3, S_v, S_v), the first two of them large.

        Logs `self_distillation`, the loss, and `target_entropy`, that of the targets: ln K where all outputs are alike
        (too high a temperature), 0 where they have collapsed to one.
        """
        views = batch.views
        if len(views) < GLOBAL:
            raise ConfigError(f"DINO got {len(views)} view: give it at least {GLOBAL} with --views")
        frozen = progress.step < self.args.frozen_steps
        student = self.head(self.backbone.forward_views(views).flatten(0, 1), frozen=frozen)  # (VB, K)
        with torch.no_grad():
            pooled = self.target_backbone.forward_views(views[:GLOBAL]).flatten(0, 1)
            teacher = self.target_head(pooled).unflatten(0, (GLOBAL, -1))  # (2, B, K)
        with full_precision(student):
            targets = ((teacher - self.center) / self.args.temperature(progress.step)).softmax(-1)
            predictions = (student / self.args.student_temperature).log_softmax(-1).unflatten(0, (len(views), -1))
            loss = distillation(predictions, targets)
            entropy = torch.special.entr(targets).sum(-1).mean()
        if self.training and torch.is_grad_enabled():
            noted = torch.cat([teacher.mean((0, 1)), teacher.new_ones(1)])  # (K + 1,)
            self._noted = [self._noted[0] + noted] if self._noted else [noted]
        return Step(loss, {"self_distillation": loss.detach(), "target_entropy": entropy})

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Moves the target network, and the center by the mean logits of all ranks."""
        self._follow(self.ema_momentum(progress))
        if self._noted:
            noted = all_reduce_mean(self._noted.pop())
            self.center.lerp_((noted[:-1] / noted[-1]).to(self.center), 1 - self.args.center_momentum)

    def ema_momentum(self, progress: Progress) -> float:
        """Momentum of the target network now."""
        return cosine_momentum(self.args.momentum, progress.fraction)


def distillation(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (Eq. 3) of log-probabilities (V, B, K) of all views and targets (2, B, K) of the first two,
    over all pairs of different views and the batch -> scalar."""
    views, count = predictions.shape[:2]
    every = -torch.einsum("sbk,tbk->", targets, predictions)
    same = -(targets * predictions[:GLOBAL]).sum()
    return (every - same) / (count * GLOBAL * (views - 1))
