"""Around the face: the backdrop before it is drawn, lens and sensor after."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from facessl.data.faces.scene import Scene


def paint_backdrop(rgb: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Fill `rgb` (H, W, 3) uint8 with a backdrop of `kind` (one of `scene.BACKDROPS`)."""
    side = rgb.shape[0]
    base = np.clip(rng.uniform(30, 225) + rng.normal(0, 22, 3), 5, 250)
    if kind == "gradient":
        small = np.clip(base + rng.normal(0, 26, (3, 3, 3)), 0, 255)
    elif kind == "studio":
        y, x = np.mgrid[-1:1:16j, -1:1:16j]
        small = base * (1.1 - 0.42 * (x * x + y * y))[..., None]
    elif kind == "wall":
        small = base + rng.normal(0, 12, (24, 24, 1))
        small[:, :: int(rng.integers(3, 9))] -= 16
    else:
        small = np.clip(base + rng.normal(0, 38, (7, 7, 3)), 0, 255)
    small = np.clip(small, 0, 255).astype(np.uint8)
    rgb[...] = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    if kind == "bokeh":
        tone = rgb.copy()
        for _ in range(9):
            at = rng.integers(0, side, 2).tolist()
            colour = np.clip(base * 0.5 + rng.uniform(60, 190, 3), 0, 255).tolist()
            cv2.circle(tone, at, int(rng.uniform(0.02, 0.09) * side), colour, -1, cv2.LINE_AA)
        cv2.addWeighted(rgb, 0.55, cv2.blur(tone, (5, 5)), 0.45, 0, rgb)
    elif kind == "blurred":
        for _ in range(5):
            x, y = rng.uniform(-0.2, 1, 2) * side
            w, h = rng.uniform(0.08, 0.5, 2) * side
            colour = np.clip(base + rng.normal(0, 55, 3), 0, 255).tolist()
            cv2.rectangle(rgb, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
        k = side // 12 * 2 + 1
        cv2.blur(rgb, (k, k), rgb)


@functools.cache
def _grain() -> np.ndarray:
    """A tile of unit noise, cut at random places: drawing new noise would cost more than drawing the face."""
    noise = np.random.default_rng(20240617).standard_normal((384, 384, 3), dtype=np.float32)
    noise = 0.75 * noise + 0.45 * noise.mean(2, keepdims=True) * 3**0.5
    return noise


def expose(picture: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Blur, colour cast, tone curve and sensor noise: (S, S, 3) float32 -> uint8."""
    size = picture.shape[0]
    scale = size / 128
    if scene.blur:
        picture = cv2.GaussianBlur(picture, (0, 0), scene.blur * scale)
    dx, dy = scene.motion
    reach = int(np.ceil(max(abs(dx), abs(dy)) * scale))
    if reach:
        kernel = np.zeros((2 * reach + 1,) * 2, np.uint8)
        a = (round(reach + dx * scale), round(reach + dy * scale))
        b = (round(reach - dx * scale), round(reach - dy * scale))
        cv2.line(kernel, a, b, 255, 1, cv2.LINE_AA)
        k = kernel.astype(np.float32)
        picture = cv2.filter2D(picture, -1, k / k.sum(), borderType=cv2.BORDER_REPLICATE)
    picture = picture * scene.cast
    curve = np.arange(0, 256, dtype=np.float32) / 255
    curve = 255 * ((curve**scene.gamma - 0.5) * scene.contrast + 0.5)
    # A soft shoulder keeps highlights from clipping to flat white.
    picture = np.where(picture > 200, 200 + 55 * np.tanh((picture - 200) / 55), picture)
    if scene.noise > 0.2:
        y, x = rng.integers(0, 384 - min(size, 383), 2)
        grain = _grain()[y : y + size, x : x + size]
        if grain.shape[0] < size:
            times = -(-size // 384)
            grain = np.tile(_grain(), (times, times, 1))[:size, :size]
        picture = picture + grain * scene.noise
    return cv2.LUT(np.clip(picture + 0.5, 0, 255).astype(np.uint8), np.clip(curve + 0.5, 0, 255).astype(np.uint8))
