"""Do regions that were learned without labels follow the parts of a face? Always beside what needs no learning.

`discover` measures N heatmaps per image: landmarks regressed from their centroids (Thewlis et al., ICCV 2017),
agreement of their arg-max regions with masks, and whether they move with the image. Beside them are baselines:
clusters of color, of color and position, a fixed grid, the label map of the mean face (which knows the labels), and
ceilings of the heatmaps' own grid (which know each image's mask).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import IGNORE_INDEX
from facessl.metrics import region_maps as maps
from facessl.metrics.bootstrap import Interval, as_array, bootstrap_mean, interval, plain, resampled_sums
from facessl.metrics.nme import eye_distance, nme
from facessl.metrics.region_agreement import ari, contingency, foreground_iou, nmi
from facessl.metrics.region_consistency import Similarity, consistency

#: Largest side on which regions of moved images are compared.
_MOVED = 32


def region_scores(
    regions: np.ndarray, masks: np.ndarray, *, count: int, classes: int, samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """NMI, ARI and foreground IoU of all pixels together, with intervals over images.

    Args:
        regions: (M, g, g) region of each pixel, 0 to count - 1.
        masks: (M, g, g) class of each pixel; 255 does not count.
        count, classes: numbers of regions and classes.
        samples, seed: of the bootstrap.
    """
    tables = contingency(regions, masks, count=count, classes=classes)
    resampled = resampled_sums(tables.reshape(len(tables), -1), samples=samples, seed=seed).reshape(-1, count, classes)
    return {score.__name__: interval(score(tables.sum(0)), score(resampled)) for score in (nmi, ari, foreground_iou)}


def landmark_errors(
    features: np.ndarray, landmarks: np.ndarray, *, ocular: tuple[int, int], train: np.ndarray
) -> np.ndarray:
    """NME of landmarks regressed linearly from features; the ridge strength is chosen by leave-one-out in training.

    Args:
        features: (M, C), for example `centroids`; constant ones leave the mean shape.
        landmarks: (M, K, 2) pixels.
        ocular: points whose distance is the unit.
        train: (M,) bool, images to fit on; the others are measured.

    Returns:
        (number of test images,) float64.
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
class _Candidate:
    """A row of the table."""

    name: str
    regions: np.ndarray  # (M, g, g), 0 to count - 1
    count: int
    features: np.ndarray | None = None  # (M, C) for landmarks; None: not measured
    heatmaps_of: maps.HeatmapsOf | None = None  # for consistency; None: not measured


def discover(
    heatmaps_of: maps.HeatmapsOf,
    images: np.ndarray,
    masks: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    *,
    classes: int | None = None,
    ocular: tuple[int, int] = (36, 45),
    grid: int | None = 32,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The measures for heatmaps and baselines, ready for a table.

    Args:
        heatmaps_of: images (B, S, S, 3) uint8 -> (B, N, h, w), sum 1 over N.
        images: (M, S, S, 3) uint8 RGB.
        masks: (M, H, W) uint8, 0 is the background, 255 does not count; None: regions are not compared with masks.
        landmarks: (M, K, 2) pixels of `images`; None: not regressed. Half of the images, drawn by `seed`, are fitted.
        classes: number of classes of the masks; None: as many as occur.
        ocular: landmarks whose distance is the unit of NME; the default is that of the 68 points.
        grid: side on which regions are compared; None: the masks' own (the images' own without masks).
        samples, seed: of the bootstrap, of k-means and of the halves.

    Returns:
        images, regions, heatmap [h, w], grid, landmark_test_images, and rows: a list of dicts with name and, each with
        its NAME_interval [low, high], nmi, ari, foreground_iou (masks), nme_interocular (landmarks; that of "one
        region" is the mean shape's), consistency with its by_chance and unmoved; None where a row has no such number.

    Raises:
        DataError: numbers of images that differ, or fewer than 4 images.
    """
    numbers = [len(images), *(len(x) for x in (masks, landmarks) if x is not None)]
    if len(set(numbers)) > 1 or len(images) < 4:
        raise DataError(
            f"images, masks and landmarks are of {', '.join(map(str, numbers))} images: "
            "region discovery needs the same number of each, at least 4"
        )
    batches = [images[i : i + maps.BATCH] for i in range(0, len(images), maps.BATCH)]
    own = np.concatenate([as_array(heatmaps_of(batch)) for batch in batches])
    size = grid or (masks.shape[1] if masks is not None else images.shape[1])
    N, cells = own.shape[1], own.shape[2:]
    candidates = [_Candidate("regions", maps.winners(own, size), N, maps.centroids(own), heatmaps_of)]
    candidates += _floors(images, N, size, seed)
    truth = None if masks is None else maps.on_grid(masks, size)
    if truth is not None:
        classes = classes or int(truth[truth != IGNORE_INDEX].max(initial=0)) + 1
        candidates += _ceilings(truth, classes, (cells[0], cells[1]), size)
    train = np.random.default_rng(seed).permutation(len(images)) < len(images) // 2
    rows = []
    for one in candidates:
        row: dict[str, Any] = {"name": one.name}
        if truth is not None:
            sizes = {"count": one.count, "classes": classes or 0}
            row |= plain(region_scores(one.regions, truth, **sizes, samples=samples, seed=seed))
        if landmarks is not None:
            error = None
            if one.features is not None:
                errors = landmark_errors(one.features, landmarks, ocular=ocular, train=train)
                error = bootstrap_mean(errors, samples=samples, seed=seed)
            row |= plain({"nme_interocular": error})
        rows.append(row | _consistency(one, images, min(size, _MOVED), samples, seed))
    return {
        "images": len(images),
        "regions": N,
        "heatmap": list(cells),
        "grid": size,
        "landmark_test_images": 0 if landmarks is None else int((~train).sum()),
        "rows": rows,
    }


def _consistency(one: _Candidate, images: np.ndarray, grid: int, samples: int, seed: int) -> dict[str, Any]:
    if one.heatmaps_of is None:
        return dict.fromkeys(("consistency", "consistency_interval", "consistency_by_chance", "consistency_unmoved"))
    scores = consistency(one.heatmaps_of, images, Similarity(), grid=grid, samples=samples, seed=seed)
    return plain({"consistency": scores.pop("consistency")}) | scores


def _floors(images: np.ndarray, count: int, size: int, seed: int) -> list[_Candidate]:
    """What needs neither training nor labels."""

    def partitions(size: int) -> list[tuple[str, maps.Partition, int]]:
        clusters = partial(maps.color_clusters, images, count=count, grid=size, seed=seed)
        return [
            ("one region", maps.fixed(np.zeros((size, size), np.int64)), 1),
            (f"color k-means, {count}", clusters(position=False), count),
            (f"color and position k-means, {count}", clusters(position=True), count),
            (f"grid, {count}", maps.fixed(maps.rectangles(count, size)), count),
        ]

    at_size = partitions(size)
    moved = at_size if size <= _MOVED else partitions(_MOVED)
    out = []
    for (name, partition, n), (_, small, _) in zip(at_size, moved, strict=True):
        regions = partition(images)
        out.append(_Candidate(name, regions, n, maps.region_centroids(regions, n), _as_heatmaps(small, n)))
    return out


def _ceilings(truth: np.ndarray, classes: int, cells: tuple[int, int], size: int) -> list[_Candidate]:
    """What knows the labels: interpolated fractions bound interpolated heatmaps, the majority bounds whole cells."""
    mean = maps.fixed(maps.mean_face(truth, classes))
    fractions = maps.class_fractions(truth, classes, cells)
    name, majority = f"ceiling {cells[0]}x{cells[1]}", maps.winners(fractions, size, mode="nearest-exact")
    return [
        _Candidate("mean face's labels", mean(truth), classes, None, _as_heatmaps(mean, classes)),
        _Candidate(f"{name}, majority per cell", majority, classes),
        _Candidate(f"{name}, interpolated fractions", maps.winners(fractions, size), classes),
    ]


def _as_heatmaps(partition: maps.Partition, count: int) -> maps.HeatmapsOf:
    return lambda images: maps.one_hot(partition(images), count)
