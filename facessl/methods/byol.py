"""BYOL (arXiv:2006.07733): an online network predicts the target network's projection of another view."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FRACTION, FROM_1, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers.ema import MomentumUpdate, cosine_momentum, frozen_copy
from facessl.models.layers.heads import MLPHead
from facessl.models.layers.losses import mean_cosine
from facessl.views.normalize import VGGFACE2_MEAN, VGGFACE2_STD
from facessl.views.spec import FRA_VIEWS, View


@dataclass(frozen=True)
class BYOLArgs:
    """Hyper-parameters of BYOL; the defaults are its paper's.

    Attributes:
        hidden: width of the hidden layer of projector and predictor.
        dim: D, width of projections and predictions.
        momentum: momentum of the target network at the start; it rises to 1 by a cosine.
    """

    hidden: int = 4096
    dim: int = 256
    momentum: float = 0.996

    def __post_init__(self) -> None:
        check_values(self, {"momentum": FRACTION, "hidden dim": FROM_1}, prefix="method.")


class BYOL(nn.Module):
    """Bootstrap your own latent (Grill et al., NeurIPS 2020): Eq. 2 on both views, symmetrized by the sum.

    Differences:
        Views and initialization of the heads are FRA's, because BYOL is here the first row of FRA's Table 5 (BYOL's own
        crop scale is 0.08-1). A timm ResNet starts with the last batch-norm scale of every block at 0.
    """

    Args: ClassVar[type[BYOLArgs]] = BYOLArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    views: ClassVar[tuple[View, ...]] = FRA_VIEWS
    mean: ClassVar[tuple[float, float, float]] = VGGFACE2_MEAN
    std: ClassVar[tuple[float, float, float]] = VGGFACE2_STD

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`values` are fields of `BYOLArgs`."""
        super().__init__()
        self.args = args = BYOLArgs(**values)
        self.backbone = backbone
        self.projector = MLPHead(backbone.num_features, hidden=args.hidden, out_features=args.dim)
        self.predictor = MLPHead(args.dim, hidden=args.hidden, out_features=args.dim)
        self.target_backbone = frozen_copy(self.backbone)
        self.target_projector = frozen_copy(self.projector)
        self._follow = MomentumUpdate((self.backbone, self.target_backbone), (self.projector, self.target_projector))

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of two views (B, 3, S, S); logs `global_consistency`, the sum of 2 - 2 cos over both directions."""
        x1, x2 = batch.views
        p1, p2 = (self.predictor(self.projector(self.backbone(x))) for x in (x1, x2))  # (B, D)
        with torch.no_grad():
            z1, z2 = (self.target_projector(self.target_backbone(x)) for x in (x1, x2))
        loss = (2 - 2 * mean_cosine(p1, z2)) + (2 - 2 * mean_cosine(p2, z1))
        return Step(loss, {"global_consistency": loss.detach()})

    def after_step(self, progress: Progress) -> None:
        """Moves the target network."""
        self._follow(self.ema_momentum(progress))

    def ema_momentum(self, progress: Progress) -> float:
        """Momentum of the target network now."""
        return cosine_momentum(self.args.momentum, progress.fraction)
