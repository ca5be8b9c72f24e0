"""Do regions that were learned without labels follow the parts of a face? Always beside what needs no learning.

Three questions to N heatmaps per image: can landmarks be read off their centroids; do their arg-max regions agree with
masks; do they move along when the image moves. `discover` asks all three of the heatmaps and of the baselines on the
same images: clusters of colour, of colour and position, a fixed grid, the label map of the mean face (which knows the
labels), and the ceilings that the heatmaps' own grid allows (which know each image's mask).

Source: FRA (CVPR 2024, section 1) says that its heatmaps roughly discover facial regions, and shows pictures. Landmarks
by linear regression from what was learned without labels: Thewlis et al., ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.metrics import baselines
from facessl.metrics.bootstrap import Interval, as_array, bootstrap_mean, interval, resampled_sums
from facessl.metrics.consistency import Similarity, consistency
from facessl.metrics.maps import BATCH, HeatmapsOf, centroids, on_grid, one_hot, region_centroids, winners
from facessl.metrics.nme import eye_distance, nme
from facessl.metrics.partitions import IGNORE, ari, contingency, foreground_iou, nmi


def region_scores(
    regions: np.ndarray,
    masks: np.ndarray,
    *,
    count: int,
    classes: int,
    background: Sequence[int] = (0,),
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """NMI, ARI and foreground IoU of all pixels together, with intervals over images.

    Args:
        regions: (M, g, g) region of each pixel, 0 to count - 1.
        masks: (M, g, g) class of each pixel; 255 does not count.
        count, classes: numbers of regions and classes.
        background: classes that are no foreground.
        samples, seed: of the bootstrap.
    """
    tables = contingency(regions, masks, count=count, classes=classes)
    drawn = resampled_sums(tables.reshape(len(tables), -1), samples=samples, seed=seed).reshape(-1, count, classes)
    total = tables.sum(0)
    scores: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "nmi": nmi,
        "ari": ari,
        "foreground_iou": partial(foreground_iou, background=background),
    }
    return {name: interval(score(total), score(drawn)) for name, score in scores.items()}


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


#: Largest side on which regions of moved images are compared.
_MOVED = 32


@dataclass(frozen=True)
class _Candidate:
    """Regions to be asked.

    Attributes:
        name: of the row.
        regions: (M, g, g).
        count: number of regions.
        features: (M, C) for landmarks; None: not asked.
        heatmaps_of: for consistency; None: not asked.
    """

    name: str
    regions: np.ndarray
    count: int
    features: np.ndarray | None
    heatmaps_of: HeatmapsOf | None


def discover(
    heatmaps: HeatmapsOf | np.ndarray,
    images: np.ndarray,
    masks: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    *,
    classes: int | None = None,
    background: Sequence[int] = (0,),
    ocular: tuple[int, int] = (36, 45),
    warp: Similarity | None = Similarity(),  # noqa: B008 (frozen)
    grid: int | None = 32,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything above for the heatmaps and their baselines, ready for a table.

    Args:
        heatmaps: images (B, S, S, 3) uint8 -> (B, N, h, w), sum 1 over N; or the (M, N, h, w) of `images`, which leaves
            out the consistency of the heatmaps, for nothing can be asked about moved images.
        images: (M, S, S, 3) uint8 RGB.
        masks: (M, H, W) uint8, 255 does not count; None: regions are not compared with masks.
        landmarks: (M, K, 2) pixels of `images`; None: not regressed. Half of the images, drawn by `seed`, are fitted.
        classes: number of classes of the masks; None: as many as occur.
        background: classes that are no foreground.
        ocular: landmarks whose distance is the unit of NME; the default is that of the 68 points.
        warp: of the consistency; None: not asked.
        grid: side on which regions are compared; None: the masks' own (the images' own without masks).
        samples, seed: of the bootstrap, of k-means and of the halves.

    Returns:
        images, regions, heatmap [h, w], grid, landmark_test_images, and rows: a list of dicts with name and, each with
        its NAME_interval [low, high], nmi, ari, foreground_iou (masks), nme_interocular (landmarks; that of "one
        region" is the mean shape's), consistency with its by_chance and unmoved; null where a row has no such number.

    Raises:
        DataError: numbers of images that differ, or fewer than 4 images.
    """
    images = as_array(images)
    maps = _maps(heatmaps, images)
    _same_number(maps, images, masks, landmarks)
    size = grid or (masks.shape[1] if masks is not None else images.shape[1])
    N = maps.shape[1]
    own = _Candidate("regions", winners(maps, size), N, centroids(maps), heatmaps if callable(heatmaps) else None)
    candidates = [own, *_floors(images, N, size, seed)]
    truth = None if masks is None else on_grid(as_array(masks), size)
    if truth is not None:
        classes = classes or int(truth[truth != IGNORE].max(initial=0)) + 1
        candidates += _ceilings(truth, classes, maps.shape[2:], size)
    points = None if landmarks is None else as_array(landmarks)
    train = np.random.default_rng(seed).permutation(len(images)) < len(images) // 2
    rows = []
    for one in candidates:
        row: dict[str, Any] = {}
        if truth is not None:
            sizes = {"count": one.count, "classes": classes or 0}
            row |= region_scores(one.regions, truth, **sizes, background=background, samples=samples, seed=seed)
        if points is not None:
            row |= _landmarks(one, points, ocular, train, samples, seed)
        if warp is not None:
            row |= _moved(one, images, warp, min(size, _MOVED), samples, seed)
        rows.append(_flat(one.name, row))
    return {
        "images": len(images),
        "regions": N,
        "heatmap": list(maps.shape[2:]),
        "grid": size,
        "landmark_test_images": 0 if landmarks is None else int((~train).sum()),
        "rows": rows,
    }


def _landmarks(
    one: _Candidate, points: np.ndarray, ocular: tuple[int, int], train: np.ndarray, samples: int, seed: int
) -> dict[str, Interval | None]:
    if one.features is None:
        return dict.fromkeys(("nme_interocular", "nme_interocular_interval"))
    errors = landmark_errors(one.features, points, ocular=ocular, train=train)
    return {"nme_interocular": bootstrap_mean(errors, samples=samples, seed=seed)}


def _moved(one: _Candidate, images: np.ndarray, warp: Similarity, grid: int, samples: int, seed: int) -> dict[str, Any]:
    if one.heatmaps_of is None:
        return dict.fromkeys(("consistency", "consistency_interval", "consistency_by_chance", "consistency_unmoved"))
    return consistency(one.heatmaps_of, images, warp, grid=grid, samples=samples, seed=seed)


def _maps(heatmaps: HeatmapsOf | np.ndarray, images: np.ndarray) -> np.ndarray:
    """(M, N, h, w) heatmaps of all images."""
    if not callable(heatmaps):
        return as_array(heatmaps)
    return np.concatenate([as_array(heatmaps(images[i : i + BATCH])) for i in range(0, len(images), BATCH)])


def _same_number(maps: np.ndarray, images: np.ndarray, *others: np.ndarray | None) -> None:
    numbers = [len(maps), len(images), *(len(x) for x in others if x is not None)]
    if len(set(numbers)) > 1 or len(images) < 4:
        raise DataError(
            f"heatmaps, images, masks and landmarks are of {', '.join(map(str, numbers))} images: "
            "region discovery needs the same number of each, at least 4"
        )


def _floors(images: np.ndarray, count: int, size: int, seed: int) -> list[_Candidate]:
    """What needs neither training nor labels."""
    at_size = _partitions(images, count, size, seed)
    moved = at_size if size <= _MOVED else _partitions(images, count, _MOVED, seed)
    out = []
    for (name, partition, n), (_, small, _) in zip(at_size, moved, strict=True):
        regions = partition(images)
        out.append(_Candidate(name, regions, n, region_centroids(regions, n), _as_heatmaps(small, n)))
    return out


def _partitions(images: np.ndarray, count: int, size: int, seed: int) -> list[tuple[str, baselines.Partition, int]]:
    """Names, functions and numbers of regions of `_floors` on one grid."""
    clusters = partial(baselines.colour_clusters, images, count=count, grid=size, seed=seed)
    return [
        ("one region", baselines.fixed(np.zeros((size, size), np.int64)), 1),
        (f"colour k-means, {count}", clusters(position=False), count),
        (f"colour and position k-means, {count}", clusters(position=True), count),
        (f"grid, {count}", baselines.fixed(baselines.rectangles(count, size)), count),
    ]


def _ceilings(truth: np.ndarray, classes: int, cells: tuple[int, ...], size: int) -> list[_Candidate]:
    """What knows the labels. Interpolated shares bound interpolated heatmaps, the majority bounds whole cells."""
    mean = baselines.fixed(baselines.mean_face(truth, classes))
    shares = baselines.class_shares(truth, classes, (cells[0], cells[1]))
    h, w = cells
    return [
        _Candidate("mean face's labels", mean(truth), classes, None, _as_heatmaps(mean, classes)),
        _Candidate(f"ceiling {h}x{w}, majority per cell", winners(shares, size, mode="nearest"), classes, None, None),
        _Candidate(f"ceiling {h}x{w}, interpolated shares", winners(shares, size), classes, None, None),
    ]


def _as_heatmaps(partition: baselines.Partition, count: int) -> HeatmapsOf:
    return lambda images: one_hot(partition(images), count)


def _flat(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Intervals as value and NAME_interval, ready for JSON."""
    out: dict[str, Any] = {"name": name}
    for key, found in row.items():
        if isinstance(found, Interval):
            out |= {key: found.value, f"{key}_interval": [found.low, found.high]}
        else:
            out[key] = found
    return out
