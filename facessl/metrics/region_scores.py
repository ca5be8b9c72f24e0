"""Scores of regions: do they agree with masks, tell where landmarks are, and move along when the image moves?

A table (R, L) counts pixels by region and by true class. Its scores take tables with any leading axes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facessl.core.errors import DataError
from facessl.core.types import IGNORE_INDEX
from facessl.metrics.bootstrap import (
    Interval,
    as_array,
    bootstrap_mean,
    interval,
    ratio,
    resampled_sums,
    with_intervals,
)
from facessl.metrics.nme import eye_distance, nme
from facessl.metrics.region_maps import BATCH, HeatmapsOf


def contingency(regions: np.ndarray, masks: np.ndarray, *, count: int, classes: int) -> np.ndarray:
    """Count pixels by region and class: (M, g, g) regions, 0 to R - 1, and (M, g, g) masks, 0 to L - 1 or 255, which
    does not count -> (M, R, L) int64 with R = count and L = classes."""
    image, *pixel = np.nonzero(masks != IGNORE_INDEX)
    cells = (image * count + regions[image, *pixel]) * classes + masks[image, *pixel]
    return np.bincount(cells, minlength=len(masks) * count * classes).reshape(len(masks), count, classes)


def nmi(tables: np.ndarray) -> np.ndarray:
    """(..., R, L) -> (...) normalized mutual information: 2 I(region; class) / (H(region) + H(class)).

    0 if regions say nothing about the class, 1 if they are the classes (also where there is one of each).
    """
    joint = ratio(tables, tables.sum((-2, -1), keepdims=True))
    parts = _entropy(joint.sum(-1)) + _entropy(joint.sum(-2))
    both = _entropy(joint.reshape(*joint.shape[:-2], -1))
    return np.nan_to_num(2 * ratio(parts - both, parts), nan=1.0)


def dependence(regions: np.ndarray, *, count: int) -> dict[str, float]:
    """NMI of regions (M, g, g) with what they should not be: `nmi_image` with the image's index (high for regions that
    cluster images) and `nmi_position` with the pixel's place (high for a fixed partition)."""
    out = {}
    for name, labels in (
        ("nmi_image", np.arange(len(regions))[:, None, None]),
        ("nmi_position", np.arange(regions[0].size).reshape(regions[0].shape)),
    ):
        table = np.zeros((count, labels.size))
        np.add.at(table, (regions, labels), 1)
        out[name] = float(nmi(table))
    return out


def ari(tables: np.ndarray) -> np.ndarray:
    """(..., R, L) -> (...) adjusted Rand index: 0 is the mean of random regions of these sizes, 1 the classes.

    Source: Hubert and Arabie, "Comparing partitions", 1985, Eq. 5.
    """
    together = _pairs(tables).sum((-2, -1))
    regions, classes = _pairs(tables.sum(-1)).sum(-1), _pairs(tables.sum(-2)).sum(-1)
    expected = ratio(regions * classes, _pairs(tables.sum((-2, -1))))
    return np.nan_to_num(ratio(together - expected, (regions + classes) / 2 - expected), nan=1.0)


def foreground_iou(tables: np.ndarray) -> np.ndarray:
    """(..., R, L) -> (...) intersection over union of the foreground with those regions that together fit it best.

    The best set takes regions in the order of their fraction of foreground; all of them score the foreground's fraction
    of the image, the floor. Class 0 is the background.
    """
    behind = tables[..., 0].astype(np.float64)  # (..., R)
    front = tables.sum(-1) - behind
    order = np.argsort(-np.nan_to_num(ratio(front, front + behind), nan=-1.0), axis=-1, kind="stable")
    front, behind = (np.cumsum(np.take_along_axis(x, order, -1), -1) for x in (front, behind))
    return ratio(front, front[..., -1:] + behind).max(-1)


def best_regions(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, L) -> for each class the region that overlaps it best (L,), and their intersection over union (L,).

    A region may be the best of several classes. NaN for a class that no pixel has.
    """
    union = tables.sum(1, keepdims=True) + tables.sum(0) - tables
    iou = ratio(tables, union)
    best_iou = np.where(tables.sum(0) > 0, iou.max(0), np.nan)
    return iou.argmax(0), best_iou


def _entropy(fractions: np.ndarray) -> np.ndarray:
    """(..., K) -> (...) in nats."""
    return -(fractions * np.log(np.where(fractions > 0, fractions, 1.0))).sum(-1)


def _pairs(counts: np.ndarray) -> np.ndarray:
    """n over 2."""
    return counts * (counts - 1.0) / 2


def region_scores(
    regions: np.ndarray, masks: np.ndarray, *, count: int, classes: int, samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """NMI, ARI and foreground IoU of all pixels together, with intervals over images; arguments as in `contingency`,
    and `samples` and `seed` of the bootstrap."""
    tables = contingency(regions, masks, count=count, classes=classes)
    resampled = resampled_sums(tables.reshape(len(tables), -1), samples=samples, seed=seed).reshape(-1, count, classes)
    return {score.__name__: interval(score(tables.sum(0)), score(resampled)) for score in (nmi, ari, foreground_iou)}


def landmark_errors(
    features: np.ndarray, landmarks: np.ndarray, *, ocular: tuple[int, int], train: np.ndarray
) -> np.ndarray:
    """NME of landmarks (M, K, 2) pixels, regressed linearly from features (M, C), such as `centroids`, on the images
    `train` (M,) bool, for each of the others, float64; `ocular` are the points whose distance is the unit.

    The ridge strength is chosen by leave-one-out in training; constant features leave the mean shape.
    """
    from sklearn.linear_model import RidgeCV

    spread = features[train].std(0)
    used = spread > 1e-9
    x = (features[:, used] - features[train][:, used].mean(0)) / spread[used]
    y = landmarks.reshape(len(landmarks), -1).astype(np.float64)
    predicted = np.broadcast_to(y[train].mean(0), y[~train].shape)
    if used.any():
        predicted = RidgeCV(np.logspace(-2, 5, 15)).fit(x[train], y[train]).predict(x[~train])
    truth = landmarks[~train]
    return nme(predicted.reshape(truth.shape), truth, unit=eye_distance(truth, *ocular))


@dataclass(frozen=True)
class Similarity:
    """A rotation, scale and shift of the image about its center."""

    angle: float = 15.0  # degrees, clockwise as one sees it
    scale: float = 0.9  # above 1 enlarges
    shift: tuple[float, float] = (0.05, -0.05)  # right and down, as fractions of the image's side

    def sources(self, size: int) -> tuple[Tensor, np.ndarray]:
        """Origin of each pixel of the moved image: (1, size, size, 2) in -1..1 over the image's edges, and
        (size, size) bool, whether that lies inside the image."""
        a = math.radians(self.angle)
        back = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) / self.scale
        theta = np.concatenate([back, -back @ np.array([[2 * self.shift[0]], [2 * self.shift[1]]])], axis=1)
        grid = F.affine_grid(torch.tensor(theta[None], dtype=torch.float32), [1, 1, size, size], align_corners=False)
        return grid, (grid[0].abs() <= 1).all(-1).numpy()

    def apply(self, maps: Tensor) -> Tensor:
        """(B, C, s, s) float -> the same moved, bilinear; what comes from outside mirrors the inside."""
        grid = self.sources(maps.shape[-1])[0].expand(len(maps), -1, -1, -1)
        return F.grid_sample(maps, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def consistency(
    heatmaps_of: HeatmapsOf,
    images: np.ndarray,
    warp: Similarity,
    *,
    before: np.ndarray | None = None,
    grid: int = 32,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The arg-max of the moved image's maps against the moved maps of the image.

    Args:
        heatmaps_of: images (B, S, S, 3) uint8 -> heatmaps (B, N, h, w).
        images: (M, S, S, 3) uint8.
        warp: applied to the images, and to the maps of the images before.
        before: (M, N, h, w) heatmaps of the images; None: computed.
        grid: side on which both are compared, where the moved image shows the image and not its outside.
        samples, seed: of the bootstrap over images.

    Returns:
        consistency: fraction of the pixels on which both agree, with consistency_interval [low, high].
        consistency_by_chance: the agreement by chance of two maps with these regions' sizes (1 for a single region).
        consistency_unmoved: the agreement with the maps before, not moved: 1 for regions that depend on place alone,
            below `consistency` for those that follow the face.
    """
    _, inside = warp.sources(grid)
    if not inside.any():
        raise DataError(f"{warp} moves the image out of sight: nothing is left to compare")
    agree, unmoved, counts = [], [], []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        pixels = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float()
        moved = warp.apply(pixels).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        still = heatmaps_of(batch) if before is None else before[start : start + BATCH]
        stored, after = (
            F.interpolate(torch.tensor(as_array(x), dtype=torch.float32), size=(grid, grid), mode="bilinear")
            for x in (still, heatmaps_of(moved))
        )  # (B, N, g, g)
        actual, expected, fixed = (m.argmax(1).numpy()[:, inside] for m in (after, warp.apply(stored), stored))
        agree.append((actual == expected).mean(1))
        unmoved.append((actual == fixed).mean(1))
        N = stored.shape[1]
        counts.append([np.bincount(x.ravel(), minlength=N) for x in (actual, expected)])
    sizes = np.sum(counts, axis=0)  # (2, N)
    fractions = sizes / sizes.sum(1, keepdims=True)
    return {
        **with_intervals({"consistency": bootstrap_mean(np.concatenate(agree), samples=samples, seed=seed)}),
        "consistency_by_chance": float(fractions[0] @ fractions[1]),
        "consistency_unmoved": float(np.concatenate(unmoved).mean()),
    }
