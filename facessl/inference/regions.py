"""The regions that a method found, as pictures: image, heatmaps and arg-max regions."""

from __future__ import annotations

import colorsys
import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from facessl.core.errors import CheckpointError, ConfigError, DataError
from facessl.data.loader import pixels
from facessl.data.source import Source, open_source
from facessl.models.backbone import Backbone
from facessl.models.forward import autocast, evaluating
from facessl.views.geometric import resize
from facessl.views.normalize import normalize

#: Region colours that stay apart for most colour-blind readers; further ones are spread over the hues.
_PALETTE = ("e6194b", "4363d8", "ffe119", "3cb44b", "f58231", "42d4f4", "911eb4", "fabed4")

#: Text of the pixel pictures, which are white in light and dark pages.
_DARK = (25, 25, 25)


def heatmaps(method: nn.Module, images: np.ndarray, *, precision: str = "fp32") -> Tensor:
    """Heatmaps of a method's regions as evaluation sees them.

    Args:
        method: a method with regions (FRA).
        images: (B, S, S, 3) uint8 RGB squares.
        precision: fp32, bf16 or fp16 (autocast).

    Returns:
        (B, N, h, w) float32 on the CPU, sum 1 over N.

    Raises:
        ConfigError: the method has no regions.
        CheckpointError: the heatmaps are not finite.
    """
    find_regions = getattr(method, "heatmaps", None)
    if find_regions is None or not getattr(method, "has_regions", True):
        raise ConfigError(f"method {type(method).__name__.lower()!r} has no regions to draw: use a run of fra")
    device = next(method.parameters()).device
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)  # (B, 3, S, S)
    backbone = method.backbone
    assert isinstance(backbone, Backbone)
    with evaluating(method), autocast(device, precision):
        found: Tensor = find_regions(normalize(pixels, backbone.mean, backbone.std)).float().cpu()
    if not bool(found.isfinite().all()):
        raise CheckpointError(
            "the heatmaps are not finite: the training diverged; lower --optim.lr, or use other weights"
        )
    return found


def sample_images(source: Source, *, count: int, size: int, seed: int = 0) -> np.ndarray:
    """Up to `count` whole images of a source, one drawn from each of `count` equal stretches of it.

    Args:
        source: any source; a streaming one gives its first images.
        count: images wanted, at least 1.
        size: side in pixels that each image is resized to.
        seed: of the positions within the stretches.

    Returns:
        (count or fewer, size, size, 3) uint8. An unreadable image gives way to the next one of its stretch.

    Raises:
        ConfigError: `count` below 1.
        DataError: none of the images that were tried can be read.
    """
    if count < 1:
        raise ConfigError(f"{count} images cannot be shown: ask for 1 or more")
    squares = [resize(image, size) for image in itertools.islice(_spread(source, count, seed), count)]
    if not squares:
        raise DataError("none of the images that were tried can be read: see what `facessl embed` says about each")
    return np.stack(squares)


def _spread(source: Any, count: int, seed: int) -> Iterator[np.ndarray]:
    """The images that `sample_images` takes, and of a stream those after them."""
    if source.streaming:
        for sample in source.stream(seed=None, epoch=0, rank=0, world_size=1):
            with contextlib.suppress(DataError):
                yield pixels(sample)
        return
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, len(source), min(count, len(source)) + 1).astype(int).tolist()
    for start, stop in itertools.pairwise(edges):
        offset = int(rng.integers(stop - start))
        # Eight tries keep a stretch of a million broken files from being read to its end.
        for i in range(min(8, stop - start)):
            with contextlib.suppress(DataError):
                yield pixels(source[start + (offset + i) % (stop - start)])
                break


def region_grid(
    method: nn.Module,
    source: Source | str,
    *,
    count: int = 8,
    seed: int = 0,
    cell: int = 112,
    precision: str = "fp32",
) -> np.ndarray:
    """One picture of what the regions follow: image, the N heatmaps and the arg-max regions, a row per image.

    Args:
        method: a method with regions, from `facessl.load_method` or in training (its mode is restored).
        source: a source, or how it is written on the command line.
        count: rows; the images are spread over the source.
        seed: of the choice of images.
        cell: side of one picture in pixels.
        precision: fp32, bf16 or fp16 (autocast).

    Returns:
        (H, W, 3) uint8 RGB; `write_png` stores it.

    Raises:
        ConfigError: the method has no regions.
        DataError: no image can be read.
    """
    opened = open_source(source) if isinstance(source, str) else source
    backbone: Any = method.backbone
    images = sample_images(opened, count=count, size=backbone.image_size, seed=seed)
    found = heatmaps(method, images, precision=precision)
    return region_picture(np.stack([resize(image, cell) for image in images]), found)


def region_colours(count: int) -> list[tuple[int, int, int]]:
    """`count` RGB colours, 0..255, that can be told apart."""
    chosen = [tuple(bytes.fromhex(code)) for code in _PALETTE[:count]]
    for i in range(len(chosen), count):
        # The golden angle puts each new hue far from the earlier ones.
        hue, light = (0.05 + i * 0.618034) % 1, (0.42, 0.62, 0.78)[i % 3]
        chosen.append(tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.75)))
    return chosen  # type: ignore[return-value]


def region_overlay(image: np.ndarray, winners: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """(S, S, 3) uint8: a grey image tinted by the region (S, S) of each pixel, with light borders between them."""
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    out = 0.5 * grey + 0.5 * np.asarray(colours, np.float32)[winners]
    border = borders(winners)
    out[border] = 0.35 * out[border] + 0.65 * 255
    return out.round().astype(np.uint8)


def borders(classes: np.ndarray) -> np.ndarray:
    """(H, W) whether the pixel above or to the left is of another class."""
    border = np.zeros(classes.shape, bool)
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    border[1:] |= classes[1:] != classes[:-1]
    return border


def region_picture(images: np.ndarray, heatmaps: Tensor, *, max_regions: int = 16) -> np.ndarray:
    """A grid: each image, its N heatmaps on one common colour scale, and its arg-max regions.

    The scale runs from 0 to the largest value, but at least to twice the uniform 1/N: regions that have
    not come alive look as flat as they are. The arg-max shows which region is ahead, be it by a hair.

    Args:
        images: (B, S, S, 3) uint8; S is the side of a cell in pixels.
        heatmaps: (B, N, h, w), sum 1 over N, any resolution.
        max_regions: columns at most; of more regions those with the largest mean are shown.

    Returns:
        (H, W, 3) uint8 RGB on white, with column titles and the colour scale.
    """
    rows, side = images.shape[:2]
    total = heatmaps.shape[1]
    maps = F.interpolate(heatmaps.float().cpu(), size=(side, side), mode="bilinear", align_corners=False)
    order = maps.mean(dim=(0, 2, 3)).argsort(descending=True)[:max_regions].sort().values.tolist()
    colours = region_colours(total)
    winners = maps.argmax(dim=1).numpy()  # (B, S, S)
    shown = maps[:, order].numpy()  # (B, n, S, S)
    top = max(float(shown.max()), 2 / total)
    painted = _colour_map()[(shown / top * 255).round().astype(np.uint8)]  # (B, n, S, S, 3)
    note = f"{len(order)} of {total} regions, those with the largest fraction" if len(order) < total else ""
    legend = _legend(top, 1 / total, side, note)

    gap, margin, head = max(3, side // 28), max(10, side // 8), max(22, side // 4)
    group = 2 * gap
    xs = [margin + i * (side + gap) + (group if i else 0) for i in range(len(order) + 1)]
    xs.append(xs[-1] + side + gap + group)
    width = max(xs[-1] + side, xs[1] + legend.width) + margin
    height = margin + head + rows * (side + gap) + 2 * gap + legend.height + margin
    canvas = Image.new("RGB", (width, height), "white")
    for row in range(rows):
        y = margin + head + row * (side + gap)
        cells = [images[row], *painted[row], region_overlay(images[row], winners[row], colours)]
        for x, cell in zip(xs, cells, strict=True):
            canvas.paste(Image.fromarray(cell), (x, y))
    draw, letters = ImageDraw.Draw(canvas), font(max(9, round(side / 8)))
    box = round(letters.size * 0.8)
    titles = [("image", None), *((f"region {i + 1}", colours[i]) for i in order), ("regions", None)]
    for x, (text, colour) in zip(xs, titles, strict=True):
        if colour is not None:
            draw.rectangle((x, margin + 2, x + box, margin + 2 + box), fill=colour, outline=(90, 90, 90))
        draw.text((x + (box + max(4, box // 2) if colour else 0), margin), text, fill=_DARK, font=letters)
    canvas.paste(legend, (xs[1], height - margin - legend.height))
    return np.asarray(canvas)


def _legend(top: float, uniform: float, side: int, note: str) -> Image.Image:
    """The colour bar: 0, the level of uniform heatmaps, and the largest value."""
    letters, pad = font(max(9, round(side / 8))), max(6, side // 14)
    length, thick = 2 * side, round(letters.size)
    end = f"{top:.2f}   fraction of the pixel, one scale for all;   mark: {uniform:.3f}, uniform"
    start = round(letters.getlength("0")) + pad
    width = max(start + length + pad + letters.getlength(end), letters.getlength(note))
    line = thick + 8
    strip = Image.new("RGB", (round(width) + 1, 2 * line if note else line), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((0, line + 2), note, fill=_DARK, font=letters)
    draw.text((0, 4), "0", fill=_DARK, font=letters)
    ramp = np.linspace(0, 255, length).round().astype(np.uint8)
    strip.paste(Image.fromarray(np.repeat(_colour_map()[ramp][None], thick, axis=0)), (start, 4))
    tick = start + round(uniform / top * (length - 1))
    draw.line((tick, 0, tick, line), fill=_DARK, width=max(1, side // 64))
    draw.text((start + length + pad, 4), end, fill=_DARK, font=letters)
    return strip


@functools.cache
def _colour_map() -> np.ndarray:
    """(256, 3) uint8: matplotlib's magma, dark to light with equal perceived steps."""
    return (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along, with letters of `size` pixels."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
