"""A view as data: what a paper's augmentation table says, one line each."""

import itertools
import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from facessl.core.values import FRACTION, RANGE, between, check_values

#: Row k: which operation (0 brightness, 1 contrast, 2 saturation, 3 hue) the jitter of order k runs in each slot.
ORDERS = np.array(list(itertools.permutations(range(4))))
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
#: ITU-R 601 luma, as in Pillow and torchvision.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class View:
    """One augmented view.

    Attributes:
        size: side of the square output relative to the run's image size (1.0 = the image size itself).
        scale: area of the random resized crop relative to the image; (1, 1) with `ratio` (1, 1) = whole image.
        ratio: aspect ratio range of the crop (width / height), drawn log-uniformly.
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation, hue (torchvision's ColorJitter meaning).
        jitter_p: probability of the color jitter; its four operations run in a random order per sample.
        grayscale: probability of a conversion to grayscale.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its sigma in pixels of the view, drawn uniformly.
        solarize: probability of inverting pixels at or above `solarize_threshold` (0..255).

    Raises:
        ConfigError: a field out of its range.
    """

    size: float = 1.0
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: int = 128

    def __post_init__(self) -> None:
        jitter = "four strengths of 0 or more: brightness, contrast, saturation, hue (at most 0.5, half a turn)"
        check_values(
            self,
            {
                "size": (lambda v: 0 < v <= 4, "a number above 0 and at most 4"),
                "flip jitter_p grayscale blur solarize": FRACTION,
                "scale ratio blur_sigma": RANGE,
                "scale": (lambda v: v[1] <= 1, "(low, high) with 0 < low <= high <= 1"),
                "jitter": (lambda v: len(v) == 4 and all(0 <= s < math.inf for s in v) and v[3] <= 0.5, jitter),
                "solarize_threshold": between(0, 255),
            },
            prefix="view.",
        )

    @property
    def whole(self) -> bool:
        """True if the view is the whole image, resized to the square without a crop."""
        return tuple(self.scale) == (1, 1) and tuple(self.ratio) == (1, 1)


#: The two views of FRA (released code, data/transforms.py), also used here for BYOL and LEWEL.
FRA_VIEWS = (View(blur=1.0, solarize=0.0), View(blur=0.1, solarize=0.2))


class Column(IntEnum):
    """Columns of a view's photometric parameters, (B, P) float32: drawn with the crop, applied on the device."""

    JITTER = 0  # 1 = the color jitter runs, 0 = it does not
    BRIGHTNESS = 1  # factor, 1 = unchanged
    CONTRAST = 2  # factor, 1 = unchanged
    SATURATION = 3  # factor, 1 = unchanged
    HUE = 4  # shift in turns, -0.5..0.5, 0 = unchanged
    ORDER = 5  # row 0..23 of `ORDERS`: which operation runs first, second, third, fourth
    GRAYSCALE = 6  # 1 = grayscale
    BLUR = 7  # sigma in pixels of the view, 0 = none
    SOLARIZE = 8  # values at or above it are inverted (0..255), 256 = none
