import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from facessl.core.errors import DataError
from facessl.metrics.segmentation import ConfusionMatrix, mean_f1, parsing_scores

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


def test_scores_agree_with_scikit_learn_and_torchmetrics(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pixels
    found = parsing_scores(counted(predicted, truth), names=list("abcde"))
    seen = truth != 255
    p, t = predicted[seen], truth[seen]
    each = f1_score(t, p, average=None)
    assert list(found["f1"].values()) == pytest.approx(each)
    assert found["mean_f1"] == pytest.approx(each[1:].mean())
    assert found["mean_iou"] == pytest.approx(jaccard_score(t, p, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx((p == t).mean())
    tensors = torch.tensor(predicted), torch.tensor(truth.astype(np.int64))
    f1 = MulticlassF1Score(K, average=None, ignore_index=255)(*tensors)
    assert list(found["f1"].values()) == pytest.approx(f1.tolist(), abs=1e-6)
    assert found["mean_iou"] == pytest.approx(MulticlassJaccardIndex(K, ignore_index=255)(*tensors).item(), abs=1e-6)


def test_one_matrix_is_not_the_mean_over_images_by_hand() -> None:
    # Image one has 3 pixels of class 1, found: F1 1. Image two has 1, and class 1 is claimed on 3 more: F1 = 2/(1+4).
    # One matrix: 4 hits, 4 true, 7 claimed: 8/11; the mean over images would be 0.7.
    one = np.array([[1, 1, 1, 0]])
    matrix = counted(np.array([one, [[1, 1, 1, 1]]]), np.array([one, [[1, 0, 0, 0]]]), classes=2)
    assert mean_f1(matrix.total()) == pytest.approx(8 / 11)
    assert parsing_scores(matrix)["mean_f1"] == pytest.approx(8 / 11)


def test_intervals_are_those_of_drawing_images(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pixels
    rng = np.random.default_rng(1)
    plain = []
    for _ in range(300):
        i = rng.integers(0, 30, 30)
        seen = truth[i] != 255
        plain.append(f1_score(truth[i][seen], predicted[i][seen], average=None)[1:].mean())
    found = parsing_scores(counted(predicted, truth))["mean_f1_interval"]
    assert found == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.01)


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
