"""FRA (arXiv:2403.02138): global and local consistency of faces with learned region heatmaps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.constants import constant
from facessl.core.distributed import all_reduce_mean, rank_mean
from facessl.core.errors import ConfigError, DataError
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FRACTION, FROM_0, FROM_1, POSITIVE, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers import view_cells
from facessl.models.layers.color_regions import LAYOUT_STEPS, ColorRegions, inside, random_similarities, read
from facessl.models.layers.ema import MomentumUpdate, cosine_momentum, frozen_copy
from facessl.models.layers.heads import MLPHead
from facessl.models.layers.losses import mean_cosine, sinkhorn
from facessl.models.layers.mask_decoder import MaskDecoder
from facessl.views.normalize import VGGFACE2_MEAN, VGGFACE2_STD
from facessl.views.spec import FRA_VIEWS, View


class Variant(NamedTuple):
    """Differences between the paper and the released code; the first four are defaults of `FRAArgs`."""

    decoder_layers: int
    decorrelation_weight: float
    heatmap_temperature: float | None  # None: the student temperature
    mask_embeddings: Literal["image", "batch"]
    separate: bool  # regions have a projector of their own (else the pixels' local projector)
    cosine_scale: float  # a similarity term is offset - scale * cos
    cosine_offset: float
    relation_scale: float  # factor of the relation term and of ME-MAX, which are sums over both views


VARIANTS = {
    "paper": Variant(1, 0.0, None, "image", False, 1.0, 0.0, 1.0),
    "official": Variant(2, 0.02, 1.0, "batch", True, 2.0, 2.0, 0.5),
}


#: Regions of `targets="color"` at most: half the cells of `ColorRegions`, of which a layout consists.
MOST_COLOR_REGIONS = 288


@dataclass(frozen=True)
class FRAArgs:
    """Hyper-parameters of FRA; the defaults are its paper's. null: the value of the variant.

    Where the paper gives no value, the default is the released code's, and the text says so.

    Attributes:
        variant: "paper" (Eq. 1-8) or "official" (the released code; see `FRA`, Differences).
        use_global: train the global consistency loss between the pooled embeddings of two views (GC in Table 5). If it
            is off, it is not computed.
        use_local: train the local consistency loss between the region embeddings of two views (LC in Table 5). If it
            is off, it is not computed.
        use_relation: train the relation loss, which makes student and teacher assign pixels to the same regions (SR in
            Table 5). If it is off, it is not computed.
        num_regions: number of heatmaps, one per region (N in Table 6).
        lambda_c: fraction of the global loss, 0 to 1; the local loss has the rest (Eq. 6). If only one of the two is
            on, it has weight 1.
        lambda_r: weight of the relation loss (Eq. 8, Table 7); 0 turns it off. With `variant=official` it has a quarter
            of the effect, as in the released code.
        relation: views whose assignments the relation loss compares. "within": student and teacher see the same view
            (Eq. 2). "across": the student sees one view and the teacher the other, compared where both show the same
            place. "both": the mean of the two losses. "across" and "both" are not in the paper.
        targets: what the relation loss learns from. "network": the balanced assignments of the target network (section
            3.2). "color": regions that are found from the colors of each view around the mean face, without a network
            (`facessl.models.layers.color_regions`); the online network sees the view turned, enlarged or made smaller.
            "color" is not in the paper; it is for whole faces that lie about alike, and `relation` must be "within".
        frame_prior: weight of a learned table (N, 12, 12) over the stored image, which is added to the cosines of
            every cell. 0 (the paper) turns it off. Not in the paper; for faces that lie about alike in the stored
            images.
        decoder_layers: layers of the mask decoder (Table 8). null: 1 in the paper's variant, 2 in the official one.
            With 0 there are no regions: it is BYOL.
        momentum: momentum of the target network at the start; it rises to 1 by a cosine (BYOL).
        student_temperature: temperature of the online assignments in Eq. 2. The paper gives no value.
        teacher_temperature: temperature of the target assignments in Eq. 2. The paper gives no value.
        heatmap_temperature: temperature of the softmax that makes the heatmaps of Eq. 4, in both networks. null:
            `student_temperature` in the paper's variant (section 3.2), 1.0 in the official one.
        mask_embeddings: where the mask embeddings come from. "image": each image and view has its own (section 3.2).
            "batch": their average over the batch and all ranks; `heatmaps` uses its running average. "free" (not in
            the paper): N learned vectors without a mask decoder. null: "image" in the paper's variant, "batch" in the
            official one.
        query_std: standard deviation of the initial queries (with "free", of the mask embeddings). The paper gives no
            value.
        memax_weight: weight of ME-MAX beside the cross-entropy of Eq. 3. The paper gives no value.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp on the target assignments. The paper gives no value.
        decorrelation_weight: weight of the released code's decorrelation of regions. null: 0 in the paper's variant,
            0.02 in the official one.
        hidden: width of the hidden layer of projectors and predictors (BYOL).
        dim: width of projections, predictions and mask embeddings (D; BYOL).
        decoder_width: channels of the mask decoder. The paper gives no value.
        decoder_heads: attention heads of the mask decoder. The paper gives no value.
        decoder_feed_forward: hidden width of the decoder's feed-forward layers. The paper gives no value.
        dropout: dropout of the mask decoder, used in both networks. The paper gives no value. 0 separates the regions
            sooner (docs/experiments.md).
    """

    variant: Literal["paper", "official"] = "paper"
    use_global: bool = True
    use_local: bool = True
    use_relation: bool = True
    num_regions: int = 8
    lambda_c: float = 0.5
    lambda_r: float = 0.1
    relation: Literal["within", "across", "both"] = "within"
    targets: Literal["network", "color"] = "network"
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
        check_values(
            self,
            {
                "lambda_c momentum dropout": FRACTION,
                "student_temperature teacher_temperature heatmap_temperature query_std": POSITIVE,
                "lambda_r frame_prior memax_weight sinkhorn_iterations decoder_layers": FROM_0,
                "num_regions hidden dim decoder_heads decoder_feed_forward": FROM_1,
            },
            prefix="method.",
        )
        if self.targets == "color" and not (self.use_relation and self.lambda_r):
            raise ConfigError("targets=color is of the relation term, which is off: turn it on, or use targets=network")
        if self.targets == "color" and self.num_regions > MOST_COLOR_REGIONS:
            raise ConfigError(
                f"method.num_regions is {self.num_regions}: targets=color finds at most {MOST_COLOR_REGIONS}"
            )
        if self.targets == "color" and (self.relation != "within" or self.frame_prior):
            raise ConfigError(
                f"targets=color compares a view with itself and knows no frame, but relation is {self.relation} and "
                f"frame_prior is {self.frame_prior:g}: set relation=within and frame_prior=0"
            )
        if self.decoder_width % (4 * self.decoder_heads):
            raise ConfigError(
                f"method.decoder_width is {self.decoder_width}: give a multiple of 4 x decoder_heads, "
                f"{4 * self.decoder_heads}"
            )

    @property
    def rules(self) -> Variant:
        """Values fixed by the variant."""
        return VARIANTS[self.variant]

    @property
    def layers(self) -> int:
        """Decoder layers in force."""
        return self.rules.decoder_layers if self.decoder_layers is None else self.decoder_layers

    @property
    def temperature(self) -> float:
        """Temperature of the heatmaps in force; no temperature is 0."""
        return self.heatmap_temperature or self.rules.heatmap_temperature or self.student_temperature

    @property
    def averaged(self) -> bool:
        """Whether mask embeddings are averaged over the global batch."""
        return (self.mask_embeddings or self.rules.mask_embeddings) == "batch"

    def weights(self) -> dict[str, float]:
        """Terms that are on, by their name in the logs, with their weight in the loss; ConfigError if none is."""
        with_regions = self.mask_embeddings == "free" or self.layers > 0
        with_global = self.use_global and self.lambda_c > 0
        with_local = self.use_local and self.lambda_c < 1 and with_regions
        out: dict[str, float] = {}
        if with_global:
            out["global_consistency"] = self.lambda_c if with_local else 1.0
        if with_local:
            out["local_consistency"] = local = 1 - self.lambda_c if with_global else 1.0
            own = self.decorrelation_weight
            if weight := self.rules.decorrelation_weight if own is None else own:
                out["decorrelation"] = local * weight
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


#: Outputs of one network for one view that the terms need:
#: "z" (B, D), global embedding; "similarity" (B, h, w, N) float32, S with N last; "regions" (B, N, D), facial
#: embeddings z^m; "mask_embedding" (N, D) float32, detached, only where mask embeddings are averaged over the batch.
Outputs = dict[str, Tensor]

#: Whether similarities have the prior added, are without it (the content alone), or are the prior alone.
Prior = Literal["added", "off", "alone"]

#: Rows and columns of the table of `frame_prior`, and the standard deviation that it starts with.
PRIOR_CELLS = 12
PRIOR_STD = 0.1


class RegionHeads(nn.Module):
    """Projectors and mask decoder that follow the backbone in both networks, if a term needs them."""

    def __init__(self, features: int, args: FRAArgs) -> None:
        """`features` is C, the channels of the backbone's map and embedding."""
        super().__init__()
        terms, regions = args.weights(), args.num_regions
        head = partial(MLPHead, features, hidden=args.hidden, out_features=args.dim)
        self.averaged = args.averaged
        self.heatmap_temperature = args.temperature
        self.frame_prior = args.frame_prior
        self.has_local = "local_consistency" in terms
        self.has_regions = self.has_local or "semantic_relation" in terms
        self.projector = head() if "global_consistency" in terms else None
        self.decoder: MaskDecoder | None = None
        if not self.has_regions:
            return
        self.local_projector = head()
        self.region_projector = head() if self.has_local and args.rules.separate else None
        if args.frame_prior:
            self.prior = nn.Parameter(PRIOR_STD * torch.randn(regions, PRIOR_CELLS, PRIOR_CELLS))
        if args.mask_embeddings == "free":
            self.mask_embedding = nn.Parameter(args.query_std * torch.randn(regions, args.dim))
            return
        self.decoder = MaskDecoder(
            features,
            queries=regions,
            layers=args.layers,
            out_features=args.dim,
            width=args.decoder_width,
            heads=args.decoder_heads,
            feed_forward=args.decoder_feed_forward,
            dropout=args.dropout,
            query_std=args.query_std,
        )
        if args.averaged:
            self.prototype = nn.Buffer(torch.zeros(regions, args.dim))

    def forward(self, features: Tensor, pooled: Tensor, crops: Tensor | None = None) -> Outputs:
        """Map (B, C, h, w), pooled embedding (B, C) and what the view shows, (B, 5) or None -> `Outputs`."""
        out: Outputs = {}
        if self.projector is not None:
            out["z"] = self.projector(pooled)
        if self.has_regions:
            embedding = self.mask_embedding if self.decoder is None else self.decoder(features)  # (N, D) or (B, N, D)
            if self.averaged:
                embedding = all_reduce_mean(at_least_float32(embedding).mean(0))  # (N, D)
                out["mask_embedding"] = embedding.detach()
            similarity = self.similarity(features, embedding, crops)
            out["similarity"] = similarity.unflatten(1, features.shape[2:])  # (B, hw, N) -> (B, h, w, N)
            if self.has_local:
                out["regions"] = self._regions(features, self.heatmaps(similarity))
        return out

    def stored_embedding(self, features: Tensor) -> Tensor:
        """Mask embeddings (B, N, D) or (N, D) outside of training; features (B, C, h, w)."""
        if self.decoder is None:
            return self.mask_embedding
        return self.prototype if self.averaged else self.decoder(features)

    def similarity(
        self, features: Tensor, embedding: Tensor, crops: Tensor | None = None, *, prior: Prior = "added"
    ) -> Tensor:
        """S (B, hw, N), at least float32: cosine of Eq. 1's dense map with mask embeddings, plus the prior, if any.

        Features are (B, C, h, w), embeddings (B, N, D) or (N, D), crops (B, 5), what the view shows; None: the image.
        """
        dense = self.local_projector(features).flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, hw, D)
        with full_precision(dense):
            pixel = F.normalize(at_least_float32(dense), dim=-1)
            query = F.normalize(at_least_float32(embedding), dim=-1)
            cosines = pixel @ query.transpose(-1, -2)
        if not self.frame_prior or prior == "off":
            return cosines
        table = self.frame_prior * self._prior(features, crops)
        return table.expand_as(cosines) if prior == "alone" else cosines + table

    def _prior(self, features: Tensor, crops: Tensor | None) -> Tensor:
        """The table at the centers of a view's cells: (B, C, h, w) and (B, 5) or None -> (B, hw, N), or (1, hw, N)."""
        if crops is None:
            crops = at_least_float32(self.prior.new_zeros(1, 5))
            crops[:, 2:4] = 1
        table = self.prior.permute(1, 2, 0).expand(len(crops), -1, -1, -1)  # (N, 12, 12) -> (B, 12, 12, N)
        return view_cells.read(table, *view_cells.cell_centers(crops, *features.shape[2:])).flatten(1, 2)

    def heatmaps(self, similarity: Tensor) -> Tensor:
        """M: softmax of S (B, hw, N) over the N regions -> (B, hw, N)."""
        return (similarity / self.heatmap_temperature).softmax(-1)

    def _regions(self, features: Tensor, maps: Tensor) -> Tensor:
        """Eq. 4 and 5: map (B, C, h, w) averaged with weights M (B, hw, N), then projected -> (B, N, D)."""
        tiny = torch.finfo(maps.dtype).tiny  # a very low temperature may leave a region without any weight
        weights = maps / maps.sum(1, keepdim=True).clamp_min(tiny)
        pooled = features.flatten(2) @ weights.to(features.dtype)  # (B, C, hw) @ (B, hw, N) -> (B, C, N)
        return (self.region_projector or self.local_projector)(pooled).transpose(1, 2)


class FRA(nn.Module):
    """Facial region awareness (Gao and Patras, CVPR 2024), Eq. 1-8: BYOL with learned regions of the face.

    Differences:
        In `variant="paper"` what the text leaves open is the released code's (temperatures of the assignments, ME-MAX
        weight, Sinkhorn's input and iterations, decoder, initialization). `variant="official"` is the released code,
        but gradients pass through averages over the ranks, and the prototype starts from zeros. `relation`,
        `targets`, `frame_prior` and `mask_embeddings="free"` are this project's. All differences: docs/methods/fra.md.
    """

    Args: ClassVar[type[FRAArgs]] = FRAArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    views: ClassVar[tuple[View, ...]] = FRA_VIEWS
    mean: ClassVar[tuple[float, float, float]] = VGGFACE2_MEAN
    std: ClassVar[tuple[float, float, float]] = VGGFACE2_STD
    batch_wide: ClassVar[str] = "Sinkhorn's balance and the mean assignment of ME-MAX"

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`values` are fields of `FRAArgs`; ConfigError also where no term is left."""
        super().__init__()
        self.args = args = FRAArgs(**values)
        self.weights = args.weights()
        predictor = partial(MLPHead, args.dim, hidden=args.hidden, out_features=args.dim)
        self.backbone = backbone
        self.heads = RegionHeads(backbone.num_features, args)
        if "global_consistency" in self.weights:
            self.predictor = predictor()
        if "local_consistency" in self.weights:
            self.local_predictor = predictor()
        self.target_backbone = frozen_copy(self.backbone)
        self.target_heads = frozen_copy(self.heads)
        self.colors: ColorRegions | None = None
        if args.targets == "color" and "semantic_relation" in self.weights:
            self.colors = ColorRegions(args.num_regions)
        self._follow = MomentumUpdate((self.backbone, self.target_backbone), (self.heads, self.target_heads))
        self._prototypes: list[Tensor] = []  # new values for `after_step`: (online, target), or none

    @property
    def has_regions(self) -> bool:
        """Whether `heatmaps` exist: the local or the relation term is on."""
        return self.heads.has_regions

    @property
    def has_prior(self) -> bool:
        """Whether `heatmaps` have a prior that can be turned off or shown alone."""
        return self.has_regions and self.args.frame_prior > 0

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of two views (B, 3, S, S), Eq. 8.

        Logs, unweighted and as far as turned on: `global_consistency` and `local_consistency` (sums of Eq. 7 over both
        directions), `semantic_relation` and `me_max` (sums over both views; means in "official"), `decorrelation`.

        Raises:
            DataError: no `batch.crops`, though the relation is not "within" or there is a prior.
        """
        crops = self._crops(batch)
        views = list(zip(batch.views, crops, strict=True))
        turns = [] if self.colors is None else self.turns(batch)
        shown = self._turned(batch.views, turns) if turns else batch.views
        online = [self.heads(*self.backbone.forward_both(x), crop) for x, crop in zip(shown, crops, strict=True)]
        with torch.no_grad():
            target = [self._target(x, crop) for x, crop in views]
        training = self.training and torch.is_grad_enabled()
        if training and self.heads.averaged and self.has_regions:
            self._update_prototypes(online, target)
        if self.colors is not None and training and progress.step < LAYOUT_STEPS:
            for x in batch.views:
                self.colors.add(self._colors(x), progress.step)
        terms = self._consistency(online, target) | self._relation(online, target, crops, turns)
        loss = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        return Step(loss, {name: value.detach() for name, value in terms.items()})

    def turns(self, batch: Batch) -> list[Tensor]:
        """Draw V random similarities (B, 2, 3), by which the online network sees each view with color targets."""
        return [random_similarities(len(x), at_least_float32(x)) for x in batch.views]

    def _turned(self, views: list[Tensor], turns: list[Tensor]) -> list[Tensor]:
        return [read(x, t, x.shape[-1], padding="reflection").to(x) for x, t in zip(views, turns, strict=True)]

    def _target(self, x: Tensor, crops: Tensor | None) -> Outputs:
        """Outputs of the target network for a view, and "assignments" (B, ., ., N), targets of the relation term."""
        out: Outputs = {}
        learned = self.weights.keys() - {"semantic_relation", "me_max"}
        if self.colors is None or learned or self.heads.averaged:
            out = self.target_heads(*self.target_backbone.forward_both(x), crops)
        if self.colors is not None:
            out["assignments"] = self.colors(self._colors(x))
        elif "semantic_relation" in self.weights:
            out["assignments"] = self._balanced(out["similarity"])
        return out

    def _colors(self, x: Tensor) -> Tensor:
        """A normalized view (B, 3, S, S) in 0..1, but for a constant, which the regions do not depend on."""
        return at_least_float32(x) * at_least_float32(constant(self.backbone.std, x))[:, None, None]

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
            terms["global_consistency"] = self._dissimilarity([(self.predictor(o["z"]), t["z"]) for o, t in crossed])
        if "local_consistency" in self.weights:
            predict = self.local_predictor
            pairs = [(predict(o["regions"].transpose(1, 2)).transpose(1, 2), t["regions"]) for o, t in crossed]
            terms["local_consistency"] = self._dissimilarity(pairs)
        if "decorrelation" in self.weights:
            terms["decorrelation"] = torch.stack([decorrelation(p, z) for p, z in pairs]).sum()
        return terms

    def _dissimilarity(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        rules = self.args.rules
        return torch.stack([rules.cosine_offset - rules.cosine_scale * mean_cosine(p, z) for p, z in pairs]).sum()

    def _relation(
        self, online: list[Outputs], target: list[Outputs], crops: list[Any], turns: list[Tensor]
    ) -> dict[str, Tensor]:
        """Eq. 3's cross-entropy, within views or across them, and ME-MAX: every view in both networks."""
        if "semantic_relation" not in self.weights:
            return {}
        students = [o["similarity"] / self.args.student_temperature for o in online]  # (B, h, w, N)
        teachers = [t["assignments"] for t in target]
        terms = []
        if self.args.relation != "across":
            if self.colors is None:
                terms.append([cross_entropy(s, t).mean() for s, t in zip(students, teachers, strict=True)])
            else:
                terms.append([turned(*pair) for pair in zip(students, teachers, turns, strict=True)])
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
    def _update_prototypes(self, *networks: list[Outputs]) -> None:
        """Updates copies of both prototypes, over any number of micro-batches; `after_step` puts them in place."""
        if not self._prototypes:
            self._prototypes = [heads.prototype.clone() for heads in (self.heads, self.target_heads)]
        for prototype, outputs in zip(self._prototypes, networks, strict=True):
            for view in outputs:  # in the order of the views, as the released code's forward passes
                prototype.lerp_(view["mask_embedding"], 0.1)

    def after_step(self, progress: Progress) -> None:
        """Moves the target network, and the prototypes where mask embeddings are averaged over the batch."""
        self._follow(self.ema_momentum(progress))
        if self.colors is not None and progress.step < LAYOUT_STEPS:
            self.colors.update(progress.step)
        if self._prototypes:
            self.heads.prototype.copy_(self._prototypes[0])
            self.target_heads.prototype.copy_(self._prototypes[1])
            self._prototypes = []

    def ema_momentum(self, progress: Progress) -> float:
        """Momentum of the target network now."""
        return cosine_momentum(self.args.momentum, progress.fraction)

    @torch.no_grad()
    def heatmaps(self, x: Tensor, *, prior: Prior = "added") -> Tensor:
        """Regions as the online network sees them: (B, 3, H, W) normalized -> (B, N, h, w) float32, sums over N are 1.

        Call it in evaluation mode. Averaged mask embeddings are replaced by the running prototype, which is zero before
        the first step (uniform heatmaps). A prior takes `x` for the stored image; `prior` leaves it out
        ("off": content only) or shows nothing else ("alone"). With `targets="color"` the image's own
        colors correct the heatmaps, which have the cells of `ColorRegions`. ConfigError if there are no regions
        (only the global term is on), or no prior to show alone.
        """
        if not self.has_regions:
            raise ConfigError("this FRA has no heatmaps: its local and relation terms are off; turn one on")
        if prior == "alone" and not self.has_prior:
            raise ConfigError("this FRA has no prior to show alone: its frame_prior is 0")
        features = self.backbone.forward_features(x)
        similarity = self.heads.similarity(features, self.heads.stored_embedding(features), prior=prior)
        maps = self.heads.heatmaps(similarity)  # (B, hw, N)
        if self.colors is not None:
            content = maps.unflatten(1, features.shape[2:])
            return self.colors(self._colors(x), content).permute(0, 3, 1, 2)
        return maps.transpose(1, 2).unflatten(2, features.shape[2:])


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 2, pixel by pixel: the student's logits and the target's probabilities (..., N) float32 -> (...)."""
    # Not log_softmax: for near-uniform assignments its gradient (student minus target) loses digits to rounding.
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    return shifted.exp().sum(-1).log() - (target * shifted).sum(-1)


def across(student: Tensor, teacher: Tensor, crops: Tensor, other_crops: Tensor) -> Tensor:
    """Mean of Eq. 2 over the cells of a view whose center another view shows, with that view's assignments there; over
    the cells of all ranks (`rank_mean`), 0 if no cell is shown by both.

    Args:
        student, teacher: (B, h, w, N) float32, logits of the view and probabilities of the other view.
        crops, other_crops: (B, 5), crops of the view and of the other view (`Batch.crops`).
    """
    target, shared = view_cells.seen_by(teacher, other_crops, crops, *student.shape[1:3])
    return rank_mean(cross_entropy(student, target), shared)


def turned(student: Tensor, teacher: Tensor, turns: Tensor) -> Tensor:
    """Mean of Eq. 2 over the cells of a turned view whose center the view shows, with the mean of the view's
    assignments over four points of the cell; over the cells of all ranks (`rank_mean`), 0 if no cell shows the view.

    Args:
        student, teacher: (B, h, h, N), (B, R, R, N) float32, logits of the turned view, probabilities of the view.
        turns: (B, 2, 3), as `affine_grid` takes them.
    """
    h = student.shape[1]
    target = F.avg_pool2d(read(teacher.permute(0, 3, 1, 2), turns, 2 * h, padding="border"), 2)
    return rank_mean(cross_entropy(student, target.permute(0, 2, 3, 1)), inside(turns, h))


def me_max(assignments: Tensor) -> Tensor:
    """ln N minus the entropy of the mean assignment over all ranks, of which (P, N) float32 are this rank's (MSN's mean
    entropy maximization); 0 if all N regions are used alike."""
    mean = all_reduce_mean(assignments.mean(0))  # (N,)
    # sum of p ln(N p), plus 1 - sum of p = 0: keeps digits that "ln N - H" loses near the uniform distribution.
    return (torch.special.xlogy(mean, mean * len(mean)) - mean + 1 / len(mean)).sum()


def decorrelation(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared cosines between predictions and targets (B, N, D) of different regions of an image, over N^2 (released
    code) -> scalar float32, the mean over the images."""
    with full_precision(prediction):
        p = F.normalize(at_least_float32(prediction), dim=-1)
        z = F.normalize(at_least_float32(target), dim=-1)
        squared = (p @ z.transpose(1, 2)).square()  # (B, N, N)
        same = torch.eye(squared.shape[1], dtype=torch.bool, device=squared.device)
        return squared.masked_fill(same, 0).mean()
