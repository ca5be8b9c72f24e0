import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from facessl.core.errors import DataError
from facessl.metrics.verification import cosine, thresholds, verification
from tests.helpers import drawn_intervals


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """600 pairs in 10 folds; similarities to two digits, so that many are equal."""
    rng = np.random.default_rng(0)
    same = rng.random(600) < 0.45
    return np.round(rng.normal(0.2 + 0.3 * same, 0.2), 2), same, rng.integers(1, 11, 600)


def slow_accuracy(similarity: Any, same: Any, folds: Any) -> list[float]:
    out = []
    similarity, same, folds = similarity.tolist(), same.tolist(), folds.tolist()
    for fold in sorted(set(folds)):
        train = [i for i in range(len(same)) if folds[i] != fold]
        candidates = [np.inf, *sorted({similarity[i] for i in train}, reverse=True)]
        right = [sum((similarity[i] >= t) == same[i] for i in train) for t in candidates]
        best = [t for t, r in zip(candidates, right, strict=True) if r == max(right)]
        threshold = best[(len(best) - 1) // 2]
        test = [i for i in range(len(same)) if folds[i] == fold]
        out.append(sum((similarity[i] >= threshold) == same[i] for i in test) / len(test))
    return out


def test_accuracy_over_folds_agrees_with_a_slow_twin(pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    found = verification(*pairs, samples=50)
    slow = slow_accuracy(*pairs)
    assert found["accuracy"] == pytest.approx(np.mean(slow))
    assert found["standard_error"] == pytest.approx(np.std(slow, ddof=1) / np.sqrt(10))


def test_curve_agrees_with_scikit_learn(pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    similarity, same, folds = pairs
    found = verification(similarity, same, folds, samples=50)
    far, tar, _ = roc_curve(same, similarity, drop_intermediate=False)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(same, similarity))
    for rate in (0.1, 0.01):
        assert found[f"tar@far={rate}"] == pytest.approx(max(t for f, t in zip(far, tar, strict=True) if f <= rate))
    places = np.linspace(0, 1, 200_001)
    crossing = np.abs(np.interp(places, far, tar) - (1 - places)).argmin()
    assert found["eer"] == pytest.approx(places[crossing], abs=1e-4)


def test_rates_by_hand() -> None:
    # Ranked: same, same, different, same, different, different, same, different (0.9 to 0.2).
    same = np.array([1, 1, 0, 1, 0, 0, 1, 0])
    similarity = np.linspace(0.9, 0.2, 8)
    found = verification(similarity, same, np.array([0, 1] * 4), fars=(0.25, 0.24, 0.5), samples=20)
    json.dumps(found, allow_nan=False)
    assert found["tar@far=0.25"] == 0.75  # one false accept is allowed: everything before the second
    assert found["tar@far=0.24"] is None  # four different pairs resolve 0.25 at best
    assert found["tar@far=0.24_interval"] is None
    assert found["tar@far=0.5"] == 0.75
    assert found["roc_auc"] == pytest.approx(12 / 16)  # ordered pairs: 4 + 4 + 3 + 1
    assert found["eer"] == pytest.approx(0.25)


def test_intervals_are_those_of_drawing_pairs(pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    few = [x[:200] for x in pairs]
    found = verification(*few)
    area, accuracy = drawn_intervals(
        lambda i: (roc_auc_score(few[1][i], few[0][i]), np.mean(slow_accuracy(*(x[i] for x in few)))), 200, samples=200
    )
    assert found["roc_auc_interval"] == pytest.approx(area, abs=0.02)
    assert found["accuracy_interval"] == pytest.approx(accuracy, abs=0.02)


def test_cosine_ignores_length_and_survives_zero() -> None:
    first = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    assert cosine(first, first * [[2], [-5], [1]]) == pytest.approx([1, -1, 0])


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(DataError, match="all 3 pairs are of one kind"):
        verification(np.zeros(3), np.ones(3))
    with pytest.raises(DataError, match="1 of 2 similarities are not finite"):
        verification(np.array([0.0, np.nan]), np.array([0, 1]))
    with pytest.raises(DataError, match="at least two folds"):
        verification(np.zeros(2), np.array([0, 1]), np.zeros(2))


def test_thresholds_are_those_that_the_accuracy_is_measured_by() -> None:
    rng = np.random.default_rng(3)
    same, folds = np.arange(90) % 2 == 0, rng.integers(0, 6, 90)
    similarity = (0.8 * same + rng.normal(size=90)).round(1)
    right = (similarity >= thresholds(similarity, same, folds)) == same
    expected = np.mean([right[folds == fold].mean() for fold in range(6)])
    assert verification(similarity, same, folds)["accuracy"] == pytest.approx(expected)
