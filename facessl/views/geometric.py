"""Crops, flips and the draw of every random parameter of a view: the part that runs in the loader's workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from facessl.core.errors import ConfigError
from facessl.core.types import Sample
from facessl.data.decode import FACTORS
from facessl.data.face_square import resize, resize_to
from facessl.data.loader import SampleViews
from facessl.views.spec import View

#: Draws of a random box: area and log-ratio of each of ten tries, top, left.
BOX_DRAWS = 22

#: Uniform numbers that one view takes from the generator, always all of them, so that a probability set to 0 changes
#: nothing else: the box, the flip, then those of `photometric_params`.
DRAWS = BOX_DRAWS + 11

#: A JPEG is reduced in decoding (by `FACTORS`) where every crop keeps this many times the pixels of its view on both
#: sides; views then differ on average by 0.3 to 0.5 of 255 from those of the full image (CelebA).
MARGIN = 1.5

Box = tuple[int, int, int, int]


def sides(
    area: int, draws: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> Iterator[tuple[int, int]]:
    """Ten tries at the sides of a box in an image of `area` pixels, as torchvision draws them, by `draws` (BOX_DRAWS,):
    its area relative to the image is uniform in `scale`, first / second side log-uniform in `ratio`."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    tries = draws[: BOX_DRAWS - 2].tolist()
    for area_draw, ratio_draw in zip(tries[::2], tries[1::2], strict=True):
        pixels = area * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(low + ratio_draw * (high - low))
        yield round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))


def place(height: int, width: int, h: int, w: int, draws: np.ndarray) -> Box:
    """Top, left, height, width of a box h x w anywhere in an image, by the last two of its draws (BOX_DRAWS,)."""
    top, left = draws[BOX_DRAWS - 2 : BOX_DRAWS].tolist()
    return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w


def crop_box(view: View, height: int, width: int, draws: np.ndarray) -> Box:
    """Top, left, height, width in pixels of a random resized crop, as torchvision's RandomResizedCrop draws it.

    Ten tries at an area and a log-uniform ratio by `draws` (BOX_DRAWS,), uniform in 0..1; if none fits, the largest
    centered box of a valid ratio.
    """
    if view.whole:
        return 0, 0, height, width
    for w, h in sides(height * width, draws, view.scale, view.ratio):
        if 0 < w <= width and 0 < h <= height:
            return place(height, width, h, w, draws)
    h, w = height, width
    if width / height < view.ratio[0]:
        h = min(height, max(1, round(width / view.ratio[0])))
    elif width / height > view.ratio[1]:
        w = min(width, max(1, round(height * view.ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def photometric_params(view: View, draws: np.ndarray) -> np.ndarray:
    """(10,) uniform draws in 0..1 -> (P,) float32 parameters in the columns of `Column`.

    Factors are uniform in max(0, 1 - strength)..1 + strength and the hue shift in -strength..strength, as in
    torchvision's ColorJitter; the order is one of the 24 permutations.
    """
    jitter, brightness, contrast, saturation, hue, order, gray, blur, sigma, solarize = draws.tolist()
    low, high = view.blur_sigma
    row = (
        jitter < view.jitter_p,
        _factor(view.jitter[0], brightness),
        _factor(view.jitter[1], contrast),
        _factor(view.jitter[2], saturation),
        (2 * hue - 1) * view.jitter[3],
        int(order * 24),
        gray < view.grayscale,
        low + sigma * (high - low) if blur < view.blur else 0,
        view.solarize_threshold if solarize < view.solarize else 256,
    )
    return np.array(row, np.float32)


def _factor(strength: float, draw: float) -> float:
    low = max(0.0, 1 - strength)
    return low + draw * (1 + strength - low)


class Geometric:
    """Crops and flips one image into its views and draws their photometric parameters.

    Args:
        views: one entry per view.
        image_size: the run's image size in pixels; view v is `round(view.size * image_size)` square.

    Attributes:
        sizes: S_v, side of each view in pixels.

    Raises:
        ConfigError: no view, or an image size that leaves a view without pixels.
    """

    def __init__(self, views: Sequence[View], image_size: int) -> None:
        self.views = tuple(views)
        self.sizes = tuple(round(view.size * image_size) for view in self.views)
        if not self.views:
            raise ConfigError("a method needs at least one view, but its list of views is empty")
        if min(self.sizes) < 1:
            raise ConfigError(
                f"image size {image_size} gives a view of {min(self.sizes)} pixels: use a larger image size"
            )

    def draw(self, rng: np.random.Generator | None) -> DrawnViews:
        """The random numbers of every view of one image, before it is decoded."""
        assert rng is not None, "these views are for training"
        return DrawnViews(self.views, self.sizes, rng.random((len(self.views), DRAWS)))


class DrawnViews:
    """V views with their random numbers (V, DRAWS)."""

    __slots__ = ("_draws", "_sizes", "_views")

    def __init__(self, views: tuple[View, ...], sizes: tuple[int, ...], draws: np.ndarray) -> None:
        self._views, self._sizes, self._draws = views, sizes, draws

    def reduction(self, height: int, width: int) -> int:
        """Allowed reduction of an image of this size in decoding: 1, 2, 4 or 8; see `MARGIN`."""
        if min(height, width) < FACTORS[-1] * MARGIN * max(self._sizes):  # no crop of that view can be large enough
            return 1
        fits = min(
            min(crop_box(view, height, width, draws)[2:]) / (MARGIN * size)
            for view, size, draws in zip(self._views, self._sizes, self._draws, strict=True)
        )
        return next((factor for factor in FACTORS if factor <= fits), 1)

    def __call__(self, sample: Sample, image: np.ndarray, out: Sequence[np.ndarray] = ()) -> SampleViews:
        """The sample (with the labels of the stored image), its views, their parameters (`Column`) and `Batch.crops`.

        Args:
            image: (H, W, 3) uint8 RGB, reduced or not: boxes are fractions of its sides.
            out: V contiguous arrays (S_v, S_v, 3) uint8 to write the views into; empty takes new memory.
        """
        views = list(out) or [np.empty((size, size, 3), np.uint8) for size in self._sizes]
        params, crops = [], []
        height, width = image.shape[:2]
        for view, size, draws, target in zip(self._views, self._sizes, self._draws, views, strict=True):
            top, left, h, w = crop_box(view, height, width, draws)
            crop = image[top : top + h, left : left + w]
            flip = draws[BOX_DRAWS] < view.flip
            if flip:
                cv2.flip(resize(crop, size), 1, dst=target)
            else:
                resize_to(crop, size, size, out=target)
            params.append(photometric_params(view, draws[BOX_DRAWS + 1 :]))
            crops.append(np.array((left / width, top / height, w / width, h / height, flip), np.float32))
        return sample, views, params, crops
