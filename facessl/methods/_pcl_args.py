"""Hyper-parameters of PCL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from facessl.core.errors import ConfigError


@dataclass(frozen=True)
class PCLArgs:
    """Hyper-parameters of PCL; the defaults are the released configuration's.

    Attributes:
        temperature: of both contrastive terms.
        mix_alpha: negatives are mixed in pairs by weights from Beta(mix_alpha, mix_alpha), 1 or more; None: not mixed.
        noise: standard deviation of the Gaussian noise on the input of the reconstruction, in units of the normalised
            image (PCL's normalisation leaves 0..1 as it is). Drawn in training mode only.
        balance: temperature of the dynamic weight averaging between the two contrastive terms; None: both weigh 1.
        width: channels of the face-aware and the pose branch; each feature is 16 x width wide (a 4 x 4 map).
        hidden: width of the hidden layer of the two projection heads.
        dim: D, width of the projections.
        decoder_width: channels that the decoder starts with; a multiple of 4.
        decoder_size: side in pixels of the images that the decoder makes, a power of two; the image is averaged down
            to it.
    """

    temperature: float = 0.07
    mix_alpha: float | None = 1.6
    noise: float = 0.4
    balance: float | None = 2.0
    width: int = 128
    hidden: int = 2048
    dim: int = 512
    decoder_width: int = 512
    decoder_size: int = 64

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("temperature balance", lambda v: v > 0, "more than 0"),
            ("mix_alpha width hidden dim", lambda v: v >= 1, "1 or more"),
            ("noise", lambda v: v >= 0, "0 or more"),
            ("decoder_width", lambda v: v >= 4 and v % 4 == 0, "a multiple of 4"),
            ("decoder_size", lambda v: v in (4, 8, 16, 32, 64, 128, 256), "a power of two from 4 to 256"),
        )
        for names, valid, wanted in ranges:
            for name in names.split():
                if (value := getattr(self, name)) is not None and not valid(value):
                    raise ConfigError(f"{name} is {value}: give {wanted}")
