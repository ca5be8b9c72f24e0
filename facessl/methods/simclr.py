"""SimCLR (arXiv:2002.05709): projections of two views of an image find each other among those of all other images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_gather_rows, rank
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FROM_1, POSITIVE, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers.heads import MLPHead
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD
from facessl.views.spec import View

#: Appendix A at color strength 1: both views alike, without solarization.
SIMCLR_VIEW = View(scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grayscale=0.2, blur=0.5)


@dataclass(frozen=True)
class SimCLRArgs:
    """Hyper-parameters of SimCLR; the defaults are its paper's for ResNet-50.

    Attributes:
        hidden: width of the hidden layer of the projector.
        dim: D, width of projections.
        temperature: of the cosines in the loss.
    """

    hidden: int = 2048
    dim: int = 128
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_values(self, {"temperature": POSITIVE, "hidden dim": FROM_1}, prefix="method.")


class SimCLR(nn.Module):
    """A simple framework for contrastive learning (Chen et al., ICML 2020): Eq. 1 over both views of all ranks.

    Differences:
        The projector has one batch norm, behind its first linear (the authors' code has a second one); its
        initialization is that of `MLPHead`. Images are normalized with ImageNet's statistics. Blur has sigma 0.1-2
        at any image size. With gradient accumulation the negatives are those of a micro-batch.
    """

    Args: ClassVar[type[SimCLRArgs]] = SimCLRArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        # 4.8 at the batch size of the paper, 4096
        "optim": {"name": "lars", "lr": 0.3, "reference_batch": 256, "weight_decay": 1e-6}
    }
    views: ClassVar[tuple[View, ...]] = (SIMCLR_VIEW, SIMCLR_VIEW)
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    batch_wide: ClassVar[str] = "the negatives"

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`values` are fields of `SimCLRArgs`."""
        super().__init__()
        self.args = args = SimCLRArgs(**values)
        self.backbone = backbone
        self.projector = MLPHead(backbone.num_features, hidden=args.hidden, out_features=args.dim)

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of two views (B, 3, S, S); logs `nt_xent` and `top1`, the fraction of views that find their partner."""
        x1, x2 = batch.views
        z1, z2 = self.projector(self.backbone(torch.cat([x1, x2]))).chunk(2)  # (2B, D) -> (B, D) each
        loss, top1 = nt_xent(z1, z2, self.args.temperature)
        return Step(loss, {"nt_xent": loss.detach(), "top1": top1})

    def after_step(self, progress: Progress) -> None:
        """Nothing follows."""


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Normalized temperature-scaled cross-entropy (Eq. 1) of this rank's 2B views among the 2WB of all W ranks, from
    projections (B, D) of the two views, in the same order of images; B is the same on every rank. Returns the scalar
    mean over this rank's views, and the fraction of them whose nearest other view is their partner, without gradient.
    """
    count = len(z1)
    with full_precision(z1):
        own = F.normalize(at_least_float32(torch.stack([z1, z2], 1)), dim=-1)  # (B, 2, D)
        gathered = all_gather_rows(own).flatten(0, 1)  # (WB, 2, D) -> (2WB, D), the views of an image side by side
        logits = own.flatten(0, 1) @ gathered.t() / temperature  # (2B, 2WB)
        place = torch.arange(2 * count, device=z1.device)  # row of `own`
        self_place = 2 * count * rank() + place  # the same view among `gathered`
        logits = logits.scatter(1, self_place[:, None], float("-inf"))
        partner = self_place ^ 1  # images start at even places, so that 2i and 2i + 1 are partners
        loss = F.cross_entropy(logits, partner)
    return loss, (logits.detach().argmax(1) == partner).to(loss.dtype).mean()
