"""Accuracy of a classifier, overall and per class, macro F1 and confusion, with bootstrap intervals."""

from typing import Any

import numpy as np

from facessl.metrics.bootstrap import as_array, interval, ratio, with_intervals


def accuracy(predicted: np.ndarray, target: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Accuracy, mean class accuracy and macro F1 of N images.

    Args:
        predicted, target: (N,) class indices, N >= 1.
        resamples, seed: of the bootstrap.

    Returns:
        Fractions, ready for JSON, the first three with NAME_interval [low, high] (95 %, over images):

        accuracy: correct images over all images.
        mean_class_accuracy: mean over the classes that occur, each class counting the same.
        macro_f1: mean F1 score over the classes that occur among targets or predictions.
        per_class: accuracy of each class that occurs, by class index.

    The bootstrap of the accuracies draws counts of (class, right or wrong), the same distribution as drawing images.
    """
    predicted, target = as_array(predicted), as_array(target)
    classes, position = np.unique(target, return_inverse=True)
    right = np.bincount(position, weights=predicted == target, minlength=len(classes))  # (K,)
    total = np.bincount(position, minlength=len(classes))  # (K,)
    cells = np.concatenate([right, total - right]) / len(target)
    resampled = np.random.default_rng(seed).multinomial(len(target), cells, size=resamples)  # (R, 2K)
    resampled_right, resampled_wrong = np.split(resampled, 2, axis=1)
    # A rare class can be missing from a resample; it then has no accuracy there.
    resampled_classes = np.nanmean(ratio(resampled_right, resampled_right + resampled_wrong), axis=1)
    means = {
        "accuracy": interval(right.sum() / len(target), resampled_right.sum(1) / len(target)),
        "mean_class_accuracy": interval((right / total).mean(), resampled_classes),
        "macro_f1": interval(*_macro_f1(predicted, target, resamples, seed)),
    }
    return {**with_intervals(means), "per_class": dict(zip(classes.tolist(), (right / total).tolist(), strict=True))}


def confusion(predicted: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """Count pairs of class indices of one shape -> (K, K) int64, rows are targets, columns predictions.

    ValueError: an index outside 0 to K - 1.
    """
    predicted, target = as_array(predicted).ravel(), as_array(target).ravel()
    for name, values in (("predicted", predicted), ("target", target)):
        if len(values) and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name} classes {values.min()} to {values.max()} do not fit into 0 to {classes - 1}")
    cells = target.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _macro_f1(predicted: np.ndarray, target: np.ndarray, resamples: int, seed: int) -> tuple[float, np.ndarray]:
    """Mean F1 score of the classes that occur or were predicted, and that of each resample (R,).

    There may be thousands of classes, so the bootstrap draws the counts of the confusion matrix's nonempty cells.
    """
    scored, position = np.unique(np.concatenate([target, predicted]), return_inverse=True)
    K, n = len(scored), len(target)
    cells, counts = np.unique(position[:n] * K + position[n:], return_counts=True)
    t, p = np.divmod(cells, K)

    def mean_f1(counts: np.ndarray) -> float:
        hits = np.bincount(t, weights=counts * (t == p), minlength=K)
        sizes = np.bincount(t, weights=counts, minlength=K) + np.bincount(p, weights=counts, minlength=K)
        return float(np.nanmean(ratio(2 * hits, sizes)))

    rng = np.random.default_rng(seed)
    resampled = [mean_f1(rng.multinomial(n, counts / n)) for _ in range(resamples)]
    return mean_f1(counts), np.array(resampled)
