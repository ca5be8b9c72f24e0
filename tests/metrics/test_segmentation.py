import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from facessl.core.errors import DataError
from facessl.metrics.segmentation import ConfusionMatrix, parsing_scores
from tests.helpers import drawn_intervals

K = 5


@pytest.fixture
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """30 images of 12x10: the prediction is right on 70 %, 255 marks 10 %."""
    rng = np.random.default_rng(0)
    truth = rng.choice(K, (30, 12, 10), p=[0.5, 0.3, 0.1, 0.08, 0.02])
    predicted = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, K, truth.shape))
    return predicted, np.where(rng.random(truth.shape) < 0.1, 255, truth).astype(np.uint8)


def counted(predicted: np.ndarray, truth: np.ndarray, classes: int = K) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    for p, t in zip(predicted, truth, strict=True):
        matrix.update(p, t)
    return matrix


def test_scores_agree_with_scikit_learn(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pixels
    found = parsing_scores(counted(predicted, truth), names=list("abcde"))
    seen = truth != 255
    p, t = predicted[seen], truth[seen]
    each = f1_score(t, p, average=None)
    assert list(found["f1"].values()) == pytest.approx(each)
    assert found["mean_f1"] == pytest.approx(each[1:].mean())
    assert found["mean_iou"] == pytest.approx(jaccard_score(t, p, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx((p == t).mean())


def test_intervals_are_those_of_drawing_images(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pixels

    def score(i: np.ndarray) -> float:
        seen = truth[i] != 255
        return float(f1_score(truth[i][seen], predicted[i][seen], average=None)[1:].mean())

    found = parsing_scores(counted(predicted, truth))["mean_f1_interval"]
    assert found == pytest.approx(drawn_intervals(score, 30, samples=300), abs=0.01)


def test_absent_classes_do_not_count_and_are_named(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pixels
    few, more = parsing_scores(counted(predicted, truth)), parsing_scores(counted(predicted, truth, classes=7))
    assert more == few | {"f1": few["f1"] | {"5": None, "6": None}}
    json.dumps(more, allow_nan=False)


def test_what_cannot_be_scored_is_said(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pixels
    with pytest.raises(DataError, match="target classes 0 to 4 do not fit into 0 to 2"):
        counted(np.zeros_like(predicted), truth, classes=3)
    with pytest.raises(ValueError, match="map it back"):
        ConfusionMatrix(K).update(predicted[0, :5], truth[0])
    with pytest.raises(DataError, match="no pixel to count"):
        parsing_scores(counted(predicted, np.full_like(truth, 255)))
    with pytest.raises(DataError, match="2 class names for 5 classes: a, b"):
        parsing_scores(counted(predicted, truth), names=["a", "b"])
