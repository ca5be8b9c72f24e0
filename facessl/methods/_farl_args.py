"""Hyper-parameters of FaRL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from facessl.core.errors import ConfigError


@dataclass(frozen=True)
class FaRLArgs:
    """Hyper-parameters of FaRL; the defaults are its paper's, as far as they are known (see `FaRL`, Differences).

    Attributes:
        temperature: of the image-text contrast at the start; it is learnt, and stays at 0.01 or more.
        dim: D, width of the space of images and texts.
        text_width: channels of the text tower.
        text_depth: blocks of the text tower.
        text_heads: attention heads of the text tower.
        context: tokens of a caption, start and end included; longer ones are cut.
        mask_ratio: share of the patches that is hidden, 75 of 196.
        masking: "random" patches, or "block": patches that lie together (those of the largest mean noise over 5 x 5).
        mim_weight: weight of the masked image modelling.
        mim_depth: blocks between the image tower and the prediction of hidden patches.
        dvae: file with the state dict of DALL-E's dVAE encoder, whose tokens are predicted; null: features of the
            momentum image tower are.
        vocabulary: number of the dVAE's tokens.
        momentum: of the momentum image tower at the start; it rises to 1 by a cosine. Not used with a dVAE.
    """

    temperature: float = 0.07
    dim: int = 512
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    context: int = 77
    mask_ratio: float = 75 / 196
    masking: Literal["random", "block"] = "random"
    mim_weight: float = 1.0
    mim_depth: int = 1
    dvae: str | None = None
    vocabulary: int = 8192
    momentum: float = 0.996

    def __post_init__(self) -> None:
        if self.masking not in ("random", "block"):
            raise ConfigError(f"masking is {self.masking!r}: give one of random, block")
        ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("mask_ratio", lambda v: 0 < v < 1, "a share between 0 and 1"),
            ("momentum", lambda v: 0 <= v <= 1, "a number from 0 to 1"),
            ("temperature", lambda v: 0.01 <= v <= 100, "a number from 0.01 to 100"),
            ("mim_weight", lambda v: v > 0, "more than 0"),
            ("dim text_width text_depth text_heads mim_depth vocabulary", lambda v: v >= 1, "1 or more"),
            ("context", lambda v: v >= 3, "3 or more"),
        )
        for names, valid, wanted in ranges:
            for name in names.split():
                if not valid(value := getattr(self, name)):
                    raise ConfigError(f"{name} is {value}: give {wanted}")
        if self.text_width % self.text_heads:
            raise ConfigError(f"text_heads is {self.text_heads}: give a divisor of text_width, {self.text_width}")
