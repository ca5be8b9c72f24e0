"""LEWEL (arXiv:2203.14898): the projector's pixels say where to look; aligned and global embeddings are predicted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.errors import ConfigError
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FRACTION, FROM_1, POSITIVE, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers.ema import MomentumUpdate, cosine_momentum, frozen_copy
from facessl.models.layers.heads import MLPHead
from facessl.models.layers.losses import mean_cosine
from facessl.views.normalize import VGGFACE2_MEAN, VGGFACE2_STD
from facessl.views.spec import FRA_VIEWS, View

#: Variant -> momentum at the start, as the released scripts have it.
MOMENTUM = {"eman": 0.98, "syncbn": 0.996}


@dataclass(frozen=True)
class LEWELArgs:
    """Hyper-parameters of LEWEL-B (LEWEL on BYOL); the defaults are those of the released scripts.

    Attributes:
        variant: what the target network does with batch norm. "eman": its statistics are moving averages of the
            online network's, and it runs in evaluation mode; "syncbn": they come from its own batches, as in BYOL.
        heads: groups that alignment maps and channels of the backbone's map are cut in. It must divide `dim` and the
            backbone's channels; there are dim / heads aligned embeddings.
        scale: temperature of the softmax that makes the alignment maps.
        global_weight: weight of the global term in the loss, 0 to 1; the aligned term has the rest. A term of weight 0
            is still computed.
        momentum: momentum of the target network at the start; it rises to 1 by a cosine. null: 0.98 in "eman",
            0.996 in "syncbn".
        hidden: width of the hidden layer of projectors and predictors.
        dim: D, width of projections and predictions, and number of alignment maps.
    """

    variant: Literal["eman", "syncbn"] = "eman"
    heads: int = 4
    scale: float = 1.0
    global_weight: float = 0.5
    momentum: float | None = None
    hidden: int = 4096
    dim: int = 256

    def __post_init__(self) -> None:
        check_values(
            self, {"global_weight momentum": FRACTION, "scale": POSITIVE, "heads hidden dim": FROM_1}, prefix="method."
        )
        if self.dim % self.heads:
            raise ConfigError(f"method.heads is {self.heads}: give a divisor of dim, {self.dim}")


class AlignedHeads(nn.Module):
    """Projector and slot projector that follow the backbone in both networks."""

    def __init__(self, features: int, args: LEWELArgs) -> None:
        """`features` is C, the channels of the backbone's map; ConfigError if `args.heads` does not divide it."""
        super().__init__()
        if features % args.heads:
            raise ConfigError(f"method.heads is {args.heads}: give a divisor of the backbone's channels, {features}")
        self.heads = args.heads
        self.scale = args.scale
        self.projector = MLPHead(features, hidden=args.hidden, out_features=args.dim)
        self.slot_projector = MLPHead(features, hidden=args.hidden, out_features=args.dim)

    def forward(self, features: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, h, w) and pooled embedding (B, C) -> global z (B, D), aligned (B, K, D) with K = D / heads."""
        z, maps = self.project(features, pooled)
        return z, self.aligned(features, maps)

    def project(self, features: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Global z (B, D) and the alignment maps (B, heads, K, hw), which sum to 1 over the hw pixels."""
        # One pass over the pooled vector and all pixels: the projector's batch norm sees 1 + hw vectors per image.
        vectors = torch.cat([pooled.unsqueeze(2), features.flatten(2)], dim=2)  # (B, C, 1 + hw)
        projected = self.projector(vectors)  # (B, D, 1 + hw)
        with full_precision(projected):
            pixels = F.normalize(at_least_float32(projected[..., 1:]), dim=1)  # over all D, before the cut in heads
            maps = (pixels / self.scale).softmax(2)
        return projected[..., 0], maps.unflatten(1, (self.heads, -1))  # (B, D, hw) -> (B, heads, K, hw)

    def aligned(self, features: Tensor, maps: Tensor) -> Tensor:
        """Map (B, C, h, w), averaged by `maps` (B, heads, K, hw), each group by its own -> (B, K, D)."""
        groups = features.flatten(2).unflatten(1, (self.heads, -1))  # (B, C, hw) -> (B, heads, C / heads, hw)
        slots = groups @ maps.transpose(2, 3).to(groups.dtype)  # (B, heads, C / heads, K)
        return self.slot_projector(slots.flatten(1, 2)).transpose(1, 2)  # (B, C, K) -> (B, K, D)


class LEWEL(nn.Module):
    """Learning where to learn (Huang et al., CVPR 2022) on BYOL, LEWEL-B, the baseline of FRA's Tables 2-4.

    A pixel's projection by the global projector is cut in heads; its softmax over the pixels gives alignment maps,
    which average the feature map group by group into K aligned embeddings (`AlignedHeads`). Both the global and the
    aligned embeddings of the target network are predicted from the other view: sum over both directions of
    w (2 - 2 cos)_global + (1 - w) (2 - 2 cos)_aligned.

    There is no `heatmaps`: alignment maps (`heads.project`) sum to 1 over the pixels, so that they are no regions.

    Differences:
        Written from the released code, whose two versions are the variants; 4 heads are those of its scripts. The views
        are FRA's; the pooled embedding is what the backbone exports (of a ViT the class token). Where batch norm does
        not span the ranks, the target of "eman" follows the mean of their statistics. All: docs/methods/lewel.md.
    """

    Args: ClassVar[type[LEWELArgs]] = LEWELArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        # of the variant eman, the default: 3.6 at 1024; syncbn: 7.2 at 4096 and a decay of 1e-6
        "optim": {"name": "lars", "lr": 0.9, "reference_batch": 256, "weight_decay": 1.5e-6}
    }
    views: ClassVar[tuple[View, ...]] = FRA_VIEWS
    mean: ClassVar[tuple[float, float, float]] = VGGFACE2_MEAN
    std: ClassVar[tuple[float, float, float]] = VGGFACE2_STD

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`values` are fields of `LEWELArgs`."""
        super().__init__()
        self.args = args = LEWELArgs(**values)
        self.backbone = backbone
        self.heads = AlignedHeads(backbone.num_features, args)
        self.predictor = MLPHead(args.dim, hidden=args.hidden, out_features=args.dim)
        self.slot_predictor = MLPHead(args.dim, hidden=args.hidden, out_features=args.dim)
        self.target_backbone = frozen_copy(self.backbone)
        self.target_heads = frozen_copy(self.heads)
        self._follow = MomentumUpdate(
            (self.backbone, self.target_backbone), (self.heads, self.target_heads), buffers=args.variant == "eman"
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the target of "eman" stays in evaluation mode and uses the averaged statistics."""
        super().train(mode)
        if self.args.variant == "eman":
            self.target_backbone.eval()
            self.target_heads.eval()
        return self

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of two views (B, 3, S, S); logs `global_consistency` and `aligned_consistency`, sums of 2 - 2 cos over
        both directions."""
        online = [self.heads(*self.backbone.forward_both(x)) for x in batch.views]
        with torch.no_grad():
            target = [self.target_heads(*self.target_backbone.forward_both(x)) for x in batch.views]
        whole, aligned = [], []
        for (z, slots), (target_z, target_slots) in zip(online, reversed(target), strict=True):
            predicted = self.slot_predictor(slots.transpose(1, 2)).transpose(1, 2)  # (B, K, D)
            whole.append(2 - 2 * mean_cosine(self.predictor(z), target_z))
            aligned.append(2 - 2 * mean_cosine(predicted, target_slots))
        terms = {"global_consistency": whole[0] + whole[1], "aligned_consistency": aligned[0] + aligned[1]}
        weight = self.args.global_weight
        loss = weight * terms["global_consistency"] + (1 - weight) * terms["aligned_consistency"]
        return Step(loss, {name: value.detach() for name, value in terms.items()})

    def after_step(self, progress: Progress) -> None:
        """Moves the target network."""
        self._follow(self.ema_momentum(progress))

    def ema_momentum(self, progress: Progress) -> float:
        """Momentum of the target network now."""
        start = MOMENTUM[self.args.variant] if self.args.momentum is None else self.args.momentum
        return cosine_momentum(start, progress.fraction)
