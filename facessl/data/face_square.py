"""From stored pixels to the pixels a network sees, and back: one implementation for training and inference.

Everywhere the center of the top-left pixel is (0, 0), so that an image of width W spans -0.5 .. W - 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch

from facessl.core.errors import DataError
from facessl.core.types import Sample

Border = Literal["zero", "edge", "reflect"]
Crop = Literal["whole", "box", "five_points"]
Template = Literal["farl", "celeba", "arcface"]

#: Where a similarity puts the five points (left eye, right eye, nose, left and right mouth corner; left of the image),
#: as fractions of the side. "farl": FaRL's and facer's on 512 pixels. "celeba": those of facer's attribute model,
#: given on 256 pixels, moved down by 30 and set into the middle of a canvas of 500 (122 on each side). "arcface":
#: pixels of its 112 x 112 crops (Deng et al., CVPR 2019).
TEMPLATES: dict[Template, np.ndarray] = {
    "farl": np.array([(196, 226), (316, 226), (256, 286), (220, 360.4), (292, 360.4)]) / 512,
    "celeba": np.add(
        [(85.82991, 85.7792), (169.0532, 84.3381), (127.574, 137.0006), (90.6964, 174.7014), (167.3069, 173.3733)],
        (122, 152),
    )
    / 500,
    "arcface": np.add(
        [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], 0.5
    )
    / 112,
}
_BORDERS = {"zero": cv2.BORDER_CONSTANT, "edge": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT}
#: The kernel of `torch.nn.functional.interpolate` (bilinear, antialiased); the way through `torch.ops` takes longer.
_ANTIALIASED: Any = torch._C._nn._upsample_bilinear2d_aa
_PLANES = (0, 3, 1, 2)  # (1, H, W, 3) -> (1, 3, H, W), channels-last in memory
#: Largest |coordinate| that the inverse of tanh is taken of: 8 half views away from the crop.
_NEARLY_ONE = 1 - 1e-7


@dataclass(frozen=True, eq=False)
class Frame:
    """The map from stored pixels to those of a square view.

    A view with `warp` keeps the whole image: view coordinates c in -1 .. 1 stay what they are as long as
    |c| <= 1 - warp, and beyond become (1 - warp) + warp tanh((|c| - (1 - warp)) / warp), each axis by itself
    (FaRL's parsing crops, after the RoI tanh-warping of Lin et al., CVPR 2019).
    """

    matrix: np.ndarray  # (3, 3) float64, stored pixels -> view pixels, before the warp; affine
    size: int  # side S of the view in pixels
    warp: float = 0.0  # 0 (none) to 1

    def compose(self, matrix: np.ndarray) -> Frame:
        """This frame followed by `matrix` (3, 3), view pixels -> view pixels before the warp (see `similarity`)."""
        return replace(self, matrix=matrix @ self.matrix)

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Stored pixels (..., 2) -> view pixels (..., 2) float64."""
        moved = _affine(self.matrix, xy)
        if not self.warp:
            return moved
        c = (moved + 0.5) * (2 / self.size) - 1
        beyond = np.maximum(np.abs(c) - (1 - self.warp), 0)
        c = np.sign(c) * (np.abs(c) - beyond + self.warp * np.tanh(beyond / self.warp))
        return (c + 1) * (self.size / 2) - 0.5

    def inverse_points(self, xy: np.ndarray) -> np.ndarray:
        """View pixels (..., 2) -> stored pixels (..., 2) float64.

        With a warp nothing lies beyond the view's border: what does is taken to the border.
        """
        return _affine(np.linalg.inv(self.matrix), self._unwarped(np.asarray(xy, np.float64)))

    def image(self, image: np.ndarray, border: Border = "zero") -> np.ndarray:
        """Stored image (H, W, 3) uint8 RGB -> view (S, S, 3) uint8; may be the image itself.

        Bilinear, filtered as much as `resize` filters where it shrinks; a frame that only resizes or mirrors the whole
        image gives the pixels of `resize`. `border`: outside lies black, the edge repeated, or the image mirrored.
        """
        height, width = image.shape[:2]
        plain = whole(width, height, self.size)
        if not self.warp:
            corners = np.array([(0, 0), (width, 0), (0, height), (width, height)]) - 0.5
            for mirrored in (False, True):
                other = plain.compose(similarity(self.size, flip=mirrored))
                if np.abs(other.points(corners) - self.points(corners)).max() < 1e-3:
                    out = resize(image, self.size)
                    return cv2.flip(out, 1) if mirrored else out
        image, to_stored = self._shrunk(image)
        x, y = (part.astype(np.float32) for part in self._sources(np.linalg.inv(self.matrix @ to_stored)))
        return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=_BORDERS[border])

    def mask(self, mask: np.ndarray, image_shape: tuple[int, ...] | None = None, *, outside: int = 255) -> np.ndarray:
        """Class map (H, W) uint8 of the stored image -> (S, S), the nearest class; `outside` what is not in the image.

        `image_shape` is (H, W, ...) of the stored image where the mask has another size over the same area.
        """
        height, width = mask.shape
        to_stored = np.eye(3)
        if image_shape is not None and image_shape[:2] != mask.shape:
            fy, fx = image_shape[0] / height, image_shape[1] / width
            to_stored = np.array([(fx, 0, (fx - 1) / 2), (0, fy, (fy - 1) / 2), (0, 0, 1)])
        sources = self._sources(np.linalg.inv(self.matrix @ to_stored))
        x, y = (np.floor(part + 0.5).astype(np.int64) for part in sources)
        beyond = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        out: np.ndarray = mask[y.clip(0, height - 1), x.clip(0, width - 1)]
        out[beyond] = outside
        return out

    def inverse_mask(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """Predictions in the view -> class map (height, width) uint8 of the stored image, 0 outside the view.

        `scores` are (C, s, s) floats, brought back bilinearly before the arg-max, or (s, s) classes, of which the
        nearest counts. Their side s may differ from the view's: it is stretched over the same area.
        """
        out = np.zeros((height, width), np.uint8)
        top, bottom, left, right = self._visible_region(height, width)
        if top >= bottom or left >= right:
            return out
        grid = np.stack(np.meshgrid(np.arange(left, right), np.arange(top, bottom)), -1)  # (h, w, 2)
        view = self.points(grid)
        inside = ((view >= -0.5) & (view < self.size - 0.5)).all(-1)
        place = ((view + 0.5) * (scores.shape[-1] / self.size) - 0.5).astype(np.float32)
        if scores.ndim == 2:
            nearest = np.floor(place + 0.5).astype(np.int64).clip(0, scores.shape[-1] - 1)
            best = scores[nearest[..., 1], nearest[..., 0]].astype(np.uint8)
        else:
            x, y = np.ascontiguousarray(place[..., 0]), np.ascontiguousarray(place[..., 1])
            best = np.zeros(inside.shape, np.uint8)
            top_score = np.full(inside.shape, -np.inf, np.float32)
            for index, channel in enumerate(scores):  # one class at a time: a photo times 19 classes is a gigabyte
                back = cv2.remap(channel.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                better = back > top_score
                best[better], top_score[better] = index, back[better]
        out[top:bottom, left:right] = np.where(inside, best, 0)
        return out

    def _unwarped(self, xy: np.ndarray) -> np.ndarray:
        """View coordinates in pixels, any shape, before the warp."""
        if not self.warp:
            return xy
        c = (xy + 0.5) * (2 / self.size) - 1
        beyond = ((np.abs(c) - (1 - self.warp)) / self.warp).clip(0, _NEARLY_ONE)
        c = np.sign(c) * (np.minimum(np.abs(c), 1 - self.warp) + self.warp * np.arctanh(beyond))
        return (c + 1) * (self.size / 2) - 0.5

    def _sources(self, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y (S, S) float64 that every pixel of the view comes from, by `inverse` (3, 3)."""
        side = self._unwarped(np.arange(self.size, dtype=np.float64))
        x = inverse[0, 0] * side + inverse[0, 2] + (inverse[0, 1] * side)[:, None]
        y = inverse[1, 0] * side + inverse[1, 2] + (inverse[1, 1] * side)[:, None]
        return x, y

    def _visible_region(self, height: int, width: int, margin: int = 1) -> tuple[int, int, int, int]:
        """Rows top .. bottom and columns left .. right of a stored image that the view can show."""
        ends = np.array([(x, y) for x in (-0.5, self.size - 0.5) for y in (-0.5, self.size - 0.5)])
        corners = self.inverse_points(ends)
        low, high = np.floor(corners.min(0)) - margin, np.ceil(corners.max(0)) + margin + 1
        left, top = low.clip(0, (width, height)).astype(int).tolist()
        right, bottom = high.clip(0, (width, height)).astype(int).tolist()
        return top, bottom, left, right

    def _shrunk(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of the image that is shown, without the detail that the view cannot hold; (3, 3) to stored pixels.

        Whole-number shrinking is a mean of blocks; a Gaussian adds the rest, so that blocks, Gaussian and the bilinear
        look-up have together the variance of the triangle filter that `resize` uses, (f^2 / 6) for a factor f.
        """
        linear = np.linalg.norm(self.matrix[:2, :2], axis=0)  # view pixels per stored pixel along x and y
        factors = 1 / np.maximum(linear, 1e-6)
        if factors.max() <= 1.001:
            return image, np.eye(3)
        # Two blocks or more per pixel of the view, so that the look-up between them matters little.
        blocks = np.maximum(np.floor(factors / 2 + 1e-6), 1).astype(int)
        top, bottom, left, right = self._visible_region(image.shape[0], image.shape[1], 4 * int(blocks.max()))
        part = image[top:bottom, left:right]
        if part.size == 0:
            return image, np.eye(3)
        kx, ky = (int(k) for k in blocks)
        if kx > 1 or ky > 1:
            h, w = -(-part.shape[0] // ky), -(-part.shape[1] // kx)
            rest = (0, h * ky - part.shape[0], 0, w * kx - part.shape[1])
            part = cv2.copyMakeBorder(part, *rest, cv2.BORDER_REPLICATE)
            part = cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA)
        variance = (np.maximum(factors / blocks, 1) ** 2 - 1) / 6 - (1 - 1 / blocks**2) / 12  # of the Gaussian
        along_x, along_y = (_smoothing(v) for v in variance)
        part = cv2.sepFilter2D(part, -1, along_x, along_y, borderType=cv2.BORDER_REPLICATE)
        return part, np.array([(kx, 0, left + (kx - 1) / 2), (0, ky, top + (ky - 1) / 2), (0, 0, 1)], np.float64)


def whole(width: int, height: int, size: int) -> Frame:
    """The whole image, resized to the square without regard to its aspect ratio: out = (in + 0.5) S / W - 0.5."""
    sx, sy = size / width, size / height
    return Frame(np.array([(sx, 0, sx / 2 - 0.5), (0, sy, sy / 2 - 0.5), (0, 0, 1)]), size)


def from_box(box: Sequence[float] | np.ndarray, size: int, scale: float = 1.0) -> Frame:
    """The square around a box's center whose side is the box's longer one times `scale`; views of side `size`.

    The box is (4,) left, top, right, bottom in pixels; the center +- 100 times the `scale` of FaRL's and HRNet's lists
    is one. DataError: a box without area.
    """
    left, top, right, bottom = (float(v) for v in box)
    side = max(right - left, bottom - top) * scale
    if not (math.isfinite(side) and right > left and bottom > top):
        raise DataError(
            f"the box {(left, top, right, bottom)} has no area: it must be left, top, right, bottom in pixels"
        )
    zoom, middle = size / side, (size - 1) / 2
    shift = (middle - zoom * (left + right) / 2, middle - zoom * (top + bottom) / 2)
    return Frame(np.array([(zoom, 0, shift[0]), (0, zoom, shift[1]), (0, 0, 1)]), size)


def from_eyes(box: Sequence[float] | np.ndarray, points: np.ndarray, size: int, scale: float = 1.0) -> Frame:
    """`from_box`, turned about the middle of the box until the eyes (the first two of the five points) are level."""
    right, down = np.subtract(points[1], points[0], dtype=np.float64)
    return from_box(box, size, scale).compose(similarity(size, rotation=-math.degrees(math.atan2(down, right))))


def from_five_points(points: np.ndarray, size: int, template: Template = "farl", scale: float = 1.0) -> Frame:
    """The similarity (rotation, one scale, shift) that brings `Sample.five_points` (5, 2) nearest to a template in
    least squares; a `scale` of 1.25 shows 1.25 times as much around the center, as in `from_box`.

    The closed form in the plane of the estimate of Umeyama (PAMI 1991), which FaRL and facer use; it never mirrors.
    DataError: points that are missing or all the same.
    """
    target = ((TEMPLATES[template] - 0.5) / scale + 0.5) * size - 0.5
    # A similarity of the plane is w = a z + b in complex numbers.
    z, w = (p[:, 0] + 1j * p[:, 1] for p in (np.asarray(points, np.float64), target))
    zc, wc = z - z.mean(), w - w.mean()
    spread = float((np.abs(zc) ** 2).sum())
    if not math.isfinite(spread) or spread < 1e-6:
        shown = np.round(np.asarray(points, np.float64), 1).tolist()
        raise DataError(f"the five points of a face must be five different finite points, but they are {shown}")
    a = (zc.conj() * wc).sum() / spread
    b = w.mean() - a * z.mean()
    return Frame(np.array([(a.real, -a.imag, b.real), (a.imag, a.real, b.imag), (0, 0, 1)]), size)


def frame_of(
    sample: Sample,
    image_shape: tuple[int, ...],
    *,
    crop: Crop = "whole",
    size: int,
    scale: float = 1.0,
    warp: float = 0.0,
    template: Template = "farl",
) -> Frame:
    """The frame of one sample with a decoded image of `image_shape` (H, W, ...).

    Args:
        crop: "whole" image, square around the sample's `box`, or similarity of its `five_points`.
        scale: how much is shown, relative to the box, the template or the whole image.
        size, warp, template: of `Frame`, and a name in `TEMPLATES`.

    Raises:
        DataError: the sample lacks what the crop needs.
    """
    if crop == "whole":
        frame = whole(image_shape[1], image_shape[0], size)
        if scale != 1:
            frame = frame.compose(similarity(size, scale=1 / scale))
    elif getattr(sample, crop) is None:
        raise DataError(
            f"{sample.key} has no {crop}, which the crop {crop!r} needs: use a source that gives it, or another crop"
        )
    elif crop == "box":
        frame = from_box(sample.box, size, scale)  # type: ignore[arg-type]
    else:
        frame = from_five_points(sample.five_points, size, template, scale)  # type: ignore[arg-type]
    return replace(frame, warp=warp)


def similarity(
    size: int,
    *,
    rotation: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> np.ndarray:
    """(3, 3) float64 that turns and scales a view of side `size` about its center, then shifts, then mirrors it.

    `rotation` in degrees, positive clockwise as one sees it; `scale` above 1 enlarges; `shift` to the right and down,
    as fractions of the side.
    """
    middle, turn = (size - 1) / 2, math.radians(rotation)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    x = middle - cos * middle + sin * middle + shift[0] * size
    y = middle - sin * middle - cos * middle + shift[1] * size
    matrix = np.array([(cos, -sin, x), (sin, cos, y), (0, 0, 1)])
    return np.array([(-1, 0, size - 1), (0, 1, 0), (0, 0, 1)]) @ matrix if flip else matrix


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """The whole image (H, W, 3) uint8 -> (size, size, 3) uint8, without regard to its aspect ratio; see `resize_to`."""
    return resize_to(image, size, size)


def resize_to(image: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """The whole image (H, W, 3) uint8 -> (height, width, 3) uint8, contiguous.

    Bilinear and antialiased, as Pillow and torchvision resize, to within the rounding of OpenCV: by OpenCV where both
    axes grow, else by torch.

    Args:
        out: (height, width, 3) uint8, contiguous, which is filled and returned; None: new memory, or the image itself
            if it has the size.
    """
    h, w = image.shape[:2]
    if (h, w) == (height, width) and out is None:
        return image
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    if (h, w) == (height, width):
        np.copyto(out, image)
    elif h <= height and w <= width:
        cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        # `interpolate` would give planes for a batch of one, however its input lies in memory, and turning those into
        # pixels again costs as much as resizing does; told where to write, its kernel writes pixels.
        pixels = torch.from_numpy(np.ascontiguousarray(image)[None].transpose(_PLANES))
        _ANTIALIASED(pixels, (height, width), False, None, None, out=torch.from_numpy(out[None].transpose(_PLANES)))
    return out


def _smoothing(variance: float) -> np.ndarray:
    """Odd filter of a given variance in squared pixels, a Gaussian where that is wider than its three middle taps."""
    if variance <= 0.5:
        return np.array([variance / 2, 1 - variance, variance / 2])
    reach = math.ceil(3 * math.sqrt(variance))
    kernel = np.exp(-0.5 * np.arange(-reach, reach + 1) ** 2 / variance)
    return kernel / kernel.sum()


def _affine(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return np.asarray(xy, np.float64) @ matrix[:2, :2].T + matrix[:2, 2]
