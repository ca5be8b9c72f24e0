"""Landmark errors: normalized mean error, failure rate and area under the curve, the threshold in every name.

Source: the scorer of FaRL (Zheng et al., CVPR 2022) and HRNet's evaluation. The NME of an image is the mean distance of
its points over a length of the face; CED(x) is the fraction of images with NME <= x; the area under it from 0 to the
threshold is taken by Simpson's rule at a step of 1e-4 and divided by the threshold; the failure rate is
1 - CED(threshold). Thresholds in use: WFLW 0.10, 300W 0.05 (STAR) or 0.08 (inter-ocular), AFLW-19 0.07 (box).

Differences: the curve ends at the threshold; rounding takes STAR's on 300W to 0.0501 and FaRL's on AFLW-19 to 0.0701.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.metrics.bootstrap import as_array, interval, mean_of, mean_rows, resampled_sums, with_intervals

_STEP = 1e-4  # of the curve under which the area is taken


def nme(
    predicted: np.ndarray, truth: np.ndarray, *, unit: np.ndarray | float, visible: np.ndarray | None = None
) -> np.ndarray:
    """Normalized mean error of each image.

    Args:
        predicted, truth: (N, K, 2) points, both in the same pixels.
        unit: (N,) lengths in the same pixels (`normalizer`); or one for all.
        visible: (N, K), 0 if a point is not annotated and does not count; None: all count.

    Returns:
        (N,) float64, 0.05 is 5 %; NaN if an image has no point that counts.

    Raises:
        ValueError: points that are not both (N, K, 2).
        DataError: an image that counts has a unit that is not positive, or coordinates that are not finite.
    """
    predicted, truth = as_array(predicted).astype(np.float64), as_array(truth).astype(np.float64)
    if predicted.shape != truth.shape or truth.ndim != 3 or truth.shape[2] != 2:
        raise ValueError(f"predicted {predicted.shape} and truth {truth.shape} are not both (N, K, 2)")
    counted = np.ones(truth.shape[:2], bool) if visible is None else as_array(visible).astype(bool)
    lengths = np.broadcast_to(as_array(unit).astype(np.float64), len(truth))
    distance = np.where(counted, np.linalg.norm(predicted - truth, axis=2), 0.0)  # (N, K)
    total = counted.sum(1)
    bad = (total > 0) & ~((lengths > 0) & np.isfinite(lengths) & np.isfinite(distance).all(1))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{bad.sum()} images have no NME, the first at position {i}: its points must be finite and the length that "
            f"errors are divided by ({lengths[i]:g}) above 0"
        )
    divisor = np.where(total > 0, total * np.where(total > 0, lengths, 1.0), np.nan)
    return distance.sum(1) / divisor


def normalizer(
    unit: str, truth: np.ndarray, *, eyes: Sequence[int | Sequence[int]] | None, boxes: np.ndarray | None
) -> np.ndarray:
    """Unit of the errors by the name that papers use (`task.unit`): (N,) pixels.

    Args:
        unit: interocular or interpupil (`eye_distance` of the outer corners, or of the pupils), box (`box_size`), or
            diag (`box_diagonal`).
        truth: (N, K, 2) points.
        eyes: indices of both corners, or of both pupils; box and diag need none.
        boxes: (N, 4); the others need none.
    """
    if eyes is not None:
        return eye_distance(truth, *eyes)
    assert boxes is not None
    return {"box": box_size, "diag": box_diagonal}[unit](boxes)


def eye_distance(truth: np.ndarray, first: int | Sequence[int], second: int | Sequence[int]) -> np.ndarray:
    """Distance of two points, each given by an index or by the indices whose mean it is: (N, K, 2) -> (N,).

    Inter-ocular: the outer corners. Inter-pupil: the means of the eyes' outlines. `facessl.data.layouts` has the
    indices of each layout.
    """
    points = as_array(truth).astype(np.float64)
    one, other = (points[:, np.atleast_1d(i)].mean(1) for i in (first, second))
    return np.linalg.norm(one - other, axis=1)


def box_size(box: np.ndarray) -> np.ndarray:
    """sqrt(width x height) of (N, 4) boxes left, top, right, bottom: (N,)."""
    sides = _sides(box)
    return np.sqrt(sides[:, 0] * sides[:, 1])


def box_diagonal(box: np.ndarray) -> np.ndarray:
    """sqrt(width^2 + height^2) of (N, 4) boxes left, top, right, bottom: (N,)."""
    return np.linalg.norm(_sides(box), axis=1)


def _sides(box: np.ndarray) -> np.ndarray:
    """(N, 4) -> (N, 2) widths and heights; an inverted box has none, which `nme` reports."""
    corners = as_array(box).astype(np.float64)
    return np.maximum(corners[:, 2:] - corners[:, :2], 0)


def _areas(errors: np.ndarray, threshold: float) -> np.ndarray:
    """Contribution of each image to the area under the cumulative error distribution, over the threshold: (N,).

    An image's own curve jumps from 0 to 1 at its error, so that its area is the sum of Simpson's weights behind it.
    """
    count = round(threshold / _STEP)
    if threshold <= 0 or count % 2 or abs(count * _STEP - threshold) > 1e-9:
        raise ConfigError(f"AUC threshold {threshold:g} must be a positive even multiple of the curve's step {_STEP:g}")
    weights = np.full(count + 1, 2.0)
    weights[1::2] = 4
    weights[[0, -1]] = 1
    behind = np.append(np.cumsum(weights[::-1])[::-1], 0.0) / (3 * count)
    places = np.linspace(0, threshold, count + 1)
    return np.where(np.isnan(errors), np.nan, behind[np.searchsorted(places, errors)])


def landmark_scores(errors: np.ndarray, *, unit: str, thresholds: Sequence[float] = (0.10,)) -> dict[str, Any]:
    """Scores of the errors that `nme` returns, with 95 % bootstrap intervals over images.

    Args:
        errors: (N,); NaN ones do not count.
        unit: name of the unit: interocular, interpupil, box, diag.
        thresholds: of failure rate and area; none where only the NME is reported.

    Returns:
        Ready for JSON, each with NAME_interval [low, high]: nme_interocular (mean over images, 0.05 is 5 %); fr@0.10,
        the fraction of images whose error lies above the threshold; auc@0.10, 0 (every image above the threshold) to
        1 (no image has an error).

    Raises:
        DataError: no image has an error.
        ConfigError: a threshold is not an even multiple of the curve's step.
    """
    errors = as_array(errors).astype(np.float64)
    if np.isnan(errors).all():
        raise DataError(f"none of {len(errors)} images has a landmark that counts: there is no NME")
    columns = {f"nme_{unit}": errors}
    columns |= {f"fr@{_name(t)}": np.where(np.isnan(errors), np.nan, errors > t) for t in thresholds}
    columns |= {f"auc@{_name(t)}": _areas(errors, t) for t in thresholds}
    rows = np.stack([mean_rows(column) for column in columns.values()], axis=1)  # (N, columns, 2)
    resampled = resampled_sums(rows.reshape(len(rows), -1)).reshape(-1, len(columns), 2)
    means, resampled_means = mean_of(rows.sum(0)), mean_of(resampled)
    return with_intervals({name: interval(means[i], resampled_means[:, i]) for i, name in enumerate(columns)})


def _name(threshold: float) -> str:
    """0.1 -> "0.10", 0.075 -> "0.075": at least two digits, as tables write them."""
    return max(f"{threshold:.2f}", f"{threshold:g}", key=len) if threshold < 1 else f"{threshold:g}"
