"""Around the face: the backdrop before it is drawn, lens and sensor after."""

import functools

import cv2
import numpy as np

from facessl.synthetic.scene import Scene

_TILE = 384


def paint_backdrop(rgb: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Fill `rgb` (H, W, 3) uint8 with a backdrop of `kind` (one of `scene.BACKDROPS`)."""
    side = rgb.shape[0]
    base = np.clip(rng.uniform(35, 215) + rng.normal(0, 14, 3), 5, 245)
    if kind == "gradient":
        small = base + rng.normal(0, 20, (3, 3, 1)) + rng.normal(0, 9, (3, 3, 3))
    elif kind == "studio":
        y, x = np.mgrid[-1:1:16j, -1:1:16j]
        small = base * (1.1 - 0.42 * (x * x + y * y))[..., None]
    elif kind == "wall":
        small = base + rng.normal(0, 6, (24, 24, 1))
        small[:, :: int(rng.integers(3, 9))] -= 16
    else:
        small = base + rng.normal(0, 24, (7, 7, 1)) + rng.normal(0, 11, (7, 7, 3))
    small = np.clip(small, 0, 255).astype(np.uint8)
    rgb[...] = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    if kind == "bokeh":
        tone = rgb.copy()
        for _ in range(9):
            at = rng.integers(0, side, 2).tolist()
            color = np.clip(base * 0.5 + rng.uniform(70, 170) + rng.normal(0, 28, 3), 0, 255).tolist()
            cv2.circle(tone, at, int(rng.uniform(0.02, 0.09) * side), color, -1, cv2.LINE_AA)
        cv2.addWeighted(rgb, 0.55, cv2.blur(tone, (5, 5)), 0.45, 0, rgb)
    elif kind == "blurred":
        for _ in range(5):
            x, y = rng.uniform(-0.2, 1, 2) * side
            w, h = rng.uniform(0.08, 0.5, 2) * side
            color = np.clip(base + rng.normal(0, 45) + rng.normal(0, 16, 3), 0, 255).tolist()
            cv2.rectangle(rgb, (int(x), int(y)), (int(x + w), int(y + h)), color, -1)
        k = side // 12 * 2 + 1
        cv2.blur(rgb, (k, k), rgb)


@functools.cache
def _grain() -> np.ndarray:
    """A tile of noise of deviation 32, cropped at random: new noise would cost more than the face."""
    noise = np.random.default_rng(20240617).standard_normal((_TILE, _TILE, 3), dtype=np.float32)
    return (32 * (0.75 * noise + 0.78 * noise.mean(2, keepdims=True))).astype(np.int16)


def _smear(picture: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Motion blur along (dx, dy) pixels to either side."""
    reach = int(np.ceil(max(abs(dx), abs(dy))))
    if not reach:
        return picture
    kernel = np.zeros((2 * reach + 1,) * 2, np.uint8)
    a, b = (round(reach + dx), round(reach + dy)), (round(reach - dx), round(reach - dy))
    cv2.line(kernel, a, b, 255, 1, cv2.LINE_AA)
    return cv2.filter2D(picture, -1, kernel / float(kernel.sum()), borderType=cv2.BORDER_REPLICATE)


def expose(picture: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Blur, color cast, tone curve and sensor noise on an image (S, S, 3) uint8."""
    size = picture.shape[0]
    scale = size / 128
    if scene.blur:
        picture = cv2.GaussianBlur(picture, (0, 0), scene.blur * scale)
    picture = _smear(picture, scene.motion[0] * scale, scene.motion[1] * scale)
    level = np.arange(256, dtype=np.float32)[:, None] * scene.cast
    # A soft shoulder keeps highlights from clipping to flat white.
    level = np.where(level > 190, 190 + 65 * np.tanh((level - 190) / 65), level) / 255
    level = 255 * ((level**scene.gamma - 0.45) * scene.contrast + 0.45)
    table = np.clip(level + 0.5, 0, 255).astype(np.uint8)
    picture = cv2.LUT(picture, table[None])
    if scene.noise > 0.3:
        y, x = rng.integers(0, max(1, _TILE - size), 2)
        times = -(-size // _TILE)
        grain = np.tile(_grain()[y : y + size, x : x + size], (times, times, 1))[:size, :size]
        picture = cv2.addWeighted(picture, 1.0, grain, scene.noise / 32, 0, dtype=cv2.CV_8U)
    return picture
