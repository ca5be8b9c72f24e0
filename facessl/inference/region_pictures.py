"""The regions that a method found: heatmaps of images, and pictures of them."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from facessl.core.errors import CheckpointError, ConfigError, DataError
from facessl.core.files import write_picture
from facessl.data.decode import pixels
from facessl.data.source import Source, open_source
from facessl.inference.prediction_pictures import Color, overlay, palette
from facessl.methods.base import has_regions
from facessl.models.forward import forward
from facessl.views.geometric import resize

#: Side of a cell of `write_regions` in pixels.
_CELL = 112


def heatmaps(method: nn.Module, images: np.ndarray, **options: Any) -> Tensor:
    """Heatmaps of a method's regions in evaluation mode, in float32.

    Args:
        method: a method with regions (FRA).
        images: (B, S, S, 3) uint8 RGB squares.
        options: of the method's `heatmaps`, such as `prior="off"` of one with `has_prior`.

    Returns:
        (B, N, h, w) float32 on the CPU, sum 1 over N.

    Raises:
        ConfigError: the method has no regions.
        CheckpointError: the heatmaps are not finite.
    """
    if not has_regions(method):
        raise ConfigError(f"method {type(method).__name__.lower()!r} has no regions to draw: use a run of fra")
    module: Any = method
    x = torch.from_numpy(images).permute(0, 3, 1, 2)  # (B, 3, S, S)
    result: Tensor = forward(method, x, function=functools.partial(module.heatmaps, **options)).float().cpu()
    if not bool(result.isfinite().all()):
        raise CheckpointError(
            "the heatmaps are not finite: the training diverged; lower --optim.lr, or use other weights"
        )
    return result


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
    errors: list[DataError] = []
    squares = [resize(image, size) for image in itertools.islice(_spread(source, count, seed, errors), count)]
    if not squares:
        why = f"the first: {errors[0]}" if errors else "there is none"
        raise DataError(f"none of the images that were tried can be read ({why})")
    return np.stack(squares)


def _spread(source: Any, count: int, seed: int, errors: list[DataError]) -> Iterator[np.ndarray]:
    """The images that `sample_images` takes, and of a stream those after them; `errors` gets those of the others."""
    if source.streaming:
        for sample in source.stream(seed=None, epoch=0, rank=0, world_size=1):
            try:
                yield pixels(sample)
            except DataError as error:
                errors.append(error)
        return
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, len(source), min(count, len(source)) + 1).astype(int).tolist()
    for start, stop in itertools.pairwise(edges):
        offset = int(rng.integers(stop - start))
        # Eight tries keep a stretch of a million broken files from being read to its end.
        for i in range(min(8, stop - start)):
            try:
                yield pixels(source[start + (offset + i) % (stop - start)])
                break
            except DataError as error:
                errors.append(error)


def write_regions(path: Path, method: nn.Module, source: Source | str, *, count: int = 8, seed: int = 0) -> None:
    """Write `regions.png`: a row for each of `count` images, with the heatmaps and the arg-max regions.

    Args:
        path: .png file.
        method: a method with regions, from `facessl.load_method` or in training (its mode is restored).
        source: a source, or how it is written on the command line.
        count: rows; the images are spread over the source.
        seed: of the choice of images.

    Raises:
        ConfigError: the method has no regions.
        DataError: no image can be read.
    """
    opened = open_source(source)
    backbone: Any = method.backbone
    images = sample_images(opened, count=count, size=backbone.image_size, seed=seed)
    maps = heatmaps(method, images)
    write_picture(path, region_picture(np.stack([resize(image, _CELL) for image in images]), maps))


def region_picture(images: np.ndarray, maps: Tensor, *, max_regions: int = 16) -> np.ndarray:
    """A grid: each image, its N heatmaps on one common color scale, and its arg-max regions.

    The scale runs from 0 to the largest value, but at least to twice the uniform 1/N, so that regions that have not
    come alive look flat.

    Args:
        images: (B, S, S, 3) uint8; S is the side of a cell in pixels.
        maps: (B, N, h, w), sum 1 over N, any resolution.
        max_regions: columns at most; of more regions those with the largest mean are shown.

    Returns:
        (H, W, 3) uint8 RGB on white, with column titles and the color scale.
    """
    side, total = images.shape[1], maps.shape[1]
    maps = F.interpolate(maps.float().cpu(), size=(side, side), mode="bilinear", align_corners=False)
    order = maps.mean(dim=(0, 2, 3)).argsort(descending=True)[:max_regions].sort().values.tolist()
    colors = palette(total)
    shown = maps[:, order].numpy()  # (B, n, S, S)
    top = max(float(shown.max()), 2 / total)
    gray = images.mean(axis=3, keepdims=True)
    winners = maps.argmax(dim=1).numpy()  # (B, S, S)
    cells = [
        images[:, None],
        (colormaps["magma"](shown / top)[..., :3] * 255).round().astype(np.uint8),
        np.stack([overlay(*pair, colors) for pair in zip(gray, winners, strict=True)])[:, None],
    ]  # each (B, columns, S, S, 3)
    titles = [("image", None), *((f"region {i + 1}", colors[i]) for i in order), ("regions", None)]
    note = f"{len(order)} of {total} regions, those with the largest fraction" if len(order) < total else ""
    return _framed(np.concatenate(cells, axis=1), titles, top=top, uniform=1 / total, note=note)


def _framed(
    cells: np.ndarray, titles: Sequence[tuple[str, Color | None]], *, top: float, uniform: float, note: str
) -> np.ndarray:
    """Cells (rows, columns, S, S, 3) as a grid, with a title for each column above and the color scale below."""
    rows, columns, side = cells.shape[:3]
    gap, margin, size = max(3, side // 28), max(10, side // 8), max(9, round(side / 8))
    pitch = side + gap
    grid = np.pad(cells, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(rows * pitch, columns * pitch, 3)
    foot, head, after = margin + 3 * size, margin + round(1.6 * size), 2 * margin + 2 * pitch + 2 * size
    width, height = max(columns * pitch + 2 * margin, after + 35 * size), head + rows * pitch + foot
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)  # a point is a pixel
    figure.figimage(grid, margin, foot)
    for column, (title, color) in enumerate(titles):
        x, y = margin + column * pitch, 1 - margin / height
        if color is not None:
            figure.text(x / width, y, "\N{BLACK SQUARE}", color=np.divide(color, 255), va="top", fontsize=size)
            x += 1.2 * size
        figure.text(x / width, y, title, va="top", fontsize=size)
    scale = ScalarMappable(Normalize(0, top), "magma")
    bar = figure.add_axes((2 * margin / width, (foot - 1.5 * size) / height, 2 * pitch / width, size / height))
    ticks = figure.colorbar(scale, bar, orientation="horizontal", ticks=[0, uniform, top])
    ticks.set_ticklabels(["0", "", f"{top:.2f}"], fontsize=size)
    legend = f"fraction of the pixel, one scale for all; middle tick: {uniform:.3f}, uniform\n{note}"
    figure.text(after / width, (foot - 0.5 * size) / height, legend, va="top", fontsize=size)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
