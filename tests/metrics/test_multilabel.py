import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from facessl.core.errors import ConfigError, DataError
from facessl.metrics.multilabel import attribute_scores


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = (rng.random((200, 4)) < [0.5, 0.9, 0.2, 0.05]).astype(np.uint8)
    probabilities = np.clip(0.3 * target + rng.random((200, 4)) * 0.7, 0, 1)
    return probabilities, target


def test_scores_agree_with_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, target = answers
    found = attribute_scores(torch.tensor(probabilities), target, names=list("abcd"))
    for a, one in enumerate(found.attributes):
        yes = probabilities[:, a] >= 0.5
        assert one.name == "abcd"[a]
        assert one.accuracy.value == pytest.approx((yes == target[:, a]).mean())
        assert one.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(target[:, a], yes))
        assert one.average_precision == pytest.approx(average_precision_score(target[:, a], probabilities[:, a]))
        assert one.majority == pytest.approx(max(target[:, a].mean(), 1 - target[:, a].mean()))
    assert found.mean_accuracy.value == pytest.approx(((probabilities >= 0.5) == target).mean())
    assert found.majority == pytest.approx(np.mean([one.majority for one in found.attributes]))
    assert found.mean_balanced_accuracy.value == pytest.approx(
        np.mean([one.balanced_accuracy.value for one in found.attributes])
    )


def test_intervals_are_those_of_drawing_images(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, target = answers
    rng = np.random.default_rng(1)
    yes, plain, balanced = probabilities >= 0.5, [], []
    for _ in range(1000):
        i = rng.integers(0, 200, 200)
        plain.append((yes[i] == target[i]).mean())
        balanced.append(np.mean([(yes[i, 0] == v)[target[i, 0] == v].mean() for v in (0, 1)]))
    found = attribute_scores(probabilities, target)
    assert found.mean_accuracy[1:] == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.01)
    assert found.attributes[0].balanced_accuracy[1:] == pytest.approx(np.percentile(balanced, [2.5, 97.5]), abs=0.02)


def test_a_probability_of_one_half_says_yes() -> None:
    assert attribute_scores(np.array([[0.5]]), np.array([[1]])).mean_accuracy.value == 1


def test_an_attribute_that_nobody_has_is_scored_by_accuracy_alone(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, target = answers
    target[:, 3] = 0
    found = attribute_scores(probabilities, target)
    rare = found.attributes[3]
    assert math.isnan(rare.balanced_accuracy.value)
    assert math.isnan(rare.average_precision)
    assert rare.majority == 1
    assert found.mean_average_precision == pytest.approx(np.mean([a.average_precision for a in found.attributes[:3]]))
    json.dumps(attribute_scores(probabilities[:, 3:], target[:, 3:]).summary(), allow_nan=False)


def test_what_cannot_be_scored_is_said(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, target = answers
    with pytest.raises(ConfigError, match="apply a sigmoid first"):
        attribute_scores(probabilities * 8 - 4, target)
    with pytest.raises(DataError, match="the targets hold -1"):
        attribute_scores(probabilities, np.where(target, 1, -1))
    with pytest.raises(DataError, match="1 attribute names for 4 attributes: smiling"):
        attribute_scores(probabilities, target, names=["smiling"])
