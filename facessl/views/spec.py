"""A view as data: what a paper's augmentation table says, one line each."""

from __future__ import annotations

from dataclasses import dataclass

VGGFACE2_MEAN = (0.5231, 0.4044, 0.3489)
VGGFACE2_STD = (0.2536, 0.2194, 0.2070)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class View:
    """One augmented view.

    Attributes:
        size: side of the square output relative to the run's image size (1.0 = the image size itself).
        scale: area of the random resized crop relative to the image; (1, 1) with `ratio` (1, 1) = whole image.
        ratio: aspect ratio range of the crop, drawn log-uniformly.
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation, hue (torchvision's ColorJitter meaning).
        jitter_p: probability of the colour jitter; its four operations run in a random order per sample.
        grey: probability of grey-scale.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its sigma in pixels of the view, drawn uniformly.
        solarise: probability of inverting pixels at or above `solarise_threshold` (0..255).
    """

    size: float = 1.0
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    solarise_threshold: int = 128
