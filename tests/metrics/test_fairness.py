import json
import random
import statistics

import numpy as np
import pytest

from facessl.core.errors import DataError
from facessl.metrics.fairness import by_group


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """400 images in three groups of 100 to 200, right in 90, 80 and 60 %, and 10 images without a group."""
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.repeat([0, 1, 2], [200, 90, 100]), np.full(10, -1)])
    return (rng.random(400) < np.array([0.9, 0.8, 0.6, 0.0])[groups]).astype(float), groups


def slow(right: list[float], groups: list[int], resamples: int) -> tuple[list[float], float, list[float]]:
    """Plain Python: the groups' means, their gap, and the gap of each resample within groups."""
    parts = [[r for r, g in zip(right, groups, strict=True) if g == k] for k in range(3)]
    means = [statistics.fmean(part) for part in parts]
    rng, gaps = random.Random(0), []
    for _ in range(resamples):
        drawn = [statistics.fmean(rng.choices(part, k=len(part))) for part in parts]
        gaps.append(max(drawn) - min(drawn))
    return means, max(means) - min(means), sorted(gaps)


def test_values_and_gap_agree_with_a_slow_twin(answers: tuple[np.ndarray, np.ndarray]) -> None:
    found = by_group(*answers, ["a", "b", "c"], samples=3000)
    means, gap, gaps = slow(answers[0].tolist(), answers[1].tolist(), 3000)
    assert [g["value"] for g in found["groups"]] == pytest.approx(means)
    assert [g["images"] for g in found["groups"]] == [200, 90, 100]
    assert found["gap"] == pytest.approx(gap)
    assert found["gap_interval"] == pytest.approx((gaps[75], gaps[2924]), abs=0.015)
    assert found["worst"] == "c"
    assert found["note"] == "10 images have no group"


def test_chance_gap_tells_noise_from_a_difference(answers: tuple[np.ndarray, np.ndarray]) -> None:
    real = by_group(*answers, ["a", "b", "c"])
    assert real["gap_by_chance"] < real["gap"]
    rng = np.random.default_rng(1)
    chances = [by_group(rng.random(90) < 0.5, np.arange(90) % 3, ["a", "b", "c"], samples=200) for _ in range(60)]
    above = sum(found["gap"] > found["gap_by_chance"] for found in chances)
    assert above <= 9  # 3 of 60 expected


def test_errors_have_their_worst_group_at_the_top(answers: tuple[np.ndarray, np.ndarray]) -> None:
    assert by_group(1 - answers[0], answers[1], ["a", "b", "c"], larger_is_better=False)["worst"] == "c"


def test_small_groups_are_reported_and_left_out(answers: tuple[np.ndarray, np.ndarray]) -> None:
    right, groups = answers
    right[:5], groups[:5] = 0, 3
    found = by_group(right, groups, ["a", "b", "c", "few", "none"])
    assert [g["counted"] for g in found["groups"]] == [True, True, True, False, False]
    assert found["worst"] == "c"
    assert found["gap"] < 0.5  # 0.9 with the group of five
    assert found["note"].startswith("left out of the gap, fewer than 20 images or no value: few (5), none (0)")
    json.dumps(found, allow_nan=False)
    alone = by_group(right[groups == 0], groups[groups == 0], ["a"])
    assert (alone["gap"], alone["gap_by_chance"], alone["worst"]) == (None, None, "a")


def test_a_group_without_a_name_is_said() -> None:
    with pytest.raises(DataError, match="group 2 has no name: only 2 are given, a, b"):
        by_group(np.ones(3), np.array([0, 1, 2]), ["a", "b"])
