"""Any metric, group by group: values, the gap between the best and the worst group, and what chance would show.

A gap is a largest minus a smallest value, so it is above 0 even where groups do not differ, and its interval never
holds 0. Read it beside `chance`: the gap that 19 of 20 random assignments of the same images to groups stay below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.metrics.bootstrap import Interval, as_array, interval, mean_of, mean_rows, resampled_sums

#: Groups below this number of images say too little to enter a gap.
MIN_COUNT = 20


@dataclass(frozen=True)
class Group:
    """One group.

    Attributes:
        name: of the group.
        images: images that have a value.
        value: of the metric with its 95 % bootstrap interval over the group's images; NaN where it is undefined.
        counted: False where the group has too few images, or no value, and is left out of gap and worst.
    """

    name: str
    images: int
    value: Interval
    counted: bool


@dataclass(frozen=True)
class Fairness:
    """A metric broken down.

    Attributes:
        groups: every named group, in order, also those left out of the gap.
        gap: largest minus smallest value of the counted groups, with its 95 % bootstrap interval (images resampled
            within groups); None where fewer than two groups count.
        chance: 95th percentile of the gap when images are assigned to the counted groups at random; None as `gap`.
        worst: name of the counted group with the poorest value; None where none counts.
        min_count: smallest number of images of a counted group.
        unknown: images without a group; they are nowhere in the numbers.
    """

    groups: tuple[Group, ...]
    gap: Interval | None
    chance: float | None
    worst: str | None
    min_count: int
    unknown: int

    @property
    def note(self) -> str:
        """A sentence on what the gap leaves out; empty where it leaves out nothing."""
        few = ", ".join(f"{g.name} ({g.images})" for g in self.groups if not g.counted)
        parts = [f"left out of the gap, fewer than {self.min_count} images or no value: {few}"] if few else []
        parts += [f"{self.unknown} images have no group"] if self.unknown else []
        return "; ".join(parts)

    def summary(self) -> dict[str, Any]:
        """Ready for JSON; a group's undefined value is null."""
        rows = []
        for group in self.groups:
            value, low, high = (None if np.isnan(x) else x for x in group.value)
            row = {"name": group.name, "images": group.images, "value": value, "interval": [low, high]}
            rows.append(row | {"counted": group.counted})
        return {
            "groups": rows,
            "gap": self.gap and self.gap.value,
            "gap_interval": self.gap and [self.gap.low, self.gap.high],
            "gap_by_chance": self.chance,
            "worst": self.worst,
            "note": self.note,
        }


def by_group(
    values: np.ndarray | Callable[[np.ndarray], float],
    groups: np.ndarray,
    names: Sequence[str] = (),
    *,
    statistic: Callable[[np.ndarray], np.ndarray] = mean_of,
    larger_is_better: bool = True,
    min_count: int = MIN_COUNT,
    samples: int = 1000,
    seed: int = 0,
) -> Fairness:
    """Break a metric of N images down by group.

    Args:
        values: one of
            (N,) a number per image, whose mean is the metric: whether it was right, its NME, its F1; NaN: it has none;
            (N, S) numbers per image, whose sums `statistic` turns into the metric (a confusion matrix per image);
            a function of (n,) positions of images, repeated ones included, that returns the metric (slow: it is called
            for every resample of every group).
        groups: (N,) index into `names`; negative: unknown.
        names: of the groups; empty: the indices that occur.
        statistic: for (N, S) values: sums (..., S) -> (...).
        larger_is_better: False for errors; decides which group is the worst.
        min_count: groups with fewer images are reported, and left out of the gap.
        samples, seed: of the bootstrap and of the random assignments.

    Raises:
        DataError: a group index without a name.
    """
    groups = as_array(groups).astype(np.int64)
    if names and len(groups) and groups.max() >= len(names):
        raise DataError(f"group {groups.max()} has no name: there are {len(names)}, {', '.join(names)}")
    codes = range(len(names)) if names else [int(c) for c in np.unique(groups[groups >= 0])]
    metric = _PerImage(values, statistic) if not callable(values) else _Function(values)
    known = metric.known(groups >= 0)
    members = [np.flatnonzero(known & (groups == code)) for code in codes]
    undefined = np.full(1, np.nan)
    drawn = [metric.drawn(of, samples, (seed, k)) if len(of) else undefined for k, of in enumerate(members)]
    found = [interval(metric.value(of) if len(of) else np.nan, again) for of, again in zip(members, drawn, strict=True)]
    labels = list(names) or [str(code) for code in codes]
    out = tuple(
        Group(label, len(of), value, bool(len(of) >= max(1, min_count) and not np.isnan(value.value)))
        for label, of, value in zip(labels, members, found, strict=True)
    )
    counted = [k for k, group in enumerate(out) if group.counted]
    pick = min if larger_is_better else max
    worst = pick(counted, key=lambda k: out[k].value.value) if counted else None
    gap, chance = None, None
    if len(counted) > 1:
        gap = interval(np.ptp([out[k].value.value for k in counted]), np.ptp([drawn[k] for k in counted], axis=0))
        chance = _chance(metric, [members[k] for k in counted], samples, seed)
    return Fairness(
        groups=out,
        gap=gap,
        chance=chance,
        worst=None if worst is None else out[worst].name,
        min_count=min_count,
        unknown=int((groups < 0).sum()),
    )


class _PerImage:
    """A metric that is a function of sums over images."""

    def __init__(self, values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> None:
        values = as_array(values)
        self.known_images = ~np.isnan(values) if values.ndim == 1 else np.ones(len(values), bool)
        self.rows = mean_rows(values) if values.ndim == 1 else values.astype(np.float64)  # (N, S)
        self.statistic = mean_of if values.ndim == 1 else statistic

    def known(self, grouped: np.ndarray) -> np.ndarray:
        return grouped & self.known_images

    def value(self, of: np.ndarray) -> float:
        return float(self.statistic(self.rows[of].sum(0)))

    def drawn(self, of: np.ndarray, samples: int, seed: tuple[int, ...]) -> np.ndarray:
        return self.statistic(resampled_sums(self.rows[of], samples=samples, seed=seed))


class _Function:
    """A metric that is any function of positions of images."""

    def __init__(self, function: Callable[[np.ndarray], float]) -> None:
        self.value = function

    def known(self, grouped: np.ndarray) -> np.ndarray:
        return grouped

    def drawn(self, of: np.ndarray, samples: int, seed: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.array([self.value(of[rng.integers(0, len(of), len(of))]) for _ in range(samples)])


def _chance(metric: _PerImage | _Function, members: list[np.ndarray], samples: int, seed: int) -> float:
    """95th percentile of the gap over random assignments to groups of the same sizes."""
    rng = np.random.default_rng((seed, len(members), 1))
    every = np.concatenate(members)
    cuts = np.cumsum([len(of) for of in members])[:-1]
    gaps = [np.ptp([metric.value(part) for part in np.split(rng.permutation(every), cuts)]) for _ in range(samples)]
    return float(np.nanpercentile(gaps, 95))
