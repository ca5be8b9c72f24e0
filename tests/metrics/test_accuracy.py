import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from facessl.metrics.accuracy import accuracy, confusion
from tests.helpers import drawn_intervals


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
    assert found["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    assert found["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(target, predicted))
    recalls = recall_score(target, predicted, labels=[0, 1, 2, 5], average=None, zero_division=0)
    assert found["per_class"] == pytest.approx(dict(zip([0, 1, 2, 5], recalls, strict=True)))
    assert found["macro_f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert (confusion(predicted, target, 6) == confusion_matrix(target, predicted, labels=range(6))).all()


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_intervals_are_those_of_drawing_images(answers: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, target = answers

    def recalls(i: np.ndarray) -> tuple[float, float]:
        right, classes = predicted[i] == target[i], target[i]
        return right.mean(), float(np.mean([right[classes == c].mean() for c in np.unique(classes)]))

    found = accuracy(predicted, target, resamples=4000)
    plain, per_class = drawn_intervals(recalls, len(target), samples=2000)
    f1 = drawn_intervals(lambda i: f1_score(target[i], predicted[i], average="macro"), len(target), samples=500)
    assert found["accuracy_interval"] == pytest.approx(plain, abs=0.01)
    assert found["mean_class_accuracy_interval"] == pytest.approx(per_class, abs=0.02)
    assert found["macro_f1_interval"] == pytest.approx(f1, abs=0.02)


def test_confusion_names_a_class_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="predicted classes 0 to 7 do not fit into 0 to 6"):
        confusion(np.array([0, 7]), np.array([0, 1]), 7)
