"""Hyper-parameters of FRA and what they resolve to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from facessl.core.errors import ConfigError


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
