"""FRA: global and local consistency of faces with learned region heatmaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_reduce_mean, rank_mean
from facessl.core.errors import ConfigError, DataError
from facessl.core.precision import at_least_float32
from facessl.core.types import Batch, Progress, Step
from facessl.models.backbone import Backbone
from facessl.models.layers import frame
from facessl.models.layers.ema import MomentumUpdate, cosine_momentum, frozen_copy
from facessl.models.layers.heads import MLPHead
from facessl.models.layers.losses import mean_cosine
from facessl.models.layers.region_heads import Outputs, RegionHeads
from facessl.models.layers.sinkhorn import sinkhorn
from facessl.views.spec import FRA_VIEWS, VGGFACE2_MEAN, VGGFACE2_STD, View


class Variant(NamedTuple):
    """Where the paper and the released code part.

    Attributes:
        decoder_layers: default number of decoder layers.
        decorrelation_weight: default weight of the decorrelation term within the local term.
        heatmap_temperature: default temperature of the heatmaps; None: the student temperature.
        mask_embeddings: default of one set per "image", or of their average over the global "batch".
        separate: regions have a projector of their own (else the pixels' local projector).
        cosine_scale, cosine_offset: a similarity term is offset - scale * cos.
        relation_scale: factor of the relation term and of ME-MAX, which are sums over both views.
    """

    decoder_layers: int
    decorrelation_weight: float
    heatmap_temperature: float | None
    mask_embeddings: Literal["image", "batch"]
    separate: bool
    cosine_scale: float
    cosine_offset: float
    relation_scale: float


VARIANTS = {
    "paper": Variant(1, 0.0, None, "image", False, 1.0, 0.0, 1.0),
    "official": Variant(2, 0.02, 1.0, "batch", True, 2.0, 2.0, 0.5),
}


@dataclass(frozen=True)
class FRAArgs:
    """Hyper-parameters of FRA; the defaults are its paper's, None means "as the variant has it".

    What the paper leaves open has the released code's value and says so.

    Attributes:
        variant: "paper" (Eq. 1-8) or "official" (the released code; see `FRA`, Differences).
        use_global: Table 5's term GC. A term that is off costs nothing.
        use_local: Table 5's term LC.
        use_relation: Table 5's term SR.
        num_regions: N, number of heatmaps (Table 6).
        lambda_c: share of the global term in Eq. 6, 0 to 1; where only one of the two terms is on, it has the whole
            weight, so that 1.0 (Table 7) is the same as `use_local=False`.
        lambda_r: weight of the relation term in Eq. 8 (Table 7); 0 turns it off. In the official variant x weighs as
            x / 4 does in Eq. 8: the term is the mean over the two views, and 2 - 2 cos has twice the slope of -cos.
        relation: whose assignments the relation term compares. "within": student and teacher of the same view (Eq. 2).
            "across": the student's of one view and the teacher's of the other one, read at the places of the image
            that both show. "both": the mean of the two terms, so that lambda_r weighs alike in all three. "across" and
            "both" are this project's.
        frame_prior: weight of a learned table (N, 12, 12) over the stored image that is added to the cosines of every
            cell, read at the cell's place in the image; 0 (the paper) leaves the table out. This project's. It
            assumes that faces lie about alike in the stored images; in `heatmaps` the image given is the stored one.
        decoder_layers: layers of the mask decoder (Table 8), 1 in the paper and 2 in the released code;
            0 turns the local and the relation term off, which is BYOL, as in the table.
        momentum: momentum of the target network at the start (BYOL); it rises to 1 by a cosine.
        student_temperature: of the online assignments in Eq. 2. Open in the paper.
        teacher_temperature: of the target assignments in Eq. 2. Open in the paper.
        heatmap_temperature: of the softmax that makes the heatmaps of Eq. 4, in both networks. None: the student
            temperature in the paper's variant (section 3.2: the vector of M at a pixel is s of Eq. 2), 1.0 in the
            official one. At 1.0 no region can exceed another by more than e^2 : 1 at a pixel, because cosines
            differ by at most 2.
        mask_embeddings: "image": every image and view has its own (section 3.2); "batch": their average over the
            batch and all ranks serves every image, and `heatmaps` uses a running average of it, the prototype;
            "free" (this project's): N learned vectors without a mask decoder, whose settings then mean nothing.
            None: "image" in the paper's variant, "batch" in the official one.
        query_std: standard deviation of the initial queries (of the mask embeddings where they are "free"). Open in
            the paper; a larger one breaks the symmetry between the regions sooner.
        memax_weight: weight of ME-MAX beside the cross-entropy of Eq. 3. Open in the paper.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp on the target assignments. Open in the paper.
        decorrelation_weight: weight of the released code's decorrelation of regions; 0 in the paper.
        hidden: width of the hidden layer of projectors and predictors (BYOL).
        dim: D, width of projections, predictions and mask embeddings (BYOL).
        decoder_width: channels of the mask decoder. Open in the paper.
        decoder_heads: attention heads of the mask decoder. Open in the paper.
        decoder_feed_forward: hidden width of the decoder's feed-forward layers. Open in the paper.
        dropout: of the mask decoder, active in both networks. Open in the paper; at 0.1 with one set of mask
            embeddings per image it is larger than the initial differences between the regions and keeps the
            heatmaps uniform (docs/results.md).
    """

    variant: Literal["paper", "official"] = "paper"
    use_global: bool = True
    use_local: bool = True
    use_relation: bool = True
    num_regions: int = 8
    lambda_c: float = 0.5
    lambda_r: float = 0.1
    relation: Literal["within", "across", "both"] = "within"
    frame_prior: float = 0.0
    decoder_layers: int | None = None
    momentum: float = 0.996
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    heatmap_temperature: float | None = None
    mask_embeddings: Literal["image", "batch", "free"] | None = None
    query_std: float = 1.0
    memax_weight: float = 1.0
    sinkhorn_iterations: int = 3
    decorrelation_weight: float | None = None
    hidden: int = 4096
    dim: int = 256
    decoder_width: int = 256
    decoder_heads: int = 8
    decoder_feed_forward: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, known in (
            ("variant", [*VARIANTS]),
            ("relation", ["within", "across", "both"]),
            ("mask_embeddings", ["image", "batch", "free", None]),
        ):
            if (choice := getattr(self, name)) not in known:
                raise ConfigError(f"{name} is {choice!r}: give one of {', '.join(map(str, known))}")
        ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("lambda_c momentum dropout", lambda v: 0 <= v <= 1, "a number from 0 to 1"),
            ("student_temperature teacher_temperature heatmap_temperature query_std", lambda v: v > 0, "more than 0"),
            ("lambda_r frame_prior memax_weight sinkhorn_iterations decoder_layers", lambda v: v >= 0, "0 or more"),
            ("num_regions hidden dim decoder_heads decoder_feed_forward", lambda v: v >= 1, "1 or more"),
        )
        for names, valid, wanted in ranges:
            for name in names.split():
                if (value := getattr(self, name)) is not None and not valid(value):
                    raise ConfigError(f"{name} is {value}: give {wanted}")
        if self.decoder_width % (4 * self.decoder_heads):
            raise ConfigError(
                f"decoder_width is {self.decoder_width}: give a multiple of 4 x decoder_heads, {4 * self.decoder_heads}"
            )

    @property
    def rules(self) -> Variant:
        """What the variant fixes."""
        return VARIANTS[self.variant]

    @property
    def layers(self) -> int:
        """Decoder layers in force."""
        return self.rules.decoder_layers if self.decoder_layers is None else self.decoder_layers

    @property
    def temperature(self) -> float:
        """Temperature of the heatmaps in force."""
        own = self.rules.heatmap_temperature if self.heatmap_temperature is None else self.heatmap_temperature
        return self.student_temperature if own is None else own

    @property
    def decoder(self) -> dict[str, Any]:
        """Sizes of the mask decoder in force."""
        return {
            "layers": self.layers,
            "width": self.decoder_width,
            "heads": self.decoder_heads,
            "feed_forward": self.decoder_feed_forward,
            "dropout": self.dropout,
        }

    @property
    def averaged(self) -> bool:
        """Whether mask embeddings are averaged over the global batch."""
        return (self.mask_embeddings or self.rules.mask_embeddings) == "batch"

    @property
    def free(self) -> bool:
        """Whether mask embeddings are learned vectors, without a mask decoder."""
        return self.mask_embeddings == "free"

    def weights(self) -> dict[str, float]:
        """Terms that are on, by their name in the logs, with their weight in the loss.

        Raises:
            ConfigError: every term is off.
        """
        with_regions = self.free or self.layers > 0
        with_global = self.use_global and self.lambda_c > 0
        with_local = self.use_local and self.lambda_c < 1 and with_regions
        out: dict[str, float] = {}
        if with_global:
            out["global_consistency"] = self.lambda_c if with_local else 1.0
        if with_local:
            share = 1 - self.lambda_c if with_global else 1.0
            out["local_consistency"] = share
            own = self.decorrelation_weight
            if weight := self.rules.decorrelation_weight if own is None else own:
                out["decorrelation"] = share * weight
        if self.use_relation and self.lambda_r > 0 and with_regions:
            out["semantic_relation"] = self.lambda_r
            out["me_max"] = self.lambda_r * self.memax_weight
        if not out:
            raise ConfigError(
                f"FRA has no loss left (use_global={self.use_global}, use_local={self.use_local}, "
                f"use_relation={self.use_relation}, lambda_c={self.lambda_c}, lambda_r={self.lambda_r}, "
                f"decoder_layers={self.layers}): turn one term on"
            )
        return out


class FRA(nn.Module):
    """Facial region awareness (Gao and Patras, CVPR 2024), Eq. 1-8: BYOL with learned regions of the face.

    Differences:
        `variant="paper"`: none known from the main text; its supplement was not available. What the text leaves open is
        the released code's: student and teacher temperature, ME-MAX weight, Sinkhorn iterations, the decoder's sizes
        and the initialisation. Heatmaps have the student temperature, because section 3.2 calls them s of Eq. 2.
        Sinkhorn starts from softmaxed probabilities, as released; "following SwAV", as the paper says, could also
        mean exp(S / epsilon). Crops cover an area of 0.2-1, as released (BYOL: 0.08-1).
        The local projector H^l sees pixels and pooled regions (Eq. 1 and 5), each with statistics of its own
        while it trains, but its batch norm's running statistics mix the two, and heatmaps in evaluation mode use
        that mixture. Where a consistency term is turned off the other one has the whole weight (Table 7 gives
        lambda_c = 1 as "global only").
        `relation`, `frame_prior` and `mask_embeddings="free"` are this project's; their defaults are the paper's.
        The table of `frame_prior` is decayed, and adapted by LARS, like every other weight.
        `variant="official"`, where the released code leaves the paper: mask embeddings are averaged over the batch and
        all ranks (with a running prototype that replaces them in `heatmaps`), pixels and regions have separate
        projectors, 2 decoder layers, heatmap temperature 1, a decorrelation term of weight 0.02 inside the local term;
        the relation term is the mean over the views (Eq. 3: the sum) and similarities are 2 - 2 cos (Eq. 6: -cos),
        so that lambda_r = x weighs as x / 4 does in Eq. 8.
        Differences from the released code itself: gradients pass through averages over W ranks. There each rank
        differentiates only its own share, 1 / W of the average, of its own loss, so that ME-MAX has 1 / W of its
        gradient and mask embeddings learn nothing from the pixels of other ranks; with one GPU it is the same. The
        prototype starts from zeros (there: from a normal distribution) and moves in `after_step`; heatmaps carry no
        constant of 1e-7; the teacher's centre, which is never updated there, does not exist. A timm ResNet
        starts with the last batch-norm scale of every block at 0 (there: 1). Blur is a true Gaussian on
        floating-point pixels (there: PIL's approximation by box filters on uint8).
    """

    Args: ClassVar[type[FRAArgs]] = FRAArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    views: ClassVar[tuple[View, ...]] = FRA_VIEWS
    mean: ClassVar[tuple[float, float, float]] = VGGFACE2_MEAN
    std: ClassVar[tuple[float, float, float]] = VGGFACE2_STD
    batch_wide: ClassVar[str] = "Sinkhorn's balance and the mean assignment of ME-MAX"
    paper: ClassVar[str] = (
        "Gao and Patras, Self-supervised facial representation learning with facial region awareness, CVPR 2024, "
        "arXiv:2403.02138"
    )

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """
        Args:
            backbone: becomes the online backbone; the target starts as its copy.
            values: fields of `FRAArgs` by keyword.

        Raises:
            ConfigError: a value outside its range, or no term left.
        """
        super().__init__()
        self.args = args = FRAArgs(**values)
        self.weights = args.weights()
        sizes = {"hidden": args.hidden, "out_features": args.dim}
        self.backbone = backbone
        self.heads = RegionHeads(
            backbone.num_features,
            regions=args.num_regions,
            with_global="global_consistency" in self.weights,
            with_local="local_consistency" in self.weights,
            with_relation="semantic_relation" in self.weights,
            temperature=args.temperature,
            averaged=args.averaged,
            separate=args.rules.separate,
            frame_prior=args.frame_prior,
            query_std=args.query_std,
            decoder=None if args.free else args.decoder,
            **sizes,
        )
        if "global_consistency" in self.weights:
            self.predictor = MLPHead(args.dim, **sizes)
        if "local_consistency" in self.weights:
            self.local_predictor = MLPHead(args.dim, **sizes)
        self.target_backbone = frozen_copy(self.backbone)
        self.target_heads = frozen_copy(self.heads)
        self._follow = MomentumUpdate((self.backbone, self.target_backbone), (self.heads, self.target_heads))
        self._moved: list[Tensor] = []  # where `after_step` puts the prototypes: (online, target), or nowhere

    @property
    def has_regions(self) -> bool:
        """Whether `heatmaps` exist: the local or the relation term is on."""
        return self.heads.finds_regions

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of two views (B, 3, S, S), Eq. 8.

        `batch.crops` is needed where the relation is not "within" and where there is a prior.

        Logs, unweighted and as far as turned on: `global_consistency` and `local_consistency` (sums of Eq. 7 over both
        directions), `semantic_relation` (Eq. 3: the sum over both views; their mean in the official variant),
        `me_max` (ln N - entropy of the mean assignment, reduced over the views likewise), `decorrelation`.

        Raises:
            DataError: `batch.crops` is empty though it is needed.
        """
        crops = self._crops(batch)
        views = list(zip(batch.views, crops, strict=True))
        online = [self.heads(*self.backbone.forward_both(x), crop) for x, crop in views]
        with torch.no_grad():
            target = [self.target_heads(*self.target_backbone.forward_both(x), crop) for x, crop in views]
        if self.training and torch.is_grad_enabled() and self.heads.averaged and self.has_regions:
            self._move_prototypes(online, target)
        terms = self._consistency(online, target) | self._relation(online, target, crops)
        loss = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        return Step(loss, {name: value.detach() for name, value in terms.items()})

    def _crops(self, batch: Batch) -> list[Any]:
        """`batch.crops` where something needs them, else None for each view."""
        compared = self.args.relation != "within" and "semantic_relation" in self.weights
        if not (compared or (self.args.frame_prior and self.has_regions)):
            return [None] * len(batch.views)
        if len(batch.crops) != len(batch.views):
            raise DataError(
                f"FRA with relation={self.args.relation} and frame_prior={self.args.frame_prior} needs to know what "
                "each view shows, but the batch has no crops: make views with facessl.views.geometric.Geometric in a "
                "TrainLoader, or use relation=within and frame_prior=0"
            )
        return batch.crops

    def _consistency(self, online: list[Outputs], target: list[Outputs]) -> dict[str, Tensor]:
        """Eq. 7 by its two parts: view 1 predicts view 2 and the other way round."""
        terms = {}
        crossed = list(zip(online, reversed(target), strict=True))
        if "global_consistency" in self.weights:
            pairs = [(self.predictor(o["z"]), t["z"]) for o, t in crossed]
            terms["global_consistency"] = self._dissimilarity(pairs)
        if "local_consistency" in self.weights:
            predicted = [self.local_predictor(o["regions"].transpose(1, 2)).transpose(1, 2) for o, _ in crossed]
            pairs = [(p, t["regions"]) for p, (_, t) in zip(predicted, crossed, strict=True)]
            terms["local_consistency"] = self._dissimilarity(pairs)
        if "decorrelation" in self.weights:
            terms["decorrelation"] = torch.stack([decorrelation(p, z) for p, z in pairs]).sum()
        return terms

    def _dissimilarity(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        rules = self.args.rules
        return torch.stack([rules.cosine_offset - rules.cosine_scale * mean_cosine(p, z) for p, z in pairs]).sum()

    def _relation(self, online: list[Outputs], target: list[Outputs], crops: list[Any]) -> dict[str, Tensor]:
        """Eq. 3's cross-entropy, within views or across them, and ME-MAX: every view in both networks."""
        if "semantic_relation" not in self.weights:
            return {}
        students = [o["similarity"] / self.args.student_temperature for o in online]  # (B, h, w, N)
        teachers = [self._balanced(t["similarity"]) for t in target]
        terms = []
        if self.args.relation != "across":
            terms.append([cross_entropy(s, t).mean() for s, t in zip(students, teachers, strict=True)])
        if self.args.relation != "within":
            pairs = zip(students, teachers[::-1], crops, crops[::-1], strict=True)
            terms.append([across(*pair) for pair in pairs])
        relation = torch.stack([torch.stack(term).sum() for term in terms]).mean()
        spread = torch.stack([me_max(s.flatten(0, 2).softmax(1)) for s in students]).sum()
        scale = self.args.rules.relation_scale
        return {"semantic_relation": scale * relation, "me_max": scale * spread}

    def _balanced(self, similarity: Tensor) -> Tensor:
        """The teacher's assignments: S (B, h, w, N) -> (B, h, w, N)."""
        assignments = (similarity.flatten(0, 2) / self.args.teacher_temperature).softmax(1)  # (B hw, N)
        return sinkhorn(assignments, self.args.sinkhorn_iterations).view_as(similarity)

    @torch.no_grad()
    def _move_prototypes(self, *networks: list[Outputs]) -> None:
        """Notes where both prototypes go, over any number of micro-batches: two tensors, however often it is called."""
        if not self._moved:
            self._moved = [heads.prototype.clone() for heads in (self.heads, self.target_heads)]
        for prototype, outputs in zip(self._moved, networks, strict=True):
            for view in outputs:  # in the order of the views, as the released code's forward passes
                prototype.lerp_(view["mask_embedding"], 0.1)

    def after_step(self, progress: Progress) -> None:
        """Moves the target network, and the prototypes where mask embeddings are averaged over the batch."""
        self._follow(self.ema_momentum(progress))
        if self._moved:
            self.heads.prototype.copy_(self._moved[0])
            self.target_heads.prototype.copy_(self._moved[1])
            self._moved = []

    def ema_momentum(self, progress: Progress) -> float:
        """Momentum of the target network now."""
        return cosine_momentum(self.args.momentum, progress.fraction)

    @torch.no_grad()
    def heatmaps(self, x: Tensor) -> Tensor:
        """Regions of images as the online network sees them; call it in evaluation mode.

        Args:
            x: (B, 3, H, W), normalised.

        Returns:
            (B, N, h, w) float32, rows sum to 1 over N. Where mask embeddings are averaged over the batch, the running
            prototype replaces them; it is zero before the first step: uniform heatmaps. A prior takes `x` for the
            stored image.

        Raises:
            ConfigError: this FRA has no regions (only the global term is on).
        """
        if not self.has_regions:
            raise ConfigError("this FRA has no heatmaps: its local and relation terms are off; turn one on")
        features = self.backbone.forward_features(x)
        similarity = self.heads.similarity(features, self.heads.stored_embedding(features))
        maps = self.heads.heatmaps(similarity)  # (B, hw, N)
        return maps.transpose(1, 2).unflatten(2, features.shape[2:])


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 2, pixel by pixel.

    Args:
        logits: (..., N) float32, student; `target`: (..., N) float32, probabilities.

    Returns:
        (...) float32.
    """
    # Not log_softmax: its gradient exponentiates a rounded logarithm, and student minus target, which is small
    # for near-uniform assignments, loses digits that the mask embeddings' gradient is made of.
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    return shifted.exp().sum(-1).log() - (target * shifted).sum(-1)


def across(student: Tensor, teacher: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """The mean of Eq. 2 over the cells of a view whose centre another view shows, with that view's assignments there.

    Args:
        student: (B, h, w, N) float32, logits of the one view.
        teacher: (B, h', w', N) float32, probabilities of the other view.
        ours, theirs: (B, 5), crops of the one and of the other view (`Batch.crops`).

    Returns:
        scalar float32, over the cells of all ranks (`rank_mean`); 0 where no cell is shown by both.
    """
    target, shared = frame.seen_by(teacher, theirs, ours, *student.shape[1:3])
    return rank_mean(cross_entropy(student, target), shared)


def me_max(assignments: Tensor) -> Tensor:
    """ln N minus the entropy of the mean assignment over all ranks; 0 where all N regions are used alike.

    Args:
        assignments: (P, N) float32 probabilities of this rank's pixels (MSN's mean entropy maximisation).
    """
    mean = all_reduce_mean(assignments.mean(0))  # (N,)
    # Sum of p ln(N p), plus 1 - sum of p = 0: near the uniform distribution, where the run starts, this form
    # and its gradient keep the digits that "ln N - H" loses by cancellation.
    return (torch.special.xlogy(mean, mean * len(mean)) - mean + 1 / len(mean)).sum()


def decorrelation(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared cosines between predictions and targets of different regions of an image, over N^2 (released code).

    Args:
        prediction, target: (B, N, D).

    Returns:
        scalar float32, the mean over the images.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        p = F.normalize(at_least_float32(prediction), dim=-1)
        z = F.normalize(at_least_float32(target), dim=-1)
        squared = (p @ z.transpose(1, 2)).square()  # (B, N, N)
        same = torch.eye(squared.shape[1], dtype=torch.bool, device=squared.device)
        return squared.masked_fill(same, 0).mean()
