import itertools
import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from facessl.core.errors import DataError
from facessl.data.sources.synthetic import Synthetic
from facessl.metrics.region_discovery import discover
from facessl.metrics.region_maps import (
    centroids,
    class_fractions,
    mean_face,
    on_grid,
    rectangles,
    region_centroids,
    winners,
)
from facessl.metrics.region_scores import (
    ari,
    best_regions,
    contingency,
    dependence,
    foreground_iou,
    landmark_errors,
    nmi,
    region_scores,
)
from tests.helpers import drawn_intervals

CLASSES = 11


@pytest.fixture
def partitions() -> tuple[np.ndarray, np.ndarray]:
    """12 images of 9x9: 4 regions that follow 5 classes on half of the pixels; 255 marks a tenth of the mask."""
    rng = np.random.default_rng(0)
    masks = rng.choice(5, (12, 9, 9), p=[0.4, 0.3, 0.2, 0.07, 0.03])
    regions = np.where(rng.random(masks.shape) < 0.5, masks % 4, rng.integers(0, 4, masks.shape))
    return regions, np.where(rng.random(masks.shape) < 0.1, 255, masks)


@pytest.fixture(scope="module")
def faces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """24 synthetic faces of 64 px: images, masks, landmarks."""
    source = Synthetic(n=24, size=64, yaw=20, occlusion=0)
    samples = [source[i] for i in range(24)]
    return tuple(np.stack([getattr(s, name) for s in samples]) for name in ("image", "mask", "landmarks"))  # type: ignore[return-value]


def test_scores_agree_with_scikit_learn(partitions: tuple[np.ndarray, np.ndarray]) -> None:
    regions, masks = partitions
    tables = contingency(regions, masks, count=4, classes=5)
    seen = masks != 255
    assert nmi(tables.sum(0)) == pytest.approx(normalized_mutual_info_score(masks[seen], regions[seen]))
    assert ari(tables.sum(0)) == pytest.approx(adjusted_rand_score(masks[seen], regions[seen]))
    for one in range(12):  # and image by image, in one call
        inside = seen[one]
        truth, found = masks[one][inside], regions[one][inside]
        assert nmi(tables)[one] == pytest.approx(normalized_mutual_info_score(truth, found))
        assert ari(tables)[one] == pytest.approx(adjusted_rand_score(truth, found))


def test_dependence_agrees_with_scikit_learn(partitions: tuple[np.ndarray, np.ndarray]) -> None:
    regions = np.where(np.arange(12)[:, None, None] < 3, 0, partitions[0])
    image, place = np.repeat(np.arange(12), 81), np.tile(np.arange(81), 12)
    assert dependence(regions, count=4) == pytest.approx(
        {
            "nmi_image": normalized_mutual_info_score(image, regions.ravel()),
            "nmi_position": normalized_mutual_info_score(place, regions.ravel()),
        }
    )


def test_foreground_is_the_best_of_all_sets_of_regions(partitions: tuple[np.ndarray, np.ndarray]) -> None:
    regions, masks = partitions
    seen = masks != 255
    front = masks != 0
    best = 0.0
    for size in range(1, 5):
        for chosen in itertools.combinations(range(4), size):
            inside = np.isin(regions, chosen)
            best = max(best, (inside & front & seen).sum() / ((inside | front) & seen).sum())
    tables = contingency(regions, masks, count=4, classes=5)
    assert foreground_iou(tables.sum(0)) == pytest.approx(best)


def test_the_best_region_of_a_class_overlaps_it_most(partitions: tuple[np.ndarray, np.ndarray]) -> None:
    regions, masks = partitions
    found, iou = best_regions(contingency(regions, masks, count=4, classes=6).sum(0))  # nothing is of class 5
    seen = masks != 255
    for k in range(5):
        one = [((regions == r) & (masks == k)).sum() / (((regions == r) & seen) | (masks == k)).sum() for r in range(4)]
        assert found[k] == np.argmax(one)
        assert iou[k] == pytest.approx(max(one))
    assert np.isnan(iou[5])


def test_intervals_are_those_of_drawing_images(partitions: tuple[np.ndarray, np.ndarray]) -> None:
    regions, masks = partitions
    found = region_scores(regions, masks, count=4, classes=5)

    def score(i: np.ndarray) -> float:
        seen = masks[i] != 255
        return float(adjusted_rand_score(masks[i][seen], regions[i][seen]))

    assert found["ari"][1:] == pytest.approx(drawn_intervals(score, 12, samples=300), abs=0.01)


def test_centroids_by_hand() -> None:
    maps = np.zeros((1, 3, 2, 4))
    maps[0, 0, 1, 3] = 5  # the last cell: x from 0.5 to 1, y from 0 to 1
    maps[0, 1] = 1  # everywhere; map 2 is empty
    assert centroids(maps)[0].tolist() == [0.75, 0, 0, 0.5, 0, 0]  # three x, then three y
    regions = np.random.default_rng(0).integers(0, 3, (5, 6, 6))
    x, y = np.meshgrid((np.arange(6) + 0.5) / 3 - 1, (np.arange(6) + 0.5) / 3 - 1)
    expected = [[p[region == k].mean() for p in (x, y) for k in range(3)] for region in regions]
    assert region_centroids(regions, 3) == pytest.approx(np.array(expected))


def test_landmarks_that_follow_centroids_are_found_and_constant_features_give_the_mean_shape() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 6))
    landmarks = (features @ rng.normal(size=(6, 8))).reshape(60, 4, 2) + np.array([[0, 0], [40, 0], [20, 20], [20, 40]])
    train = np.arange(60) < 40
    follow = landmark_errors(features, landmarks, ocular=(0, 1), train=train)
    shape = landmark_errors(np.ones((60, 6)), landmarks, ocular=(0, 1), train=train)
    mean = landmarks[:40].mean(0)
    slow = [
        np.mean([np.hypot(*(mean[k] - face[k])) for k in range(4)]) / np.hypot(*(face[0] - face[1]))
        for face in landmarks[40:]
    ]
    assert shape == pytest.approx(np.array(slow))
    assert follow.mean() < 0.01 * shape.mean()


def test_grids_and_mean_face_by_hand() -> None:
    assert rectangles(8, 4).tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]  # 2 rows of 4
    assert len(np.unique(rectangles(9, 9))) == 9
    masks = np.array([[[0, 1], [2, 255]], [[0, 2], [2, 1]], [[1, 2], [2, 255]]])
    assert mean_face(masks, 3).tolist() == [[0, 2], [2, 1]]
    shares = class_fractions(masks, 3, (1, 1))
    assert shares[0, :, 0, 0].tolist() == [0.25, 0.25, 0.25]
    assert winners(class_fractions(masks, 3, (2, 2)), 4, mode="nearest-exact")[0].tolist() == [
        [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0],
    ]  # fmt: skip


def row(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in found["rows"] if r["name"] == name)


def test_every_row_stands_beside_the_same_baselines(faces: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, masks, landmarks = faces
    maps = np.random.default_rng(0).dirichlet(np.ones(8), (24, 7, 7)).transpose(0, 3, 1, 2)
    found = discover({"full": lambda x: maps[: len(x)]}, images, masks, landmarks, classes=CLASSES, samples=100)
    json.dumps(found, allow_nan=False)
    assert [r["name"] for r in found["rows"]] == [
        "full", "own mean map", "one region", "color k-means, 8", "color and position k-means, 8", "grid, 8",
        "mean face's labels", "ceiling 7x7, majority per cell", "ceiling 7x7, interpolated fractions",
    ]  # fmt: skip
    assert len({tuple(r) for r in found["rows"]}) == 1  # the same columns
    own, color, mean = (row(found, n) for n in ("full", "color k-means, 8", "mean face's labels"))
    assert own["nmi"] < 0.05 < color["nmi"] < mean["nmi"] < row(found, "ceiling 7x7, majority per cell")["nmi"]
    assert own["nme_interocular"] == pytest.approx(row(found, "one region")["nme_interocular"], rel=0.1)
    assert row(found, "ceiling 7x7, majority per cell")["consistency"] is None  # moved images have no masks
    low, high = color["nmi_interval"]
    assert low < color["nmi"] < high
    assert color["consistency"] > 0.7 > color["consistency_unmoved"] > color["consistency_by_chance"]
    assert row(found, "grid, 8")["consistency_unmoved"] == 1
    assert row(found, "grid, 8")["consistency"] < 0.75


def test_maps_that_know_the_masks_reach_the_ceiling_and_fixed_maps_are_the_grid(
    faces: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    images, masks, landmarks = faces
    shares = class_fractions(on_grid(masks, 32), CLASSES, (7, 7))
    told = discover({"full": lambda x: shares[: len(x)]}, images, masks, landmarks, classes=CLASSES, samples=20)
    assert row(told, "full")["nmi"] == row(told, "ceiling 7x7, interpolated fractions")["nmi"]
    assert row(told, "full")["nme_interocular"] < 0.8 * row(told, "one region")["nme_interocular"]
    grid = (rectangles(8, 32) == np.arange(8)[:, None, None]).astype(np.float32)
    fixed = discover({"full": lambda x: np.broadcast_to(grid, (len(x), 8, 32, 32))}, images, masks, samples=20)
    ours, mean, theirs = (row(fixed, name) | {"name": ""} for name in ("full", "own mean map", "grid, 8"))
    assert ours == mean == theirs


def test_the_mean_map_of_an_image_is_that_of_the_other_half() -> None:
    truth = np.random.default_rng(1).integers(0, 2, (6, 32, 32))
    images = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None], (6, 32, 32, 3))
    found = discover(
        {"full": lambda x: np.eye(2)[truth[x[:, 0, 0, 0]]].transpose(0, 3, 1, 2)}, images, truth, samples=20, seed=3
    )
    first = np.random.default_rng(3).permutation(6) < 3
    majority = [truth[~first if one else first].sum(0) >= 2 for one in first]
    expected = normalized_mutual_info_score(truth.ravel(), np.stack(majority).ravel())
    assert row(found, "full")["nmi"] == pytest.approx(1)
    assert row(found, "own mean map")["nmi"] == pytest.approx(expected)


def test_without_labels_consistency_alone_is_measured(faces: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    found = discover({"full": lambda x: np.full((len(x), 2, 3, 3), 0.5)}, faces[0], samples=20)
    assert set(row(found, "grid, 2")) == {
        "name", "nmi_image", "nmi_position",
        "consistency", "consistency_interval", "consistency_by_chance", "consistency_unmoved",
    }  # fmt: skip


def test_numbers_of_images_that_differ_are_named(faces: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DataError, match="24, 23 images"):
        discover({"full": lambda x: np.ones((24, 2, 3, 3))}, faces[0], faces[1][:23])
