"""Bootstrap intervals: the one implementation behind every interval of a metric.

Most metrics are functions of sums over images (a mean, an F1 score, an NMI). A resample then matters only through how
often it holds each image, and a thousand resamples are one matrix product: `bootstrap_sums`. `bootstrap` is for the
rest and calls the statistic once per resample.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Images drawn at once: the counts then stay in the processor's cache.
_CHUNK = 2**18


class Interval(NamedTuple):
    """A number and its bootstrap interval; all three NaN where the number is undefined."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of any statistic of n images.

    Args:
        statistic: takes (n,) int64 positions of images, repeated ones included, and returns a number; NaN where a
            resample does not define it (these resamples are left out).
        n: images, at least 1.
        samples: resamples.
        seed: of the resamples.
        level: fraction of the resamples inside the interval.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, n, n)) for _ in range(samples)]
    return interval(statistic(np.arange(n)), np.array(drawn), level=level)


def bootstrap_sums(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic that depends on sums over images only.

    Args:
        rows: (n, S) numbers of each image, finite.
        statistic: takes sums (..., S) and returns (...); for a mean, rows are [value, 1] and
            it is s[..., 0] / s[..., 1].
        samples, seed, level: as in `bootstrap`.
    """
    value = float(statistic(rows.sum(0, dtype=np.float64)))
    return interval(value, statistic(resampled_sums(rows, samples=samples, seed=seed)), level=level)


def bootstrap_mean(values: np.ndarray, *, samples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Interval of the mean of (n,) numbers; NaN ones (images that have none) do not count."""
    return bootstrap_sums(mean_rows(values), mean_of, samples=samples, seed=seed, level=level)


def mean_rows(values: np.ndarray) -> np.ndarray:
    """(n,) numbers -> (n, 2) rows [value, 1] of `bootstrap_sums`, [0, 0] for NaN."""
    known = ~np.isnan(values)
    return np.stack([np.where(known, values, 0.0), known.astype(np.float64)], axis=1)


def mean_of(sums: np.ndarray) -> np.ndarray:
    """(..., 2) sums of `mean_rows` -> (...) means; NaN where nothing counts."""
    return ratio(sums[..., 0], sums[..., 1])


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom in float64, NaN where the bottom is 0; any shapes that broadcast."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the numbers that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def resampled_sums(rows: np.ndarray, *, samples: int = 1000, seed: int | tuple[int, ...] = 0) -> np.ndarray:
    """Sums over the images of each resample: (n, S) -> (samples, S) float64."""
    numbers = np.asarray(rows, np.float64)
    return np.concatenate([counts @ numbers for counts in resampled_counts(len(rows), samples=samples, seed=seed)])


def resampled_counts(n: int, *, samples: int = 1000, seed: int | tuple[int, ...] = 0) -> Iterator[np.ndarray]:
    """How often each resample holds each of n images: pieces (r, n) float64 of a (samples, n) matrix, in order."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    for start in range(0, samples, step):
        r = min(step, samples - start)
        positions = rng.integers(0, n, (r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(positions.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def interval(value: float | np.ndarray, drawn: np.ndarray, *, level: float = 0.95) -> Interval:
    """A value and the percentile interval of its (samples,) resampled values."""
    return Interval(float(value), *percentiles(drawn, level=level))


def percentiles(drawn: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of (samples,) values as (low, high); NaN values do not count."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return float("nan"), float("nan")
    tail = round(50 * (1 - level), 9)
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def as_array(values: Any) -> np.ndarray:
    """A tensor of any device and precision, an array or nested lists -> numpy array; half precision becomes float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()
    return np.asarray(values)
