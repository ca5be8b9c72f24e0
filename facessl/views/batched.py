"""Crops and flips of whole batches on the device that holds the images (`--cache device`).

Boxes and colours are drawn in the worker, to the bit those of `facessl.views.geometric`, for all images of a batch at
once (`Boxes`); only the resampling runs elsewhere, as two matrix products per view: antialiased like
`facessl.data.frame.resize`, equal to it within rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from facessl.core.types import Batch
from facessl.views.geometric import DRAWS, TRIES, Geometric, crop_box
from facessl.views.photometric import CHUNK_CPU, CHUNK_GPU
from facessl.views.spec import Column, View


class Boxes:
    """Draws what `facessl.views.geometric.Geometric` draws for every image of a batch, and cuts nothing.

    Attributes:
        views, sizes: as in `Geometric`.
        draws: random numbers that an image takes.
    """

    def __init__(self, views: Sequence[View], image_size: int, stored: tuple[int, int]) -> None:
        """
        Args:
            views: one entry per view.
            image_size: the run's image size in pixels.
            stored: height and width of the images on the device.

        Raises:
            ConfigError: as `Geometric` does.
        """
        plain = Geometric(views, image_size)
        self.views, self.sizes, self.stored = plain.views, plain.sizes, np.array(stored)
        self.draws = DRAWS * len(self.views)

    def rows(self, shapes: np.ndarray, draws: np.ndarray) -> list[np.ndarray]:
        """Draw every view of a batch.

        Args:
            shapes: (B, 2) heights and widths of the images before they were stored.
            draws: (B, `draws`) the first numbers of each image's own generator; nothing else decides the result.

        Returns:
            2 V arrays: V of photometric parameters (B, P) float32, then V of boxes (B, 5) float32: top, left, height,
            width in pixels of the stored image, and 1 where the view is mirrored.
        """
        params, boxes = [], []
        scale = np.tile(self.stored / shapes, 2)  # (B, 4)
        for view, numbers in zip(self.views, np.split(draws, len(self.views), axis=1), strict=True):
            flip = numbers[:, 2 * TRIES + 2 : 2 * TRIES + 3] < view.flip
            boxes.append(np.concatenate([crop_boxes(view, shapes, numbers) * scale, flip], 1, dtype=np.float32))
            params.append(photometric_rows(view, numbers[:, 2 * TRIES + 3 :]))
        return params + boxes


def crop_boxes(view: View, shapes: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """`facessl.views.geometric.crop_box` of many images, to the bit.

    Args:
        view: its `scale` and `ratio` bound the crop.
        shapes: (B, 2) heights and widths in pixels.
        draws: (B, >= 2 * TRIES + 2) uniform in 0..1.

    Returns:
        (B, 4) float64 whole numbers: top, left, height, width.
    """
    out = np.concatenate([np.zeros(shapes.shape), shapes], 1)
    if view.whole:
        return out
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    left = np.arange(len(shapes))  # images without a crop so far
    for first in range(0, 2 * TRIES, 2):
        area_draw, ratio_draw = draws[left, first], draws[left, first + 1]
        area = shapes[left].prod(1) * (view.scale[0] + area_draw * (view.scale[1] - view.scale[0]))
        # numpy's exponential may differ in the last bit
        ratio = np.array(list(map(math.exp, (low + ratio_draw * (high - low)).tolist())))
        sides = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], 1)))
        fits = ((sides > 0) & (sides <= shapes[left])).all(1)
        done, sides = left[fits], sides[fits]
        out[done, :2] = np.floor(draws[done, 2 * TRIES : 2 * TRIES + 2] * (shapes[done] - sides + 1))
        out[done, 2:] = sides
        left = left[~fits]
        if not len(left):
            break
    for image in left.tolist():
        height, width = shapes[image].tolist()
        out[image] = crop_box(view, height, width, draws[image])
    return out


def photometric_rows(view: View, draws: np.ndarray) -> np.ndarray:
    """`facessl.views.geometric.photometric_params` of many images, to the bit: (B, 10) -> (B, P) float32."""
    jitter, brightness, contrast, saturation, hue, order, grey, blur, sigma, solarise = draws.T
    out = np.empty((len(draws), len(Column)), np.float32)
    out[:, Column.JITTER] = jitter < view.jitter_p
    for column, strength, draw in zip(
        (Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION),
        view.jitter[:3],
        (brightness, contrast, saturation),
        strict=True,
    ):
        low = max(0.0, 1 - strength)
        out[:, column] = low + draw * (1 + strength - low)
    out[:, Column.HUE] = (2 * hue - 1) * view.jitter[3]
    out[:, Column.ORDER] = np.floor(order * 24)
    out[:, Column.GREY] = grey < view.grey
    low, high = view.blur_sigma
    out[:, Column.BLUR] = np.where(blur < view.blur, low + sigma * (high - low), 0)
    out[:, Column.SOLARISE] = np.where(solarise < view.solarise, view.solarise_threshold, 256)
    return out


class Cutter:
    """Batches whose views were drawn by `Boxes` -> batches whose views are cut, on the device of the images."""

    def __init__(self, images: Tensor, sizes: Sequence[int]) -> None:
        """
        Args:
            images: (N, H, W, 3) uint8; row i is image i of the source.
            sizes: S_v, side of each view in pixels.
        """
        self.images, self.sizes = images, tuple(sizes)

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Every batch with its views."""
        for batch in batches:
            yield self(batch)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with V views (B, 3, S_v, S_v) uint8, channels-last in memory, and V `params`."""
        count = len(self.sizes)
        params, boxes = batch.params[:count], batch.params[count:]
        return replace(batch, views=self.cut(batch.index, boxes), params=params)

    @torch.no_grad()
    def cut(self, index: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
        """Views of images.

        Args:
            index: (B,) int64 rows of `images`.
            boxes: V tensors (B, 5) float32, as `Boxes` gives them.

        Returns:
            V tensors (B, 3, S_v, S_v) uint8, channels-last in memory, on the device of the images.
        """
        device = self.images.device
        rows, drawn = _put(index, device), _put(torch.stack(list(boxes)), device)
        # Half precision has 11 bits: results differ from float32 by less than the rounding to 8 bits.
        kind = torch.float16 if device.type == "cuda" else torch.float32
        out = [
            torch.empty((len(index), 3, size, size), dtype=torch.uint8, device=device).to(
                memory_format=torch.channels_last
            )
            for size in self.sizes
        ]
        chunk = max(1, (CHUNK_CPU if device.type == "cpu" else CHUNK_GPU) // self.images[0].numel())
        for start in range(0, len(index), chunk):
            part = slice(start, start + chunk)
            stored = self.images.index_select(0, rows[part]).permute(0, 3, 1, 2)
            planes = stored.to(kind, memory_format=torch.contiguous_format)  # (n, 3, H, W)
            for view, box in zip(out, drawn[:, part], strict=True):
                view[part] = resample(planes, box, view.shape[-1])
        return out


def resample(planes: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Boxes of images, resized to squares and mirrored.

    Args:
        planes: (n, 3, H, W) of a floating type, 0..255.
        boxes: (n, 5) float32 top, left, height, width, mirrored, as `Boxes` gives them.
        size: side S of the results.

    Returns:
        (n, 3, S, S) uint8.
    """
    n, channels, height, width = planes.shape
    top, left, h, w, flip = boxes.unbind(1)
    down = interpolation(top, h, torch.zeros_like(flip), size, height).to(planes.dtype)  # (n, S, H)
    right = interpolation(left, w, flip, size, width).to(planes.dtype)  # (n, S, W)
    # (n, 3 H, W) x (n, W, S) -> (n, 3, H, S)
    narrow = torch.bmm(planes.view(n, channels * height, width), right.mT).view(n, channels, height, size)
    whole = torch.stack([torch.bmm(down, narrow[:, c]) for c in range(channels)], dim=1)  # (n, 3, S, S)
    return whole.round_().clamp_(0, 255).to(torch.uint8)


def interpolation(start: Tensor, length: Tensor, flip: Tensor, size: int, stored: int) -> Tensor:
    """Matrices that resize one axis of a box, as `facessl.data.frame.resize` does.

    Weights are a triangle around the place that a pixel comes from, as wide as a pixel where the box is enlarged, else
    as the step between the places (Pillow's and torch's antialiased bilinear). Pixels outside the box have no weight.

    Args:
        start, length: (n,) of the box in stored pixels.
        flip: (n,) 1 where the axis is mirrored.
        size: pixels S of the result.
        stored: pixels L of the image.

    Returns:
        (n, S, L) float32, rows sum to 1.
    """
    first, extent = start[:, None, None], length[:, None, None]
    out = torch.arange(size, device=start.device, dtype=torch.float32)[:, None] + 0.5  # (S, 1)
    out = torch.where(flip[:, None, None] > 0, size - out, out)  # (n, S, 1)
    step = extent / size
    pixel = torch.arange(stored, device=start.device, dtype=torch.float32)  # (L,)
    weights = (pixel + 0.5 - first - out * step).abs_().div_(step.clamp_min(1)).neg_().add_(1).clamp_min_(0)
    weights *= (pixel + 1 > first) & (pixel < first + extent)
    return weights.div_(weights.sum(-1, keepdim=True))


def _put(values: Tensor, device: torch.device) -> Tensor:
    """A small host tensor on `device`, without waiting for the device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
