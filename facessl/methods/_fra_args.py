"""Hyper-parameters of FRA and what they resolve to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from facessl.errors import ConfigError


class Variant(NamedTuple):
    """Where the paper and the released code part.

    Attributes:
        decoder_layers: default number of decoder layers.
        decorrelation_weight: default weight of the decorrelation term within the local term.
        averaged: mask embeddings are averaged over the global batch (else one set per image).
        separate: regions have a projector of their own (else the pixels' local projector).
        cosine_scale, cosine_offset: a similarity term is offset - scale * cos.
        relation_scale: factor of the relation term and of ME-MAX, which are sums over both views.
    """

    decoder_layers: int
    decorrelation_weight: float
    averaged: bool
    separate: bool
    cosine_scale: float
    cosine_offset: float
    relation_scale: float


VARIANTS = {
    "paper": Variant(1, 0.0, False, False, 1.0, 0.0, 1.0),
    "official": Variant(2, 0.02, True, True, 2.0, 2.0, 0.5),
}


@dataclass(frozen=True)
class FRAArgs:
    """Hyper-parameters of FRA; the defaults are its paper's, None means "as the variant has it".

    What the paper leaves open has the released code's value and says so.

    Attributes:
        variant: "paper" (Eq. 1-8) or "official" (the released code; see `FRA`, Differences).
        use_global, use_local, use_relation: Table 5's terms GC, LC and SR. A term that is off costs nothing.
        num_regions: N, number of heatmaps (Table 6).
        lambda_c: share of the global term in Eq. 6, 0 to 1; where only one of the two terms is on, it has the whole
            weight, so that 1.0 (Table 7) is the same as `use_local=False`.
        lambda_r: weight of the relation term in Eq. 8 (Table 7); 0 turns it off.
        decoder_layers: layers of the mask decoder (Table 8), 1 in the paper and 2 in the released code;
            0 turns the local and the relation term off, which is BYOL, as in the table.
        momentum: momentum of the target network at the start (BYOL); it rises to 1 by a cosine.
        student_temperature: of the online assignments in Eq. 2. Open in the paper.
        teacher_temperature: of the target assignments in Eq. 2. Open in the paper.
        heatmap_temperature: of the softmax that makes the heatmaps of Eq. 4. Open in the paper; at 1.0 no region
            can exceed another by more than e^2 : 1 at a pixel, because cosines differ by at most 2.
        memax_weight: weight of ME-MAX beside the cross-entropy of Eq. 3. Open in the paper.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp on the target assignments. Open in the paper.
        decorrelation_weight: weight of the released code's decorrelation of regions; 0 in the paper.
        hidden: width of the hidden layer of projectors and predictors (BYOL).
        dim: D, width of projections, predictions and mask embeddings (BYOL).
        decoder_width, decoder_heads, decoder_feed_forward: sizes of the mask decoder. Open in the paper.
        dropout: of the mask decoder, active in the online and the target network. Open in the paper.
    """

    variant: Literal["paper", "official"] = "paper"
    use_global: bool = True
    use_local: bool = True
    use_relation: bool = True
    num_regions: int = 8
    lambda_c: float = 0.5
    lambda_r: float = 0.1
    decoder_layers: int | None = None
    momentum: float = 0.996
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    heatmap_temperature: float = 1.0
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
        if self.variant not in VARIANTS:
            raise ConfigError(f"variant is {self.variant!r}: give one of {', '.join(VARIANTS)}")
        for name in ("lambda_c", "momentum", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number from 0 to 1")
        for name in ("student_temperature", "teacher_temperature", "heatmap_temperature"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number above 0")
        for name in ("lambda_r", "memax_weight", "sinkhorn_iterations"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 0 or more")
        for name in ("num_regions", "hidden", "dim", "decoder_heads", "decoder_feed_forward"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.decoder_layers is not None and self.decoder_layers < 0:
            raise ConfigError(f"decoder_layers is {self.decoder_layers}: give 0 or more")
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

    def weights(self) -> dict[str, float]:
        """Terms that are on, by their name in the logs, with their weight in the loss.

        Raises:
            ConfigError: every term is off.
        """
        with_global = self.use_global and self.lambda_c > 0
        with_local = self.use_local and self.lambda_c < 1 and self.layers > 0
        out: dict[str, float] = {}
        if with_global:
            out["global_consistency"] = self.lambda_c if with_local else 1.0
        if with_local:
            share = 1 - self.lambda_c if with_global else 1.0
            out["local_consistency"] = share
            own = self.decorrelation_weight
            if weight := self.rules.decorrelation_weight if own is None else own:
                out["decorrelation"] = share * weight
        if self.use_relation and self.lambda_r > 0 and self.layers > 0:
            out["semantic_relation"] = self.lambda_r
            out["me_max"] = self.lambda_r * self.memax_weight
        if not out:
            raise ConfigError(
                f"FRA has no loss left (use_global={self.use_global}, use_local={self.use_local}, "
                f"use_relation={self.use_relation}, lambda_c={self.lambda_c}, lambda_r={self.lambda_r}, "
                f"decoder_layers={self.layers}): turn one term on"
            )
        return out
