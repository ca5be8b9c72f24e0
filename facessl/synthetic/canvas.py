"""An image and its class map, drawn together at twice the final size for smooth edges."""

from collections.abc import Sequence

import cv2
import numpy as np

from facessl.synthetic.identity import Identity
from facessl.synthetic.model import Head, visible_landmarks
from facessl.synthetic.scene import Scene

_SHIFT = 4  # fixed-point bits of OpenCV's drawing calls
SUPER = 2  # canvas pixels per final pixel, along each axis
_ONE = SUPER << _SHIFT  # fixed-point units of a final pixel
_HALF = np.full(2, (SUPER - 1) * (1 << _SHIFT) / 2, np.float32)  # canvas position of a final pixel's center

Color = Sequence[float] | np.ndarray
#: Polygons or strokes of one length as (k, n, 2), or of several lengths as a sequence of (n, 2).
Shapes = np.ndarray | Sequence[np.ndarray]


def tint(color: Color, factor: float) -> np.ndarray:
    """A darker (below 1) or lighter (above 1) color; lighter ones move towards white."""
    c = np.asarray(color, np.float32)
    return c * factor if factor <= 1 else c + (255 - c) * (factor - 1)


def soften(cover: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by two boxes of the same variance as a Gaussian of `sigma` canvas pixels: a fifth of its cost."""
    k = int((6 * sigma * sigma + 1) ** 0.5 / 2 + 0.5) * 2 + 1
    return cv2.blur(cv2.blur(cover, (k, k)), (k, k)) if k > 1 else cover


def blend(target: np.ndarray, cover: np.ndarray, paint: Color, alpha: float = 1.0) -> None:
    """Mix `paint` (a color, or a uint8 image of the target's size) into `target` in place, where `cover` says.

    In uint8, each term rounded: at most one level of error, a tenth of the time of float32.
    """
    weight = cv2.merge([cover, cover, cover])
    if isinstance(paint, np.ndarray) and paint.ndim == 3:
        added: np.ndarray = cv2.multiply(weight, paint, scale=alpha / 255)
    else:
        added = cv2.merge([cv2.convertScaleAbs(cover, alpha=alpha * c / 255) for c in scalar(paint)])
    cv2.multiply(target, weight, weight, scale=alpha / 255)
    cv2.subtract(target, weight, target)
    cv2.add(target, added, target)


def scalar(color: Color) -> tuple[float, float, float]:
    """A color as OpenCV takes it."""
    r, g, b = color.tolist() if isinstance(color, np.ndarray) else color
    return min(255.0, max(0.0, r)), min(255.0, max(0.0, g)), min(255.0, max(0.0, b))


def one_color(width: int, height: int, color: Color) -> np.ndarray:
    """(height, width, 3) uint8 of one color; NumPy's broadcast takes twenty times as long."""
    return cv2.rectangle(np.empty((height, width, 3), np.uint8), (0, 0), (width, height), scalar(color), -1)


class Canvas:
    """Drawing surface for one picture of a person.

    Points are in pixels of the final image, widths and blurs in head units.

    Attributes:
        rgb: (2S, 2S, 3) uint8.
        label: (2S, 2S) uint8 class map.
        figure: (2S, 2S) uint8 coverage of all opaque things in front of the backdrop.
        skin: (2S, 2S) uint8 coverage of the head's bare form.
        who, scene, head: what is drawn.
        cam: the scene's camera; unit: its pixels per head unit.
        marks: (68, 2) float32 landmarks in pixels.
        rng: of the picture's details.
    """

    def __init__(self, size: int, who: Identity, scene: Scene) -> None:
        self.size, self.who, self.scene = size, who, scene
        self.head, self.cam, self.unit = Head(who, scene.expression), scene.camera, scene.camera.unit
        self.marks = visible_landmarks(self.head, self.cam)
        self.rng = np.random.default_rng(scene.seed)
        side = size * SUPER
        self.rgb: np.ndarray = np.empty((side, side, 3), np.uint8)
        self.label, self.figure, self.skin = (np.zeros((side, side), np.uint8) for _ in range(3))

    def fixed(self, points: np.ndarray, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Final pixels -> fixed-point canvas coordinates relative to the canvas pixel `origin`."""
        out = points * np.float32(_ONE)
        out += _HALF if origin == (0, 0) else _HALF - np.float32(_ONE / SUPER) * np.array(origin, np.float32)
        return np.rint(out).astype(np.int32)

    def fill(self, points: np.ndarray, color: Color | None = None, label: int | None = None) -> None:
        """An opaque polygon (n, 2), in the picture (`color`) and in the class map (`label`)."""
        fixed = [self.fixed(points)]
        if color is not None:
            cv2.fillPoly(self.rgb, fixed, scalar(color), cv2.LINE_AA, _SHIFT)
            cv2.fillPoly(self.figure, fixed, 255, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.label, fixed, label, cv2.LINE_8, _SHIFT)

    def tube(self, line: np.ndarray, color: Color, width: float) -> None:
        """An opaque thick stroke (n, 2) with round ends, background in the class map."""
        fixed, thick = [self.fixed(line)], self.thickness(width)
        cv2.polylines(self.rgb, fixed, False, scalar(color), thick, cv2.LINE_AA, _SHIFT)
        cv2.polylines(self.figure, fixed, False, 255, thick, cv2.LINE_AA, _SHIFT)
        cv2.polylines(self.label, fixed, False, 0, thick, cv2.LINE_8, _SHIFT)

    def mask(self, polygon: np.ndarray) -> np.ndarray:
        """(2S, 2S) uint8 0..255 coverage of a polygon (n, 2)."""
        out = np.zeros(self.label.shape, np.uint8)
        return cv2.fillPoly(out, [self.fixed(polygon)], 255, cv2.LINE_AA, _SHIFT)

    def glaze(
        self,
        shapes: Shapes,
        color: Color,
        alpha: float | Sequence[float] = 1.0,
        *,
        blur: float = 0.0,
        width: float = 0.0,
        clip: np.ndarray | None = None,
    ) -> None:
        """Translucent paint: filled polygons (`width` 0) or strokes, softened by `blur` (standard deviation).

        `alpha` is one opacity, or one for each shape; nothing is painted outside `clip` (2S, 2S) uint8.
        """
        box = self.box(shapes, 3 * (blur * self.unit) + width * self.unit)
        if box is None:
            return
        x0, y0, x1, y1 = box
        cover: np.ndarray = np.zeros((y1 - y0, x1 - x0), np.uint8)
        if isinstance(shapes, np.ndarray):
            fixed = list(self.fixed(shapes, (x0, y0)))
        else:
            fixed = [self.fixed(s, (x0, y0)) for s in shapes]
        thick, groups = self.thickness(width), [(fixed, 255.0)]
        if not isinstance(alpha, float | int):
            groups, alpha = [([f], 255.0 * a) for f, a in zip(fixed, alpha, strict=True)], 1.0
        for group, value in groups:
            if width:
                cv2.polylines(cover, group, False, value, thick, cv2.LINE_AA, _SHIFT)
            else:
                cv2.fillPoly(cover, group, value, cv2.LINE_AA, _SHIFT)
        if blur:
            cover = soften(cover, blur * self.unit * SUPER)
        if clip is not None:
            cover = cv2.multiply(cover, clip[y0:y1, x0:x1], scale=1 / 255)
        blend(self.rgb[y0:y1, x0:x1], cover, color, alpha)

    def thickness(self, width: float) -> int:
        """Canvas pixels of a line `width` head units wide."""
        return max(1, round(width * self.unit * SUPER))

    def box(self, shapes: Shapes, margin: float) -> tuple[int, int, int, int] | None:
        """Canvas rows and columns (x0, y0, x1, y1) that hold the shapes and a margin in pixels of the final image."""
        every = shapes.reshape(-1, 2) if isinstance(shapes, np.ndarray) else np.concatenate(shapes)
        low_x, low_y = every.min(0).tolist()
        high_x, high_y = every.max(0).tolist()
        side = self.size * SUPER
        x0, y0 = max(0, int((low_x - margin) * SUPER) - 2), max(0, int((low_y - margin) * SUPER) - 2)
        x1, y1 = min(side, int((high_x + margin) * SUPER) + 4), min(side, int((high_y + margin) * SUPER) + 4)
        return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None
