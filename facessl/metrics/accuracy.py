"""Accuracy of a classifier, overall and per class, macro F1 and confusion, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facessl.metrics.bootstrap import as_array, percentiles, ratio


@dataclass(frozen=True)
class Accuracy:
    """Shares between 0 and 1.

    Attributes:
        accuracy: correct images over all images.
        mean_class_accuracy: mean over the classes that occur, each class counting the same.
        macro_f1: mean F1 score over the classes that occur among targets or predictions.
        accuracy_interval, mean_class_accuracy_interval, macro_f1_interval: 95 % bootstrap intervals (low, high) over
            images.
        per_class: accuracy of each class that occurs, by class index.
        per_class_f1: F1 score of each class that occurs or was predicted, by class index.
    """

    accuracy: float
    mean_class_accuracy: float
    accuracy_interval: tuple[float, float]
    mean_class_accuracy_interval: tuple[float, float]
    per_class: dict[int, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    per_class_f1: dict[int, float]


def accuracy(predicted: np.ndarray, target: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Accuracy:
    """Accuracy, mean class accuracy and macro F1 of N images.

    Args:
        predicted, target: (N,) class indices, N >= 1.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    For the accuracies a resampled image matters only through its class and whether it was right, so their bootstrap
    draws the counts of these cells directly; that is the same distribution as drawing images.
    """
    predicted, target = as_array(predicted), as_array(target)
    classes, position = np.unique(target, return_inverse=True)
    right = np.bincount(position, weights=predicted == target, minlength=len(classes))  # (K,)
    total = np.bincount(position, minlength=len(classes))  # (K,)
    cells = np.concatenate([right, total - right]) / len(target)
    drawn = np.random.default_rng(seed).multinomial(len(target), cells, size=resamples)  # (R, 2K)
    drawn_right, drawn_wrong = drawn[:, : len(classes)], drawn[:, len(classes) :]
    # A rare class can be missing from a resample; it then has no accuracy there.
    shares = ratio(drawn_right, drawn_right + drawn_wrong)
    scored, f1, drawn_f1 = _f1(predicted, target, resamples, seed)
    return Accuracy(
        accuracy=float(right.sum() / len(target)),
        mean_class_accuracy=float((right / total).mean()),
        accuracy_interval=percentiles(drawn_right.sum(1) / len(target)),
        mean_class_accuracy_interval=percentiles(np.nanmean(shares, axis=1)),
        per_class={int(c): float(share) for c, share in zip(classes, right / total, strict=True)},
        macro_f1=float(f1.mean()),
        macro_f1_interval=percentiles(drawn_f1),
        per_class_f1={int(c): float(score) for c, score in zip(scored, f1, strict=True)},
    )


def confusion(predicted: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """Counts of (target, predicted) pairs.

    Args:
        predicted, target: class indices of one shape, 0 to classes - 1.
        classes: number of classes K.

    Returns:
        (K, K) int64; a row is a target class, a column a predicted one.

    Raises:
        ValueError: an index outside the classes.
    """
    predicted, target = as_array(predicted).ravel(), as_array(target).ravel()
    for name, values in (("predicted", predicted), ("target", target)):
        if len(values) and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name} classes {values.min()} to {values.max()} do not fit into 0 to {classes - 1}")
    cells = target.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _f1(
    predicted: np.ndarray, target: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The K classes that occur or were predicted, their F1 scores (K,), and the macro F1 of each resample (R,).

    F1 = 2 hits / (images of the class + predictions of it). There may be thousands of classes, so only the cells of
    the confusion matrix that are not empty are kept, and the bootstrap draws their counts.
    """
    scored, position = np.unique(np.concatenate([target, predicted]), return_inverse=True)
    K, n = len(scored), len(target)
    cells, counts = np.unique(position[:n] * K + position[n:], return_counts=True)
    t, p = np.divmod(cells, K)
    right = t == p
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, 100):
        pieces = rng.multinomial(n, counts / n, size=min(100, resamples - start))  # (r, cells)
        scores = [_scores(row, t, p, right, K) for row in pieces]
        drawn.append(np.nanmean(scores, axis=1))
    return scored, _scores(counts, t, p, right, K), np.concatenate(drawn)


def _scores(counts: np.ndarray, t: np.ndarray, p: np.ndarray, right: np.ndarray, classes: int) -> np.ndarray:
    """Counts of cells (target t, predicted p) -> (classes,) F1 scores, NaN for a class in neither."""
    hits = np.bincount(t, weights=counts * right, minlength=classes)
    sizes = np.bincount(t, weights=counts, minlength=classes) + np.bincount(p, weights=counts, minlength=classes)
    return ratio(2 * hits, sizes)
