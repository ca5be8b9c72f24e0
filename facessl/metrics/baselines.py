"""Regions that need no training, which any claim about discovered regions has to stand beside.

Each baseline is a function images (M, S, S, 3) uint8 -> regions (M, g, g), so that it can be asked again about warped
images.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from facessl.metrics.maps import BATCH

Partition = Callable[[np.ndarray], np.ndarray]

#: Pixels, about, that k-means is fitted on, as many of each image; all are assigned.
_FITTED = 50_000


def colour_clusters(images: np.ndarray, *, count: int, grid: int, position: bool, seed: int) -> Partition:
    """k-means of the pixels' colours, or of colour and position, fitted on all images together.

    Colour channels and coordinates run from 0 to 1 and weigh the same; were position to weigh much more, the clusters
    would become a grid, which is a baseline of its own.

    Args:
        images: (M, S, S, 3) uint8.
        count: clusters.
        grid: side g of the regions; images are averaged down to it.
        position: whether the place of a pixel counts too.
        seed: of the fit.
    """
    from sklearn.cluster import KMeans

    def features(images: np.ndarray) -> np.ndarray:
        """(M, S, S, 3) uint8 -> (M g g, 3 or 5)."""
        pixels = np.stack([cv2.resize(i, (grid, grid), interpolation=cv2.INTER_AREA) for i in images]) / np.float32(255)
        if position:
            place = np.broadcast_to(np.stack(_places(grid), -1)[None], (len(images), grid, grid, 2))
            pixels = np.concatenate([pixels, place.astype(np.float32)], axis=-1)
        return pixels.reshape(-1, pixels.shape[-1])

    rng = np.random.default_rng(seed)
    each = max(1, min(grid**2, _FITTED // len(images)))  # pixels of one image
    chosen = [features(image[None])[rng.choice(grid**2, each, replace=False)] for image in images]
    fitted = KMeans(count, n_init=4, random_state=seed).fit(np.concatenate(chosen))
    return lambda images: np.concatenate(
        [fitted.predict(features(images[i : i + BATCH])).reshape(-1, grid, grid) for i in range(0, len(images), BATCH)]
    )


def fixed(regions: np.ndarray) -> Partition:
    """The same regions (g, g) for every image."""
    return lambda images: np.broadcast_to(regions, (len(images), *regions.shape))


def rectangles(count: int, grid: int) -> np.ndarray:
    """(g, g) image cut into rows x columns = count rectangles, as square a grid as there is; 8 are 2 rows of 4."""
    rows = max(r for r in range(1, int(count**0.5) + 1) if count % r == 0)
    x, y = _places(grid)
    return (y * rows).astype(np.int64) * (count // rows) + (x * (count // rows)).astype(np.int64)


def mean_face(masks: np.ndarray, classes: int) -> np.ndarray:
    """(M, g, g) masks -> (g, g) the commonest class at each place; the position-only map that knows the labels."""
    return np.stack([(masks == k).sum(0) for k in range(classes)]).argmax(0)


def class_shares(masks: np.ndarray, classes: int, cells: tuple[int, int]) -> np.ndarray:
    """(M, g, g) masks -> (M, L, h, w) share of each class in each cell: heatmaps that know the masks.

    A cell that no pixel falls into (a grid finer than the masks) takes the nearest pixel.
    """
    g = masks.shape[1]
    out = np.empty((len(masks), classes, *cells), np.float32)
    down, across = (_average(g, n) for n in cells)  # (h, g), (w, g)
    for i, mask in enumerate(masks):
        one = (mask == np.arange(classes)[:, None, None]).astype(np.float32)  # (L, g, g)
        out[i] = down @ one @ across.T
    return out


def _average(g: int, cells: int) -> np.ndarray:
    """(cells, g) matrix that averages the pixels whose centre falls into each cell."""
    member = ((np.arange(g) + 0.5) * cells / g).astype(int)[None] == np.arange(cells)[:, None]
    nearest = ((np.arange(cells) + 0.5) * g / cells).astype(int)
    empty = ~member.any(1)
    member[empty, nearest[empty]] = True
    return member / np.float32(1) / member.sum(1, keepdims=True)


def _places(grid: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels' centres, 0 to 1: two (g, g) arrays."""
    centre = (np.arange(grid) + 0.5) / grid
    return np.broadcast_to(centre[None], (grid, grid)), np.broadcast_to(centre[:, None], (grid, grid))
