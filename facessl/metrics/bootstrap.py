"""Bootstrap intervals of metrics that are functions of sums over images (a mean, an F1 score, an NMI).

A resample then matters only through how often it holds each image, and a thousand resamples are one matrix product.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Images drawn at once: the counts then stay in the processor's cache.
_CHUNK = 2**18


class Interval(NamedTuple):
    """A number and its 95 % bootstrap interval; all three NaN if the number is undefined."""

    value: float
    low: float
    high: float


def bootstrap_mean(values: np.ndarray, *, samples: int = 1000, seed: int = 0) -> Interval:
    """Interval of the mean of (n,) numbers; NaN ones (images that have none) do not count."""
    rows = mean_rows(values)
    return interval(mean_of(rows.sum(0)), mean_of(resampled_sums(rows, samples=samples, seed=seed)))


def mean_rows(values: np.ndarray) -> np.ndarray:
    """(n,) numbers -> (n, 2) rows [value, 1], [0, 0] for NaN: the mean is a ratio of their sums."""
    known = ~np.isnan(values)
    return np.stack([np.where(known, values, 0.0), known.astype(np.float64)], axis=1)


def mean_of(sums: np.ndarray) -> np.ndarray:
    """(..., 2) sums of `mean_rows` -> (...) means; NaN if nothing counts."""
    return ratio(sums[..., 0], sums[..., 1])


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom in float64, NaN if the bottom is 0; any shapes that broadcast."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the numbers that are not NaN; NaN if all are."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def resampled_sums(rows: np.ndarray, *, samples: int = 1000, seed: int | tuple[int, ...] = 0) -> np.ndarray:
    """Sums over the images of each resample: (n, S) -> (samples, S) float64."""
    numbers = np.asarray(rows, np.float64)
    return np.concatenate([counts @ numbers for counts in resampled_counts(len(rows), samples=samples, seed=seed)])


def resampled_counts(n: int, *, samples: int = 1000, seed: int | tuple[int, ...] = 0) -> Iterator[np.ndarray]:
    """Counts of each of n images in each resample: pieces (r, n) float64 of a (samples, n) matrix, in order."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    for start in range(0, samples, step):
        r = min(step, samples - start)
        positions = rng.integers(0, n, (r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(positions.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def interval(value: float | np.ndarray, resampled: np.ndarray) -> Interval:
    """A value and the percentile interval of its (samples,) resampled values, without NaN ones."""
    known = resampled[~np.isnan(resampled)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def with_intervals(numbers: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Intervals ready for JSON: NAME and NAME_interval [low, high], null for a number that is missing or undefined."""
    out: dict[str, Any] = {}
    for name, number in numbers.items():
        value, low, high = (None if x is None or np.isnan(x) else x for x in number or (None, None, None))
        out |= {name: value, f"{name}_interval": number and [low, high]}
    return out


def as_array(values: Any) -> np.ndarray:
    """A tensor of any device and precision, an array or nested lists -> numpy array; half precision becomes float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()
    return np.asarray(values)
