"""Hyper-parameters of MCF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from facessl.core.errors import ConfigError

#: Axis of (B, tokens, channels) along which features have unit length before they are compared.
AXES = {"paper": 2, "official": 1}


@dataclass(frozen=True)
class MCFArgs:
    """Hyper-parameters of MCF; the defaults are its paper's.

    Attributes:
        variant: "paper" or "official" (the released code; see `MCF`, Differences).
        teacher: the frozen network that judges reconstructions: the file of MoCo v3's ViT-B (the paper's), another
            ViT's checkpoint under timm's names, a run folder of this library, `timm:NAME` (downloads timm's
            pre-trained weights once) or `random:NAME` (random weights, for trials without any file).
        teacher_blocks: after which of its blocks features are compared, counted from 0; null: four at equal
            distances, the last one included, which is 2, 5, 8, 11 of the paper's 12; of a ResNet the last four stages.
        mask_ratio: share of the patches that the encoder does not see.
        positions: "sincos", the fixed table, or "learned", timm's.
        decoder_width: channels of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        decoder_checkpoint: a file whose decoder blocks this decoder starts from ("partially pre-trained decoder"):
            MAE's layout, or a checkpoint of this library's MAE or MCF; null: none.
        pretrained_blocks: how many of the first decoder blocks start from it.
        feature_weight: weight of the reconstruction.
        contrast_weight: weight of the contrast.
        temperature: T of the contrast.
        momentum: of the target network, fixed.
        hidden: width of the hidden layer of projector and predictor.
        dim: width of projections and predictions.
    """

    variant: Literal["paper", "official"] = "paper"
    teacher: str = "vit-b-300ep.pth.tar"
    teacher_blocks: tuple[int, ...] | None = None
    mask_ratio: float = 0.75
    positions: Literal["sincos", "learned"] = "sincos"
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_checkpoint: str | None = None
    pretrained_blocks: int = 0
    feature_weight: float = 1000.0
    contrast_weight: float = 1.0
    temperature: float = 0.2
    momentum: float = 0.99
    hidden: int = 4096
    dim: int = 256

    def __post_init__(self) -> None:
        for name, known in (("variant", [*AXES]), ("positions", ["sincos", "learned"])):
            if (choice := getattr(self, name)) not in known:
                raise ConfigError(f"{name} is {choice!r}: give one of {', '.join(known)}")
        ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("mask_ratio", lambda v: 0 < v < 1, "a share between 0 and 1"),
            ("momentum", lambda v: 0 <= v <= 1, "a number from 0 to 1"),
            ("temperature feature_weight contrast_weight", lambda v: v > 0, "more than 0"),
            ("decoder_width decoder_depth decoder_heads hidden dim", lambda v: v >= 1, "1 or more"),
            ("pretrained_blocks", lambda v: 0 <= v <= self.decoder_depth, f"0 to decoder_depth, {self.decoder_depth}"),
        )
        for names, valid, wanted in ranges:
            for name in names.split():
                if not valid(value := getattr(self, name)):
                    raise ConfigError(f"{name} is {value}: give {wanted}")
        if (self.decoder_checkpoint is None) != (self.pretrained_blocks == 0):
            raise ConfigError(
                f"decoder_checkpoint is {self.decoder_checkpoint} and pretrained_blocks is {self.pretrained_blocks}: "
                "give both or neither"
            )
