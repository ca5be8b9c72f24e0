"""Pixel degradations of a view in the worker: uint8 in, uint8 out, random numbers as arguments.

A draw is uniform in 0..1. Noise over all pixels comes from a generator seeded by one draw.
"""

import cv2
import numpy as np

from facessl.views.geometric import Box, place, sides


def add_noise(image: np.ndarray, std: float, draw: float) -> np.ndarray:
    """Gaussian noise of standard deviation `std` (0..255) on every value of (H, W, 3)."""
    noise = _generator(draw).standard_normal(image.shape, np.float32)
    return _to_uint8(image + std * noise)


def fuse_noise(image: np.ndarray, fraction: float, draw: float) -> np.ndarray:
    """(H, W, 3) blended with a `fraction` (0..1) of uniform noise per value."""
    noise = _generator(draw).random(image.shape, np.float32)
    return _to_uint8((1 - fraction) * image + (255 * fraction) * noise)


def apply_gamma(image: np.ndarray, gamma: float) -> np.ndarray:
    """Values v of 0..1 to the power of `gamma`: above 1 darkens."""
    return cv2.LUT(image, _to_uint8(255 * (np.arange(256) / 255) ** gamma))


def occlude(image: np.ndarray, draws: np.ndarray, ellipse: bool) -> np.ndarray:
    """Draw a black block, or the `ellipse` in it, over part of a view (S, S, 3), as STAR and FaRL's toolkit do.

    `draws` (4,) are height (0.1..0.4 of the side), width (at most 0.1 more or less) and center x, y (anywhere).
    """
    size = image.shape[0]
    height = 0.2 + 0.6 * draws[0]
    half_h, half_w = size * height / 4, size * (height - 0.2 + 0.4 * draws[1]) / 4
    x, y = draws[2] * (size - 1), draws[3] * (size - 1)
    image = image.copy()
    if ellipse:
        axes = (max(1, round(half_w)), max(1, round(half_h)))
        cv2.ellipse(image, (round(x), round(y)), axes, 0, 0, 360, (0, 0, 0), -1)
    else:
        rows, columns = (slice(max(0, round(c - h)), round(c + h) + 1) for c, h in ((y, half_h), (x, half_w)))
        image[rows, columns] = 0
    return image


def erase_box(size: int, draws: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]) -> Box | None:
    """Top, left, height, width of a random erasing in a view of side `size`, as torchvision's RandomErasing draws it
    by `draws` (BOX_DRAWS,); `scale` is its area relative to the view, `ratio` height / width. None if no try fits."""
    tries = sides(size * size, draws, scale, ratio)
    return next((place(size, size, h, w, draws) for h, w in tries if h < size and w < size), None)


def erase(image: np.ndarray, box: Box, mean: np.ndarray, std: np.ndarray, draw: float) -> np.ndarray:
    """(H, W, 3) with the box filled by Gaussian noise; mean and std are (3,) in 0..255, std 0 fills with one color."""
    top, left, h, w = box
    image = image.copy()
    image[top : top + h, left : left + w] = (
        _to_uint8(mean + std * _generator(draw).standard_normal((h, w, 3))) if std.any() else _to_uint8(mean)
    )
    return image


def _generator(draw: float) -> np.random.Generator:
    return np.random.default_rng(int(draw * 2**53))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
