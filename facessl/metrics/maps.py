"""Heatmaps on other grids: arg-max regions, centroids, masks read at the same places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facessl.metrics.bootstrap import as_array

#: images (B, S, S, 3) uint8 -> heatmaps (B, N, h, w), sum 1 over N.
HeatmapsOf = Callable[[np.ndarray], Any]

#: Images worked on at once.
BATCH = 32


def winners(heatmaps: Any, size: int, *, mode: str = "bilinear") -> np.ndarray:
    """Arg-max regions on a finer grid: (M, N, h, w) -> (M, size, size) int64.

    Args:
        mode: bilinear: heatmaps are interpolated, then compared; nearest: each cell is a block.
    """
    out = []
    for start in range(0, len(heatmaps), BATCH):
        maps = torch.tensor(as_array(heatmaps[start : start + BATCH]), dtype=torch.float32)
        out.append(largest(enlarge(maps, size, mode)))
    return np.concatenate(out)


def largest(maps: Tensor) -> np.ndarray:
    """(B, N, g, g) -> (B, g, g) int64 arg-max over N, the first of equal ones; faster than torch's across channels."""
    best, out = maps[:, 0], torch.zeros(maps.shape[0], *maps.shape[2:], dtype=torch.int64)
    for n in range(1, maps.shape[1]):
        out.masked_fill_(maps[:, n] > best, n)
        best = torch.maximum(best, maps[:, n])
    return out.numpy()


def enlarge(maps: Tensor, size: int, mode: str = "bilinear") -> Tensor:
    """(B, N, h, w) -> (B, N, size, size)."""
    if mode == "nearest":
        return F.interpolate(maps, size=(size, size), mode="nearest-exact")
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)


def on_grid(masks: np.ndarray, size: int) -> np.ndarray:
    """Masks (M, H, W) read at the centres of a size x size grid: (M, size, size)."""
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(int) for n in masks.shape[1:])
    return masks[:, rows][:, :, columns]


def centroids(heatmaps: Any) -> np.ndarray:
    """(M, N, h, w) weights -> (M, 2N) float64 x and y of each map's centre of mass, -1 to 1 over the image's edges.

    A map without mass has its centroid at the image's centre.
    """
    maps = as_array(heatmaps).astype(np.float64)
    x, y = ((2 * np.arange(n) + 1) / n - 1 for n in (maps.shape[3], maps.shape[2]))
    mass = maps.sum((2, 3))
    mass[mass == 0] = 1
    return np.concatenate([maps.sum(2) @ x / mass, maps.sum(3) @ y / mass], axis=1)


def region_centroids(regions: np.ndarray, count: int) -> np.ndarray:
    """(M, g, g) regions -> (M, 2 count), as `centroids` of one map per region."""
    return np.concatenate([centroids(one_hot(regions[i : i + BATCH], count)) for i in range(0, len(regions), BATCH)])


def one_hot(regions: np.ndarray, count: int) -> np.ndarray:
    """(B, g, g) -> (B, count, g, g) float32."""
    return (regions[:, None] == np.arange(count)[:, None, None]).astype(np.float32)
