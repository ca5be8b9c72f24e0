"""Facial attributes: accuracy per attribute and its mean, beside what always answering the majority would score.

Attributes are unbalanced, so balanced accuracy and average precision stand beside the published number, the mean
accuracy over attributes at sigmoid >= 0.5.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.metrics.bootstrap import as_array, interval, known_mean, ratio, resampled_sums, with_intervals


def attribute_scores(probabilities: np.ndarray, target: np.ndarray, *, names: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of N images and A attributes.

    Args:
        probabilities: (N, A) sigmoids of the outputs; 0.5 and more answer "yes".
        target: (N, A), 0 or 1.
        names: A names; empty: the indices.

    Returns:
        Fractions, ready for JSON, None if the images show only one value of every attribute:

        images: number of images.
        majority: mean accuracy of always answering each attribute's commoner value among these images.
        mean_accuracy: right answers over all images and attributes, with mean_accuracy_interval [low, high] (95 %,
            over images).
        mean_balanced_accuracy: mean of the accuracies on images with and without it, over the attributes of which the
            images show both values; with its interval.
        mean_average_precision: area under precision over recall, over the same attributes.
        accuracy: by attribute.

    Raises:
        ValueError: probabilities and targets that are not both (N, A).
        ConfigError: values outside 0..1 (logits need a sigmoid first).
        DataError: no image, targets other than 0 and 1, or names that are not A.
    """
    from sklearn.metrics import average_precision_score

    probabilities, target = as_array(probabilities), as_array(target)
    names = tuple(names) or tuple(str(a) for a in range(target.shape[-1]))
    _check(probabilities, target, names)
    truth = target.astype(bool)
    right = (probabilities >= 0.5) == truth
    N, A = truth.shape
    # Columns of each image: right, has it, right and has it.
    rows = np.concatenate([right, truth, right & truth], axis=1)
    total = rows.sum(0, dtype=np.float64)
    resampled = resampled_sums(rows)
    positives = total[A : 2 * A] / N
    both = np.flatnonzero(truth.any(0) & ~truth.all(0))
    precision = [average_precision_score(truth[:, a], probabilities[:, a]) for a in both]
    means = {
        "mean_accuracy": interval(total[:A].mean() / N, resampled[:, :A].mean(1) / N),
        "mean_balanced_accuracy": interval(known_mean(_balanced(total, N)), known_mean(_balanced(resampled, N))),
    }
    return {
        "images": N,
        "majority": float(np.maximum(positives, 1 - positives).mean()),
        **with_intervals(means),
        "mean_average_precision": float(np.mean(precision)) if precision else None,
        "accuracy": dict(zip(names, (total[:A] / N).tolist(), strict=True)),
    }


def _check(probabilities: np.ndarray, target: np.ndarray, names: Sequence[str]) -> None:
    if probabilities.shape != target.shape or target.ndim != 2:
        raise ValueError(f"probabilities {probabilities.shape} and target {target.shape} are not both (N, A)")
    if not len(target):
        raise DataError("there is no image to score attributes on")
    if len(names) != target.shape[1]:
        raise DataError(f"{len(names)} attribute names for {target.shape[1]} attributes: {', '.join(names[:10])}")
    if not np.isin(target, (0, 1)).all():
        odd = target[~np.isin(target, (0, 1))][0]
        raise DataError(f"attributes are 0 or 1, but the targets hold {odd}: recode the column")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        low, high = probabilities.min(), probabilities.max()
        raise ConfigError(f"attribute scores lie between {low:g} and {high:g}, not 0 and 1: apply a sigmoid first")


def _balanced(sums: np.ndarray, images: int) -> np.ndarray:
    """(..., 3A) sums of right, has it, both -> (..., A) mean of sensitivity and specificity."""
    right, positive, both = np.split(sums, 3, axis=-1)
    return (ratio(both, positive) + ratio(right - both, images - positive)) / 2
