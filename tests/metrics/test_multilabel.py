import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from facessl.core.errors import ConfigError, DataError
from facessl.metrics.multilabel import attribute_scores
from tests.helpers import drawn_intervals


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = (rng.random((200, 4)) < [0.5, 0.9, 0.2, 0.05]).astype(np.uint8)
    probabilities = np.clip(0.3 * target + rng.random((200, 4)) * 0.7, 0, 1)
    return probabilities, target


def test_scores_agree_with_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, target = answers
    found = attribute_scores(torch.tensor(probabilities), target, names=list("abcd"))
    right = (probabilities >= 0.5) == target
    assert found["accuracy"] == pytest.approx(dict(zip("abcd", right.mean(0), strict=True)))
    assert found["mean_accuracy"] == pytest.approx(right.mean())
    assert found["majority"] == pytest.approx(np.maximum(target.mean(0), 1 - target.mean(0)).mean())
    pairs = list(zip(target.T, probabilities.T, strict=True))
    balanced = [balanced_accuracy_score(t, p >= 0.5) for t, p in pairs]
    assert found["mean_balanced_accuracy"] == pytest.approx(np.mean(balanced))
    precision = [average_precision_score(t, p) for t, p in pairs]
    assert found["mean_average_precision"] == pytest.approx(np.mean(precision))


def test_intervals_are_those_of_drawing_images(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, target = answers
    yes = probabilities >= 0.5
    plain, balanced = drawn_intervals(
        lambda i: ((yes[i] == target[i]).mean(), balanced_accuracy_score(target[i, 0], yes[i, 0])), 200, samples=1000
    )
    found, first = attribute_scores(probabilities, target), attribute_scores(probabilities[:, :1], target[:, :1])
    assert found["mean_accuracy_interval"] == pytest.approx(plain, abs=0.01)
    assert first["mean_balanced_accuracy_interval"] == pytest.approx(balanced, abs=0.02)


def test_a_probability_of_one_half_says_yes() -> None:
    assert attribute_scores(np.array([[0.5]]), np.array([[1]]))["mean_accuracy"] == 1


def test_an_attribute_that_nobody_has_is_scored_by_accuracy_alone(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, target = answers
    target[:, 3] = 0
    found, without = attribute_scores(probabilities, target), attribute_scores(probabilities[:, :3], target[:, :3])
    for name in ("mean_balanced_accuracy", "mean_average_precision"):
        assert found[name] == pytest.approx(without[name])
    alone = attribute_scores(probabilities[:, 3:], target[:, 3:])
    assert (alone["majority"], alone["mean_balanced_accuracy"], alone["mean_average_precision"]) == (1, None, None)
    json.dumps(alone, allow_nan=False)


def test_what_cannot_be_scored_is_said(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, target = answers
    with pytest.raises(ConfigError, match="apply a sigmoid first"):
        attribute_scores(probabilities * 8 - 4, target)
    with pytest.raises(DataError, match="the targets hold -1"):
        attribute_scores(probabilities, np.where(target, 1, -1))
    with pytest.raises(DataError, match="1 attribute names for 4 attributes: smiling"):
        attribute_scores(probabilities, target, names=["smiling"])
