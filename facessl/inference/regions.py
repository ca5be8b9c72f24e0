"""Heatmaps of a method's regions, and the images that they are looked at on."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facessl.core.errors import CheckpointError, ConfigError, DataError
from facessl.data.loader import pixels
from facessl.data.source import Source
from facessl.methods.base import has_regions
from facessl.models.forward import evaluating
from facessl.views.geometric import resize
from facessl.views.normalise import normalise


def heatmaps(method: nn.Module, images: np.ndarray) -> Tensor:
    """Heatmaps of a method's regions in evaluation mode, in float32.

    Args:
        method: a method with regions (FRA).
        images: (B, S, S, 3) uint8 RGB squares.

    Returns:
        (B, N, h, w) float32 on the CPU, sum 1 over N.

    Raises:
        ConfigError: the method has no regions.
        CheckpointError: the heatmaps are not finite.
    """
    if not has_regions(method):
        raise ConfigError(f"method {type(method).__name__.lower()!r} has no regions to draw: use a run of fra")
    module: Any = method
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(next(method.parameters()).device)  # (B, 3, S, S)
    with evaluating(method):
        result: Tensor = module.heatmaps(normalise(x, module.backbone.mean, module.backbone.std)).float().cpu()
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
