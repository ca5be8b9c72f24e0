"""Facial attributes: accuracy per attribute and its mean, beside what always answering the majority would score.

Attributes are unbalanced (90 % accuracy on CelebA is near the majority's 80 %), so balanced accuracy and average
precision stand beside the published number, the mean accuracy over attributes at sigmoid >= 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.metrics.bootstrap import Interval, as_array, interval, known_mean, ratio, resampled_sums


@dataclass(frozen=True)
class Attribute:
    """One attribute; fractions between 0 and 1, NaN where the test images show only one of its values.

    Attributes:
        name: of the attribute.
        positives: fraction of the images that have it.
        accuracy: right images over all, with its interval.
        balanced_accuracy: mean of the accuracies on images with and without it, with its interval.
        average_precision: area under precision over recall, of the scores; its chance level is `positives`.
        majority: accuracy of always answering the commoner value.
    """

    name: str
    positives: float
    accuracy: Interval
    balanced_accuracy: Interval
    average_precision: float
    majority: float


@dataclass(frozen=True)
class AttributeScores:
    """Shares between 0 and 1 with 95 % bootstrap intervals over images.

    Attributes:
        images: images scored.
        mean_accuracy: right answers over all images and attributes.
        mean_balanced_accuracy: mean over the attributes of which the images show both values.
        mean_average_precision: over the same attributes; no interval.
        majority: mean accuracy of always answering each attribute's commoner value among these images.
        attributes: one entry per attribute, in order.
    """

    images: int
    mean_accuracy: Interval
    mean_balanced_accuracy: Interval
    mean_average_precision: float
    majority: float
    attributes: tuple[Attribute, ...]

    def summary(self) -> dict[str, Any]:
        """Ready for JSON: headlines with NAME_interval [low, high]; null where a number is undefined."""
        out: dict[str, Any] = {"images": self.images, "majority": self.majority}
        for name in ("mean_accuracy", "mean_balanced_accuracy"):
            value, low, high = (None if np.isnan(x) else x for x in getattr(self, name))
            out |= {name: value, f"{name}_interval": [low, high]}
        mean_ap = self.mean_average_precision
        out["mean_average_precision"] = None if np.isnan(mean_ap) else mean_ap
        out["accuracy"] = {a.name: a.accuracy.value for a in self.attributes}
        return out


def attribute_scores(
    probabilities: np.ndarray,
    target: np.ndarray,
    *,
    names: Sequence[str] = (),
    threshold: float = 0.5,
    samples: int = 1000,
    seed: int = 0,
) -> AttributeScores:
    """Scores of N images and A attributes.

    Args:
        probabilities: (N, A) sigmoids of the outputs.
        target: (N, A), 0 or 1.
        names: A names; empty: the indices.
        threshold: probabilities from here on answer "yes".
        samples, seed: of the bootstrap.

    Raises:
        ConfigError: values outside 0..1 (logits need a sigmoid first).
        DataError: no image, targets other than 0 and 1, or names that are not A.
    """
    probabilities, target = as_array(probabilities), as_array(target)
    names = tuple(names) or tuple(str(a) for a in range(target.shape[-1]))
    _check(probabilities, target, names)
    truth = target.astype(bool)
    right = (probabilities >= threshold) == truth
    N, A = truth.shape
    # Columns of each image: right, has it, right and has it.
    rows = np.concatenate([right, truth, right & truth], axis=1)
    total = rows.sum(0, dtype=np.float64)
    drawn = resampled_sums(rows, samples=samples, seed=seed)
    balanced, drawn_balanced = _balanced(total, N), _balanced(drawn, N)  # (A,), (samples, A)
    precision = np.array([_average_precision(truth[:, a], probabilities[:, a]) for a in range(A)])
    positives = total[A : 2 * A] / N
    majority = np.maximum(positives, 1 - positives)
    return AttributeScores(
        images=N,
        mean_accuracy=interval(total[:A].mean() / N, drawn[:, :A].mean(1) / N),
        mean_balanced_accuracy=interval(known_mean(balanced), known_mean(drawn_balanced)),
        mean_average_precision=float(known_mean(precision)),
        majority=float(majority.mean()),
        attributes=tuple(
            Attribute(
                name=name,
                positives=float(positives[a]),
                accuracy=interval(total[a] / N, drawn[:, a] / N),
                balanced_accuracy=interval(balanced[a], drawn_balanced[:, a]),
                average_precision=float(precision[a]),
                majority=float(majority[a]),
            )
            for a, name in enumerate(names)
        ),
    )


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


def _average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """As scikit-learn's, NaN where all images have the attribute or none does."""
    if truth.all() or not truth.any():
        return float("nan")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores))
