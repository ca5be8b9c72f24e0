"""Crops, flips and the draw of every random parameter of a view: the part that runs in the loader's workers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from facessl.data.crop import resize
from facessl.errors import ConfigError
from facessl.views.spec import Column, View

TRIES = 10
#: Uniform numbers in 0..1 that one view takes from the generator, always all of them and in this order: area
#: and log-ratio of each try (20), row and column of the crop, flip, jitter on, brightness, contrast,
#: saturation, hue, order of the jitter, grey, blur on, blur sigma, solarise. So a view that turns one
#: probability to 0 draws the same everything else.
DRAWS = 2 * TRIES + 13

Box = tuple[int, int, int, int]


def crop_box(view: View, height: int, width: int, draws: np.ndarray) -> Box:
    """Top, left, height, width in pixels of a random resized crop, as torchvision's RandomResizedCrop draws it.

    Args:
        view: its `scale` and `ratio` bound the crop.
        height, width: of the image in pixels, 1 or more.
        draws: (>= 2 * TRIES + 2,) uniform in 0..1.

    Ten tries at an area and a log-uniform ratio; where none fits, the largest centred box of a valid ratio.
    """
    if view.whole:
        return 0, 0, height, width
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    tries = draws[: 2 * TRIES].tolist()
    for area_draw, ratio_draw in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * (view.scale[0] + area_draw * (view.scale[1] - view.scale[0]))
        ratio = math.exp(low + ratio_draw * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = draws[2 * TRIES : 2 * TRIES + 2].tolist()
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
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
    jitter, brightness, contrast, saturation, hue, order, grey, blur, sigma, solarise = draws.tolist()
    params = np.zeros(len(Column), np.float32)
    params[Column.JITTER] = jitter < view.jitter_p
    for column, draw, strength in zip(
        (Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION),
        (brightness, contrast, saturation),
        view.jitter,
        strict=False,
    ):
        low = max(0.0, 1 - strength)
        params[column] = low + draw * (1 + strength - low)
    params[Column.HUE] = (2 * hue - 1) * view.jitter[3]
    params[Column.ORDER] = int(order * 24)
    params[Column.GREY] = grey < view.grey
    low, high = view.blur_sigma
    params[Column.BLUR] = low + sigma * (high - low) if blur < view.blur else 0
    params[Column.SOLARISE] = view.solarise_threshold if solarise < view.solarise else 256
    return params


class Geometric:
    """Crops and flips one image into its views and draws their photometric parameters.

    Attributes:
        views: what to draw.
        sizes: S_v, side of each view in pixels.
    """

    def __init__(self, views: Sequence[View], image_size: int) -> None:
        """
        Args:
            views: one entry per view.
            image_size: the run's image size in pixels; view v is `round(view.size * image_size)` square.

        Raises:
            ConfigError: no view, or an image size that leaves a view without pixels.
        """
        self.views = tuple(views)
        self.sizes = tuple(round(view.size * image_size) for view in self.views)
        if not self.views:
            raise ConfigError("a method needs at least one view, but its list of views is empty")
        if min(self.sizes) < 1:
            raise ConfigError(
                f"image size {image_size} gives a view of {min(self.sizes)} pixels: use a larger image size"
            )

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Draw every view of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            rng: the sample's own generator; nothing else decides the result.

        Returns:
            V arrays (S_v, S_v, 3) uint8 and V arrays (P,) float32 of parameters (`Column`).
        """
        images, params = [], []
        for view, size in zip(self.views, self.sizes, strict=True):
            draws = rng.random(DRAWS)
            top, left, h, w = crop_box(view, image.shape[0], image.shape[1], draws)
            crop = resize(image[top : top + h, left : left + w], size)
            if draws[2 * TRIES + 2] < view.flip:
                crop = cv2.flip(crop, 1)
            images.append(crop)
            params.append(photometric_params(view, draws[2 * TRIES + 3 :]))
        return images, params
