"""A picture and its class map under the same brush, at twice the final size (hence the smooth edges)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_SHIFT = 4  # fixed-point bits of OpenCV's drawing calls
SUPER = 2  # canvas pixels per final pixel, along each axis

Colour = Sequence[float] | np.ndarray


def tint(colour: Colour, factor: float) -> np.ndarray:
    """A darker (below 1) or lighter (above 1) colour; lighter ones move towards white."""
    c = np.asarray(colour, np.float32)
    return c * factor if factor <= 1 else c + (255 - c) * (factor - 1)


class Canvas:
    """Drawing surface for one image.

    All points are (n, 2) in pixels of the final image; widths and blurs too.

    Attributes:
        rgb: (2S, 2S, 3) uint8.
        label: (2S, 2S) uint8 class map.
        figure: (2S, 2S) uint8 coverage of all opaque things in front of the backdrop.
        skin: (2S, 2S) uint8 coverage of the head's bare form.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        side = size * SUPER
        self.rgb = np.empty((side, side, 3), np.uint8)
        self.label = np.zeros((side, side), np.uint8)
        self.figure = np.zeros((side, side), np.uint8)
        self.skin = np.zeros((side, side), np.uint8)

    @classmethod
    def blank(cls, size: int, colour: Colour) -> Canvas:
        """A canvas of one colour."""
        out = cls(size)
        out.rgb[:] = np.clip(colour, 0, 255)
        return out

    def fixed(self, points: np.ndarray, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Final pixels -> fixed-point canvas coordinates relative to the canvas pixel `origin`."""
        c = (points + 0.5) * SUPER - 0.5 - origin
        return np.rint(np.clip(c, -4000, 8000) * (1 << _SHIFT)).astype(np.int32)

    def fill(self, points: np.ndarray, colour: Colour, label: int | None = None) -> None:
        """An opaque polygon; `label` also writes the class map."""
        fixed = self.fixed(points)
        cv2.fillPoly(self.rgb, [fixed], _scalar(colour), cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(self.figure, [fixed], 255, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.label, [fixed], label, cv2.LINE_8, _SHIFT)

    def lines(self, strokes: Sequence[np.ndarray], colour: Colour, width: float) -> None:
        """Opaque thin lines."""
        thickness = max(1, round(width * SUPER))
        cv2.polylines(
            self.rgb, [self.fixed(s) for s in strokes], False, _scalar(colour), thickness, cv2.LINE_AA, _SHIFT
        )

    def tube(self, line: np.ndarray, colour: Colour, width: float, label: int) -> None:
        """An opaque thick stroke with round ends."""
        fixed, thickness = [self.fixed(line)], max(1, round(width * SUPER))
        cv2.polylines(self.rgb, fixed, False, _scalar(colour), thickness, cv2.LINE_AA, _SHIFT)
        cv2.polylines(self.figure, fixed, False, 255, thickness, cv2.LINE_AA, _SHIFT)
        cv2.polylines(self.label, fixed, False, label, thickness, cv2.LINE_8, _SHIFT)

    def layer(self, cover: np.ndarray, paint: Colour, alpha: float = 1.0) -> None:
        """Mix a colour, or a picture (2S, 2S, 3), in where `cover` (2S, 2S) uint8 says."""
        x, y, w, h = cv2.boundingRect(cover)
        if w:
            part = np.s_[y : y + h, x : x + w]
            p = np.asarray(paint)
            blend(self.rgb[part], cover[part], p[part] if p.ndim == 3 else p, alpha)

    def mask(self, polygons: Sequence[np.ndarray]) -> np.ndarray:
        """(2S, 2S) uint8 0..255 coverage of the union of polygons."""
        out = np.zeros(self.label.shape, np.uint8)
        for p in polygons:
            cv2.fillPoly(out, [self.fixed(p)], 255, cv2.LINE_AA, _SHIFT)
        return out

    def glaze(
        self,
        shapes: Sequence[np.ndarray],
        colour: Colour,
        alpha: float = 1.0,
        *,
        blur: float = 0.0,
        width: float = 0.0,
        clip: np.ndarray | None = None,
    ) -> None:
        """Translucent paint: filled polygons (`width` 0) or strokes, softened by `blur` (standard deviation).

        Args:
            clip: (2S, 2S) uint8 coverage outside which nothing is painted.
        """
        box = self.box(shapes, 3 * blur + width)
        if box is None:
            return
        x0, y0, x1, y1 = box
        cover = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = [self.fixed(s, (x0, y0)) for s in shapes]
        if width:
            cv2.polylines(cover, fixed, False, 255, max(1, round(width * SUPER)), cv2.LINE_AA, _SHIFT)
        else:
            for f in fixed:
                cv2.fillPoly(cover, [f], 255, cv2.LINE_AA, _SHIFT)
        if blur:
            cover = cv2.GaussianBlur(cover, (0, 0), blur * SUPER)
        if clip is not None:
            cover = cv2.multiply(cover, clip[y0:y1, x0:x1], scale=1 / 255)
        blend(self.rgb[y0:y1, x0:x1], cover, colour, alpha)

    def label_fill(self, points: np.ndarray, label: int) -> None:
        """A polygon of the class map only."""
        cv2.fillPoly(self.label, [self.fixed(points)], label, cv2.LINE_8, _SHIFT)

    def box(self, shapes: Sequence[np.ndarray], margin: float) -> tuple[int, int, int, int] | None:
        """Canvas rows and columns (x0, y0, x1, y1) that hold the shapes and a margin; None if outside the image."""
        low = np.min([s.min(0) for s in shapes], 0) - margin
        high = np.max([s.max(0) for s in shapes], 0) + margin
        side = self.size * SUPER
        x0, y0 = (max(0, int(v * SUPER) - 2) for v in low)
        x1, y1 = (min(side, int(v * SUPER) + 4) for v in high)
        return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def blend(target: np.ndarray, cover: np.ndarray, paint: Colour, alpha: float = 1.0) -> None:
    """Mix `paint` (a colour, or an image of the target's size) into `target` in place, where `cover` says."""
    weight = cv2.merge([cover.astype(np.float32) * (alpha / 255)] * 3)
    base = target.astype(np.float32)
    change = np.asarray(paint, np.float32) - base
    base += change * weight
    np.rint(base, out=base)
    target[...] = np.clip(base, 0, 255)


def _scalar(colour: Colour) -> tuple[float, float, float]:
    r, g, b = (float(min(255.0, max(0.0, v))) for v in colour)
    return r, g, b
