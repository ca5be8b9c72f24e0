import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from facessl.metrics.accuracy import accuracy, confusion


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.choice([0, 1, 2, 5], size=400, p=[0.7, 0.2, 0.09, 0.01])  # classes 3 and 4 do not occur
    predicted = np.where(rng.random(400) < 0.6, target, rng.integers(0, 6, 400))
    return predicted, target


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_scores_agree_with_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, target = answers
    found = accuracy(predicted, target)
    assert found.accuracy == pytest.approx(accuracy_score(target, predicted))
    assert found.mean_class_accuracy == pytest.approx(balanced_accuracy_score(target, predicted))
    recalls = recall_score(target, predicted, labels=[0, 1, 2, 5], average=None, zero_division=0)
    assert found.per_class == pytest.approx(dict(zip([0, 1, 2, 5], recalls, strict=True)))


def test_intervals_are_those_of_drawing_images(answers: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, target = answers
    found = accuracy(predicted, target, resamples=4000)
    rng = np.random.default_rng(1)
    plain, per_class = [], []
    for _ in range(2000):
        drawn = rng.integers(0, len(target), len(target))
        right = predicted[drawn] == target[drawn]
        plain.append(right.mean())
        per_class.append(np.mean([right[target[drawn] == c].mean() for c in np.unique(target[drawn])]))
    assert found.accuracy_interval == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.01)
    assert found.mean_class_accuracy_interval == pytest.approx(np.percentile(per_class, [2.5, 97.5]), abs=0.02)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_f1_and_confusion_agree_with_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, target = answers
    found = accuracy(predicted, target)
    assert found.macro_f1 == pytest.approx(f1_score(target, predicted, average="macro"))
    assert (confusion(predicted, target, 6) == confusion_matrix(target, predicted, labels=range(6))).all()


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_f1_interval_is_that_of_drawing_images(answers: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, target = answers
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, len(target), len(target)) for _ in range(500)]
    plain = [f1_score(target[i], predicted[i], average="macro") for i in drawn]
    found = accuracy(predicted, target)
    assert found.macro_f1_interval == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.02)


def test_confusion_names_a_class_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="predicted classes 0 to 7 do not fit into 0 to 6"):
        confusion(np.array([0, 7]), np.array([0, 1]), 7)
