"""DINO (arXiv:2104.14294): every crop predicts what a momentum network, the teacher, says of the global crops."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_reduce_mean
from facessl.core.errors import many
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FRACTION, FROM_0, FROM_1, POSITIVE, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers.ema import MomentumUpdate, cosine_momentum, frozen_copy
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD
from facessl.views.spec import View

#: Global crops: the first views, which alone the teacher sees; the student sees all.
GLOBAL = 2

_GLOBAL_CROP: dict[str, Any] = {"scale": (0.4, 1.0)}
_LOCAL_CROP = View(size=96 / 224, scale=(0.05, 0.4), blur=0.5)
#: Two global crops, augmented as BYOL's two views, and eight local ones.
DINO_VIEWS = (View(**_GLOBAL_CROP, blur=1.0), View(**_GLOBAL_CROP, blur=0.1, solarize=0.2), *[_LOCAL_CROP] * 8)


@dataclass(frozen=True)
class DINOArgs:
    """Hyper-parameters of DINO; the defaults are its paper's for ViT-S.

    Attributes:
        hidden_dim: width of the two hidden layers of the head.
        bottleneck_dim: width of the head's output before the last layer.
        out_dim: K, outputs of the last layer.
        student_temp: temperature of the student's softmax.
        teacher_temp: temperature of the teacher's softmax after its warm-up.
        warmup_teacher_temp: temperature of the teacher's softmax at the start; it moves to `teacher_temp` linearly.
        warmup_teacher_temp_epochs: epochs that this takes, at most a third of the run.
        freeze_last_layer_epochs: epochs at the start with a frozen last layer, at most a third of the run.
        center_momentum: of the moving average of the teacher's logits, which is subtracted from them.
        momentum: momentum of the teacher at the start; it rises to 1 by a cosine.
    """

    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    out_dim: int = 65536
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    warmup_teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: float = 30.0
    freeze_last_layer_epochs: float = 1.0
    center_momentum: float = 0.9
    momentum: float = 0.996

    def __post_init__(self) -> None:
        check_values(
            self,
            {
                "hidden_dim bottleneck_dim out_dim": FROM_1,
                "student_temp teacher_temp warmup_teacher_temp": POSITIVE,
                "warmup_teacher_temp_epochs freeze_last_layer_epochs": FROM_0,
                "center_momentum momentum": FRACTION,
            },
            prefix="method.",
        )

    def temperature(self, progress: Progress) -> float:
        """Temperature of the teacher's softmax now."""
        steps = progress.first_steps(self.warmup_teacher_temp_epochs)
        done = min(1.0, progress.step / steps) if steps else 1.0
        return self.warmup_teacher_temp + done * (self.teacher_temp - self.warmup_teacher_temp)

    def frozen(self, progress: Progress) -> bool:
        """Whether the last layer is frozen now."""
        return progress.step < progress.first_steps(self.freeze_last_layer_epochs)


class Head(nn.Module):
    """Three linear layers with GELU between them, unit length, and a last layer whose rows have length 1.

    The last layer is the paper's weight-normalized one with a fixed gain of 1.
    """

    def __init__(self, features: int, args: DINOArgs) -> None:
        """`features` is C, the width of the backbone's embedding."""
        super().__init__()
        width = args.hidden_dim
        first, middle, last = nn.Linear(features, width), nn.Linear(width, width), nn.Linear(width, args.bottleneck_dim)
        self.layers = nn.Sequential(first, nn.GELU(), middle, nn.GELU(), last)
        self.last = nn.Parameter(torch.randn(args.out_dim, args.bottleneck_dim))
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
        The temperature's warm-up and the freezing of the last layer take at most a third of the run; the temperature
        moves with each step (there once per epoch), and a frozen last layer has a zero gradient. Drop path is left to
        `--backbone.options '{drop_path_rate: 0.1}'`, and is then also in the teacher (there it is not). Weight decay is
        not scheduled. All: docs/methods/dino.md.
    """

    Args: ClassVar[type[DINOArgs]] = DINOArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        "optim": {"name": "adamw", "lr": 5e-4, "reference_batch": 256, "weight_decay": 0.04, "final_lr": 0.0005},
        "clip_grad": 3.0,
    }
    views: ClassVar[tuple[View, ...]] = DINO_VIEWS
    view_count: ClassVar[tuple[int, int | None]] = (GLOBAL, None)
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`backbone` takes views of several sizes from now on, if it can; `values` are fields of `DINOArgs`."""
        super().__init__()
        self.args = args = DINOArgs(**values)
        self.backbone = backbone
        self.backbone.take_any_size()
        self.head = Head(backbone.num_features, args)
        # The teacher; every method's momentum network is called target_.
        self.target_backbone = frozen_copy(self.backbone)
        self.target_head = frozen_copy(self.head)
        self.center = nn.Buffer(torch.zeros(args.out_dim))
        self._follow = MomentumUpdate((self.backbone, self.target_backbone), (self.head, self.target_head))
        self._logit_sums: list[Tensor] = []  # of the teacher's mean logits over the micro-batches, and their number

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of V >= 2 views (B, 3, S_v, S_v), the first two of them the global crops.

        Logs `self_distillation`, the loss, and `target_entropy`, that of the targets: ln K where all outputs are alike
        (too high a temperature), 0 if they have collapsed to one.
        """
        views, frozen = batch.views, self.args.frozen(progress)
        student = self.head(self.backbone.forward_views(views).flatten(0, 1), frozen=frozen)  # (VB, K)
        with torch.no_grad():
            pooled = self.target_backbone.forward_views(views[:GLOBAL]).flatten(0, 1)
            teacher = self.target_head(pooled).unflatten(0, (GLOBAL, -1))  # (2, B, K)
        with full_precision(student):
            targets = ((teacher - self.center) / self.args.temperature(progress)).softmax(-1)
            predictions = (student / self.args.student_temp).log_softmax(-1).unflatten(0, (len(views), -1))
            loss = distillation(predictions, targets)
            entropy = torch.special.entr(targets).sum(-1).mean()
        if self.training and torch.is_grad_enabled():
            logits = torch.cat([teacher.mean((0, 1)), teacher.new_ones(1)])  # (K + 1,)
            self._logit_sums = [sum(self._logit_sums, logits)]
        return Step(loss, {"self_distillation": loss.detach(), "target_entropy": entropy})

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Moves the teacher, and the center by the mean logits of all ranks."""
        self._follow(self.ema_momentum(progress))
        if self._logit_sums:
            sums = all_reduce_mean(self._logit_sums.pop())
            self.center.lerp_((sums[:-1] / sums[-1]).to(self.center), 1 - self.args.center_momentum)

    def ema_momentum(self, progress: Progress) -> float:
        """Momentum of the teacher now."""
        return cosine_momentum(self.args.momentum, progress.fraction)

    def schedule(self, progress: Progress) -> str:
        """The warm-up of the teacher's temperature and the freezing of the last layer, in steps of this run."""
        warmup, frozen = (
            many(progress.first_steps(epochs), "step")
            for epochs in (self.args.warmup_teacher_temp_epochs, self.args.freeze_last_layer_epochs)
        )
        temp = f"{self.args.teacher_temp:g}"
        return f"teacher temperature {temp} after {warmup}, last layer frozen for {frozen} (at most a third of the run)"


def distillation(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (Eq. 3) of log-probabilities (V, B, K) of all crops and targets (2, B, K) of the global ones,
    over all pairs of different views and the batch -> scalar."""
    views, count = predictions.shape[:2]
    every = -torch.einsum("sbk,tbk->", targets, predictions)
    same = -(targets * predictions[:GLOBAL]).sum()
    return (every - same) / (count * GLOBAL * (views - 1))
