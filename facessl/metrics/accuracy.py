"""Accuracy of a classifier, overall and per class, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """Shares between 0 and 1.

    Attributes:
        accuracy: correct images over all images.
        mean_class_accuracy: mean over the classes that occur, each class counting the same.
        accuracy_interval, mean_class_accuracy_interval: 95 % bootstrap intervals (low, high) over images.
        per_class: accuracy of each class that occurs, by class index.
    """

    accuracy: float
    mean_class_accuracy: float
    accuracy_interval: tuple[float, float]
    mean_class_accuracy_interval: tuple[float, float]
    per_class: dict[int, float]


def accuracy(predicted: np.ndarray, target: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Accuracy:
    """Accuracy and mean class accuracy of N images.

    Args:
        predicted, target: (N,) class indices, N >= 1.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    A resampled image matters only through its class and whether it was right, so the bootstrap draws
    the counts of these cells directly; that is the same distribution as drawing images.
    """
    classes, position = np.unique(target, return_inverse=True)
    right = np.bincount(position, weights=predicted == target, minlength=len(classes))  # (K,)
    total = np.bincount(position, minlength=len(classes))  # (K,)
    cells = np.concatenate([right, total - right]) / len(target)
    drawn = np.random.default_rng(seed).multinomial(len(target), cells, size=resamples)  # (R, 2K)
    drawn_right, drawn_wrong = drawn[:, : len(classes)], drawn[:, len(classes) :]
    drawn_total = drawn_right + drawn_wrong
    # A rare class can be missing from a resample; it then has no accuracy there.
    shares = np.divide(drawn_right, drawn_total, out=np.full(drawn_right.shape, np.nan), where=drawn_total > 0)
    return Accuracy(
        accuracy=float(right.sum() / len(target)),
        mean_class_accuracy=float((right / total).mean()),
        accuracy_interval=_interval(drawn_right.sum(1) / len(target)),
        mean_class_accuracy_interval=_interval(np.nanmean(shares, axis=1)),
        per_class={int(c): float(share) for c, share in zip(classes, right / total, strict=True)},
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
