"""Heatmaps and regions on a grid: arg-max, centroids, masks read at the same places, and regions that need no training.

Each of the latter is a function images (M, S, S, 3) uint8 -> regions (M, g, g).
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from facessl.metrics.bootstrap import as_array

#: images (B, S, S, 3) uint8 -> heatmaps (B, N, h, w), sum 1 over N.
HeatmapsOf = Callable[[np.ndarray], Any]
Partition = Callable[[np.ndarray], np.ndarray]

BATCH = 32  # images worked on at once
_FITTED = 50_000  # pixels, about, that k-means is fitted on, as many of each image; all are assigned


def winners(heatmaps: Any, size: int, *, mode: str = "bilinear") -> np.ndarray:
    """Arg-max on a finer grid: (M, N, h, w) -> (M, size, size) int64; `mode` is "bilinear" or "nearest-exact"."""
    batches = (as_array(heatmaps[i : i + BATCH]) for i in range(0, len(heatmaps), BATCH))
    maps = (F.interpolate(torch.tensor(b, dtype=torch.float32), size=(size, size), mode=mode) for b in batches)
    return np.concatenate([m.argmax(1).numpy() for m in maps])


def on_grid(masks: np.ndarray, size: int) -> np.ndarray:
    """Masks (M, H, W) read at the centers of a size x size grid: (M, size, size)."""
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(int) for n in masks.shape[1:])
    return masks[:, rows][:, :, columns]


def centroids(heatmaps: Any) -> np.ndarray:
    """(M, N, h, w) weights -> (M, 2N) float64 x and y of each map's center of mass, -1 to 1 over the image's edges.

    A map without mass has its centroid at the image's center.
    """
    maps = as_array(heatmaps).astype(np.float64)
    x, y = (2 * _centers(n) - 1 for n in (maps.shape[3], maps.shape[2]))
    mass = maps.sum((2, 3))
    mass[mass == 0] = 1
    return np.concatenate([maps.sum(2) @ x / mass, maps.sum(3) @ y / mass], axis=1)


def region_centroids(regions: np.ndarray, count: int) -> np.ndarray:
    """(M, g, g) regions -> (M, 2 count), as `centroids` of one map per region."""
    return np.concatenate([centroids(one_hot(regions[i : i + BATCH], count)) for i in range(0, len(regions), BATCH)])


def one_hot(regions: np.ndarray, count: int) -> np.ndarray:
    """(B, g, g) -> (B, count, g, g) float32."""
    return (regions[:, None] == np.arange(count)[:, None, None]).astype(np.float32)


def color_clusters(images: np.ndarray, *, count: int, grid: int, position: bool, seed: int) -> Partition:
    """Fit k-means with `count` clusters on the colors, or with `position` the colors and positions, of the pixels of
    all images (M, S, S, 3) uint8, averaged down to a grid of side g.

    Color channels and coordinates run from 0 to 1 and weigh the same.
    """
    from sklearn.cluster import KMeans

    place = np.stack(np.meshgrid(_centers(grid), _centers(grid)), -1).astype(np.float32)  # (g, g, 2)

    def features(images: np.ndarray) -> np.ndarray:
        """(M, S, S, 3) uint8 -> (M g g, 3 or 5)."""
        pixels = np.stack([cv2.resize(i, (grid, grid), interpolation=cv2.INTER_AREA) for i in images]) / np.float32(255)
        if position:
            pixels = np.concatenate([pixels, np.broadcast_to(place, (len(images), *place.shape))], axis=-1)
        return pixels.reshape(-1, pixels.shape[-1])

    rng = np.random.default_rng(seed)
    each = max(1, min(grid**2, _FITTED // len(images)))  # pixels of one image
    sample = [features(image[None])[rng.choice(grid**2, each, replace=False)] for image in images]
    kmeans = KMeans(count, n_init=4, random_state=seed).fit(np.concatenate(sample))
    return lambda images: np.concatenate(
        [kmeans.predict(features(images[i : i + BATCH])).reshape(-1, grid, grid) for i in range(0, len(images), BATCH)]
    )


def fixed(regions: np.ndarray) -> Partition:
    """The same regions (g, g) for every image."""
    return lambda images: np.broadcast_to(regions, (len(images), *regions.shape))


def rectangles(count: int, grid: int) -> np.ndarray:
    """(g, g) image cut into rows x columns = count rectangles, as square a grid as there is; 8 are 2 rows of 4."""
    rows = max(r for r in range(1, int(count**0.5) + 1) if count % r == 0)
    y, x = ((_centers(grid) * n).astype(np.int64) for n in (rows, count // rows))
    return y[:, None] * (count // rows) + x


def mean_face(masks: np.ndarray, classes: int) -> np.ndarray:
    """(M, g, g) masks -> (g, g) the commonest class at each place; the position-only map that knows the labels."""
    return np.stack([(masks == k).sum(0) for k in range(classes)]).argmax(0)


def class_fractions(masks: np.ndarray, classes: int, cells: tuple[int, int]) -> np.ndarray:
    """(M, g, g) masks -> (M, L, h, w) fraction of each class in each cell: heatmaps that know the masks.

    A cell that no pixel falls into (a grid finer than the masks) takes the nearest pixel.
    """
    down, across = (_averaging(masks.shape[1], n) for n in cells)  # (h, g), (w, g)
    return np.stack([down @ one_hot(mask[None], classes)[0] @ across.T for mask in masks])


def _averaging(g: int, cells: int) -> np.ndarray:
    """(cells, g) float32 matrix that averages the pixels whose center falls into each cell."""
    member = (_centers(g) * cells).astype(int)[None] == np.arange(cells)[:, None]
    empty = ~member.any(1)
    member[empty, (_centers(cells) * g).astype(int)[empty]] = True
    return (member / member.sum(1, keepdims=True)).astype(np.float32)


def _centers(n: int) -> np.ndarray:
    """(n,) centers of cells, 0 to 1."""
    return (np.arange(n) + 0.5) / n
