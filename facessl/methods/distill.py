"""Distillation of a frozen network: a student learns its pooled embedding and its feature map, without labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.errors import ConfigError
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FROM_0, FROM_1, check_values
from facessl.models.backbone import Backbone
from facessl.models.teacher import Loader, Teacher
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD
from facessl.views.spec import View

#: One crop, which teacher and student both see, with a change of colors.
DISTILL_VIEWS = (View(scale=(0.4, 1.0)),)


@dataclass(frozen=True)
class DistillArgs:
    """Hyper-parameters of distillation.

    Attributes:
        teacher: the frozen network: a run folder, a checkpoint, an exported backbone or `timm:NAME`.
        teacher_dim: channels of the teacher's features, to which the student's are projected.
        distance: "cosine": 1 - cos; "l2": mean squared difference to the teacher's features, brought to mean 0 and
            variance 1 over their channels.
        pooled_weight: weight of the pooled embedding; 0 leaves it out.
        map_weight: weight of the feature map; 0 leaves it out.
    """

    teacher: str = ""
    teacher_dim: int = 768
    distance: Literal["cosine", "l2"] = "cosine"
    pooled_weight: float = 1.0
    map_weight: float = 1.0

    def __post_init__(self) -> None:
        check_values(self, {"teacher_dim": FROM_1, "pooled_weight map_weight": FROM_0}, prefix="method.")
        if self.pooled_weight == self.map_weight == 0:
            raise ConfigError("pooled_weight and map_weight are 0: give one of them more than 0")


class Distill(nn.Module):
    """A student whose projected features approach those of a frozen teacher (FitNets: Romero et al., ICLR 2015).

    Both see the same crop. The pooled embedding by a linear layer and the map by a 1x1 convolution are projected to the
    teacher's channels; the finer of the two maps is averaged to the grid of the coarser one.

    Differences:
        No one paper: pooled embedding and map by cosines are AM-RADIO's terms (Ranzinger et al., CVPR 2024) without its
        smooth L1 term and with equal weights; "l2" with standardized targets is that of feature distillation (Wei et
        al., arXiv:2205.14141) without its smooth transition. The teacher sees images of the student's size.
    """

    Args: ClassVar[type[DistillArgs]] = DistillArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        "optim": {"name": "adamw", "lr": 5e-4, "reference_batch": 256, "weight_decay": 0.05}
    }
    views: ClassVar[tuple[View, ...]] = DISTILL_VIEWS
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`backbone` is the student; `values` are fields of `DistillArgs`."""
        super().__init__()
        self.args = args = DistillArgs(**values)
        self.backbone = backbone
        width = backbone.num_features
        self.pooled_projection = nn.Linear(width, args.teacher_dim) if args.pooled_weight else None
        self.map_projection = nn.Conv2d(width, args.teacher_dim, 1) if args.map_weight else None
        self.teacher = Teacher(args.teacher, blocks=(), mean=backbone.mean, std=backbone.std)

    def prepare(self, loader: Loader) -> None:
        """Read the teacher. ConfigError: none is named, or its features have another width."""
        if not self.args.teacher:
            raise ConfigError(
                "distill has no teacher: name a run folder, a checkpoint or timm:NAME by --method.teacher"
            )
        width = self.teacher.load(loader, self.backbone.image_size).num_features
        if width != self.args.teacher_dim:
            raise ConfigError(
                f"teacher {self.args.teacher} has features of {width} channels, and teacher_dim is "
                f"{self.args.teacher_dim}: give --method.teacher-dim {width}"
            )

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of one view (B, 3, S, S); logs `pooled_distance` and `map_distance`, unweighted, as far as turned on."""
        (x,) = batch.views
        features, pooled = self.backbone.forward_both(x)
        with torch.no_grad():
            target_map, target_pooled = self.teacher.both(x)
        terms = {}
        if self.pooled_projection is not None:
            terms["pooled_distance"] = self._distance(self.pooled_projection(pooled), target_pooled)
        if self.map_projection is not None:
            grid = (min(features.shape[2], target_map.shape[2]), min(features.shape[3], target_map.shape[3]))
            student, teacher = (F.adaptive_avg_pool2d(m, grid) for m in (self.map_projection(features), target_map))
            terms["map_distance"] = self._distance(student, teacher)
        weights = {"pooled_distance": self.args.pooled_weight, "map_distance": self.args.map_weight}
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return Step(loss, {name: value.detach() for name, value in terms.items()})

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean distance of features (B, W, ...) -> scalar, at least float32."""
        with full_precision(student):
            student, teacher = (at_least_float32(f.movedim(1, -1)) for f in (student, teacher))  # (B, ..., W)
            if self.args.distance == "cosine":
                return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
            return F.mse_loss(student, F.layer_norm(teacher, teacher.shape[-1:]))

    def after_step(self, progress: Progress) -> None:
        """Nothing to move."""
