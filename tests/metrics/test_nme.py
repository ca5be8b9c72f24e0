import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import simpson

from facessl.core.errors import ConfigError, DataError
from facessl.metrics.nme import box_diagonal, box_size, eye_distance, landmark_scores, nme
from tests.helpers import drawn_intervals


@pytest.fixture
def points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (40, 5, 2))
    visible = (rng.random((40, 5)) < 0.7).astype(np.uint8)
    return truth + rng.normal(0, 3, truth.shape), truth, visible


def test_nme_agrees_with_plain_loops(points: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    predicted, truth, visible = points
    visible[:, 0] = 1
    found = nme(torch.tensor(predicted), truth, unit=eye_distance(truth, 1, (2, 3)), visible=visible)
    for i in range(40):
        x, y = (truth[i, 2] + truth[i, 3]) / 2
        unit = math.hypot(truth[i, 1, 0] - x, truth[i, 1, 1] - y)
        seen = [k for k in range(5) if visible[i, k]]
        distances = [math.dist(predicted[i, k], truth[i, k]) for k in seen]
        assert found[i] == pytest.approx(sum(distances) / len(seen) / unit)


def test_units_of_a_hand_worked_face() -> None:
    truth = np.array([[[0.0, 0.0], [10.0, 0.0]]])
    predicted = truth + np.array([[3.0, 4.0], [0.0, 0.0]])  # one point 5 px off, one exact: 2.5 px
    box = np.array([[-1.0, -2.0, 3.0, 7.0]])  # 4 wide, 9 high
    for unit, expected in (
        (eye_distance(truth, 0, 1), 2.5 / 10),
        (box_size(box), 2.5 / 6),
        (box_diagonal(box), 2.5 / math.sqrt(97)),
    ):
        assert nme(predicted, truth, unit=unit) == pytest.approx([expected])
    assert nme(predicted, truth, unit=10.0, visible=np.array([[0, 1]])) == pytest.approx([0])
    assert np.isnan(nme(predicted, truth, unit=0.0, visible=np.zeros((1, 2)))).all()  # nothing counts, nothing fails


def test_a_face_without_size_is_named(points: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    predicted, truth, _ = points
    unit = np.ones(40)
    unit[[7, 9]] = 0
    with pytest.raises(DataError, match="2 images have no NME, the first at position 7"):
        nme(predicted, truth, unit=unit)
    with pytest.raises(DataError, match="position 0"):
        nme(np.full_like(predicted, np.nan), truth, unit=1.0)


def scored(errors: Any, threshold: float) -> tuple[float, float]:
    """Area and failure rate."""
    found = landmark_scores(np.array(errors), unit="box", thresholds=(threshold,))
    _, failures, area = (value for name, value in found.items() if not name.endswith("_interval"))
    return area, failures


def test_auc_and_failure_rate_by_hand() -> None:
    assert scored([0, 0, 0], 0.1) == (pytest.approx(1), 0)
    assert scored([0.2], 0.1) == (0, 1)
    assert scored([0.05, 0.1, 0.1001, 0.3], 0.1)[1] == 0.5  # 0.1 itself is not a failure
    assert scored([0.05, math.nan], 0.01)[1] == 1


@pytest.mark.parametrize("threshold", [0.05, 0.07, 0.08, 0.1])
def test_auc_agrees_with_a_slow_twin(threshold: float) -> None:
    errors = np.random.default_rng(1).gamma(4, 0.015, 200)
    places = [threshold * j / round(threshold / 1e-4) for j in range(round(threshold / 1e-4) + 1)]
    curve = [sum(e <= x for e in errors) / len(errors) for x in places]
    area = simpson(curve, x=places) / threshold
    assert scored(errors, threshold) == pytest.approx((area, 1 - curve[-1]), abs=1e-9)


@pytest.mark.parametrize("threshold", [0.0001, 0.10005, 0.0, -0.1])
def test_threshold_that_the_rule_cannot_end_at_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="even multiple"):
        scored([0.1], threshold)


def test_scores_carry_unit_and_threshold_in_their_names() -> None:
    errors = np.append(np.random.default_rng(1).gamma(4, 0.015, 300), math.nan)
    found = landmark_scores(errors, unit="interocular", thresholds=(0.1, 0.075 + 5e-3))
    assert [k for k in found if not k.endswith("_interval")] == [
        *("nme_interocular", "fr@0.10", "fr@0.08", "auc@0.10", "auc@0.08"),
    ]
    assert found["nme_interocular"] == pytest.approx(np.nanmean(errors))
    assert (found["auc@0.08"], found["fr@0.08"]) == scored(errors, 0.08)
    for name in ("nme_interocular", "fr@0.08", "auc@0.10"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high
    with pytest.raises(DataError, match="none of 2 images"):
        landmark_scores(np.full(2, math.nan), unit="box")


def test_interval_of_the_area_is_that_of_drawing_images() -> None:
    errors = np.random.default_rng(1).gamma(4, 0.015, 100)
    slow = drawn_intervals(lambda i: scored(errors[i], 0.1)[0], 100, samples=2000)
    found = landmark_scores(errors, unit="box", thresholds=(0.1,))
    assert found["auc@0.10_interval"] == pytest.approx(slow, abs=0.01)
