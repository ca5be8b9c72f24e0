"""Do regions that were learned without labels follow the parts of a face? Always beside what needs no learning.

`discover` measures N heatmaps per image: landmarks regressed from their centroids (Thewlis et al., ICCV 2017),
agreement of their arg-max regions with masks, dependence on the image and on the position, and whether they move with
the image. Beside them are their mean over other images (which knows the position alone) and baselines: clusters of
color, of color and position, a fixed grid, the label map of the mean face (which knows the labels), and ceilings of the
heatmaps' own grid (which know each image's mask).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import IGNORE_INDEX
from facessl.metrics import region_maps as maps
from facessl.metrics.bootstrap import as_array, bootstrap_mean, with_intervals
from facessl.metrics.region_scores import (
    Similarity,
    best_regions,
    consistency,
    contingency,
    dependence,
    landmark_errors,
    region_scores,
)

#: Side of the grid on which regions are compared.
GRID = 32
_NOT_MOVED = dict.fromkeys(("consistency", "consistency_interval", "consistency_by_chance", "consistency_unmoved"))


@dataclass(frozen=True)
class _Candidate:
    """A row of the table."""

    name: str
    regions: np.ndarray  # (M, g, g), 0 to count - 1
    count: int
    features: np.ndarray | None = None  # (M, C) for landmarks; None: not measured
    heatmaps_of: maps.HeatmapsOf | None = None  # for consistency; None: not measured
    heatmaps: np.ndarray | None = None  # those of the images, if they are known


def discover(
    variants: Mapping[str, maps.HeatmapsOf],
    images: np.ndarray,
    masks: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    *,
    classes: int | None = None,
    ocular: tuple[int, int] = (36, 45),
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The measures for heatmaps and baselines, ready for a table.

    Args:
        variants: name of a row -> images (B, S, S, 3) uint8 -> (B, N, h, w), sum 1 over N; the first one is averaged
            for "own mean map", in which each half of the images (drawn by `seed`) has the mean of the other one.
        images: (M, S, S, 3) uint8 RGB.
        masks: (M, H, W) uint8, 0 is the background, 255 does not count; None: regions are not compared with masks.
        landmarks: (M, K, 2) pixels of `images`; None: not regressed. Half of the images, drawn by `seed`, are fitted.
        classes: number of classes of the masks; None: as many as occur.
        ocular: landmarks whose distance is the unit of NME; the default is that of the 68 points.
        samples, seed: of the bootstrap, of k-means and of the halves.

    Returns:
        images, regions, heatmap [h, w], grid, landmark_test_images, and rows: a list of dicts with name, nmi_image and
        nmi_position (`dependence`) and, each with its NAME_interval [low, high], nmi, ari, foreground_iou (masks),
        nme_interocular (landmarks; that of "one region" is the mean shape's), consistency with its by_chance and
        unmoved; None if a row has no such number; parts (masks): for each class the region that overlaps it best and
        their IoU, None if no pixel has the class.

    Raises:
        DataError: numbers of images that differ, or fewer than 4 images.
    """
    numbers = [len(images), *(len(x) for x in (masks, landmarks) if x is not None)]
    if len(set(numbers)) > 1 or len(images) < 4:
        raise DataError(
            f"images, masks and landmarks are of {', '.join(map(str, numbers))} images: "
            "region discovery needs the same number of each, at least 4"
        )
    train = np.random.default_rng(seed).permutation(len(images)) < len(images) // 2
    batches = [images[i : i + maps.BATCH] for i in range(0, len(images), maps.BATCH)]
    heatmaps = {name: np.concatenate([as_array(make(b)) for b in batches]) for name, make in variants.items()}
    own = next(iter(heatmaps.values()))
    N, cells = own.shape[1], own.shape[2:]
    candidates = [
        _Candidate(name, maps.winners(own, GRID), N, maps.centroids(own), variants[name], own)
        for name, own in heatmaps.items()
    ]
    candidates += [_mean_map(own, train), *_floors(images, N, seed)]
    truth = None if masks is None else maps.on_grid(masks, GRID)
    if truth is not None:
        classes = classes or int(truth[truth != IGNORE_INDEX].max(initial=0)) + 1
        candidates += _ceilings(truth, classes, (cells[0], cells[1]))
    drawn = {"samples": samples, "seed": seed}
    rows = []
    for one in candidates:
        row: dict[str, Any] = {"name": one.name, **dependence(one.regions, count=one.count)}
        if truth is not None:
            row |= with_intervals(region_scores(one.regions, truth, count=one.count, classes=classes or 0, **drawn))
            tables = contingency(one.regions, truth, count=one.count, classes=classes or 0)
            row["parts"] = [
                None if np.isnan(iou) else [int(region), float(iou)]
                for region, iou in zip(*best_regions(tables.sum(0)), strict=True)
            ]
        if landmarks is not None:
            error = None
            if one.features is not None:
                error = bootstrap_mean(landmark_errors(one.features, landmarks, ocular=ocular, train=train), **drawn)
            row |= with_intervals({"nme_interocular": error})
        moved = one.heatmaps_of and consistency(
            one.heatmaps_of, images, Similarity(), before=one.heatmaps, grid=GRID, **drawn
        )
        rows.append(row | (moved or _NOT_MOVED))
    return {
        "images": len(images),
        "regions": N,
        "heatmap": list(cells),
        "grid": GRID,
        "landmark_test_images": 0 if landmarks is None else int((~train).sum()),
        "rows": rows,
    }


def _mean_map(heatmaps: np.ndarray, train: np.ndarray) -> _Candidate:
    """Each half of the images with the mean heatmaps of the other one; it moves as the mean of all."""
    first, second, everyone = (heatmaps[part].mean(0) for part in (train, ~train, slice(None)))
    crossed = np.where(train[:, None, None, None], second, first)
    regions, centroids = maps.winners(crossed, GRID), maps.centroids(crossed)
    return _Candidate(
        "own mean map",
        regions,
        heatmaps.shape[1],
        centroids,
        lambda images: np.broadcast_to(everyone, (len(images), *everyone.shape)),
    )


def _floors(images: np.ndarray, count: int, seed: int) -> list[_Candidate]:
    """Baselines that need neither training nor labels."""
    color, place = (
        maps.color_clusters(images, count=count, grid=GRID, position=position, seed=seed) for position in (False, True)
    )
    out = []
    for name, partition, n in (
        ("one region", maps.fixed(np.zeros((GRID, GRID), np.int64)), 1),
        (f"color k-means, {count}", color, count),
        (f"color and position k-means, {count}", place, count),
        (f"grid, {count}", maps.fixed(maps.rectangles(count, GRID)), count),
    ):
        regions = partition(images)
        out.append(_Candidate(name, regions, n, maps.region_centroids(regions, n), _as_heatmaps(partition, n)))
    return out


def _ceilings(truth: np.ndarray, classes: int, cells: tuple[int, int]) -> list[_Candidate]:
    """Upper bounds from labels: interpolated fractions for interpolated heatmaps, the majority for whole cells."""
    mean = maps.fixed(maps.mean_face(truth, classes))
    fractions = maps.class_fractions(truth, classes, cells)
    name, majority = f"ceiling {cells[0]}x{cells[1]}", maps.winners(fractions, GRID, mode="nearest-exact")
    return [
        _Candidate("mean face's labels", mean(truth), classes, None, _as_heatmaps(mean, classes)),
        _Candidate(f"{name}, majority per cell", majority, classes),
        _Candidate(f"{name}, interpolated fractions", maps.winners(fractions, GRID), classes),
    ]


def _as_heatmaps(partition: maps.Partition, count: int) -> maps.HeatmapsOf:
    return lambda images: maps.one_hot(partition(images), count)
