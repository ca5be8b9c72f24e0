"""Any metric, group by group: values, the gap between the best and the worst group, and the gap by chance.

A gap is above 0 even where groups do not differ: read it beside `gap_by_chance`, which 19 of 20 random assignments of
the same images to groups stay below.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.metrics.bootstrap import as_array, interval, mean_of, mean_rows, resampled_sums

#: Groups below this number of images say too little to enter a gap.
MIN_COUNT = 20


def by_group(
    values: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    *,
    larger_is_better: bool = True,
    samples: int = 1000,
) -> dict[str, Any]:
    """Break the mean of a number per image down by group.

    Args:
        values: (N,) number of each image: whether it was right, its NME, its F1; NaN: it has none.
        groups: (N,) index into `names`; negative: unknown.
        names: of the groups.
        larger_is_better: False for errors; decides which group is the worst.
        samples: of the bootstrap and of the random assignments.

    Returns:
        Ready for JSON:

        groups: of every name its images (that have a value), value, interval [low, high] (95 %, over the group's
            images; None as the value if it has none), and counted: False if it has fewer than `MIN_COUNT` images
            and is left out of gap and worst.
        gap: largest minus smallest value of the counted groups, with gap_interval [low, high] (images resampled within
            groups); None if fewer than two groups count.
        gap_by_chance: 95th percentile of the gap when images are assigned to the counted groups at random.
        worst: name of the counted group with the poorest value; None if none counts.
        note: a sentence on what the gap leaves out; empty if it leaves out nothing.

    Raises:
        DataError: a group index without a name.
    """
    groups, rows = as_array(groups).astype(np.int64), mean_rows(as_array(values))
    if len(groups) and groups.max() >= len(names):
        raise DataError(f"group {groups.max()} has no name: only {len(names)} are given, {', '.join(names)}")
    rows_by_group = [rows[(rows[:, 1] > 0) & (groups == code)] for code in range(len(names))]
    out: list[dict[str, Any]] = []
    counted, resampled = [], []
    for k, (name, group) in enumerate(zip(names, rows_by_group, strict=True)):
        means = mean_of(resampled_sums(group, samples=samples, seed=(0, k))) if len(group) else np.empty(0)
        value, low, high = (None if np.isnan(x) else x for x in interval(mean_of(group.sum(0)), means))
        is_counted = len(group) >= MIN_COUNT
        row = {"name": name, "images": len(group), "value": value, "interval": [low, high], "counted": is_counted}
        out.append(row)
        if is_counted:
            counted.append(k)
            resampled.append(means)
    gap, by_chance = None, None
    if len(counted) > 1:
        gap = interval(np.ptp([out[k]["value"] for k in counted]), np.ptp(resampled, axis=0))
        by_chance = _gap_by_chance([rows_by_group[k] for k in counted], samples)
    few = ", ".join(f"{row['name']} ({row['images']})" for row in out if not row["counted"])
    notes = [f"left out of the gap, fewer than {MIN_COUNT} images or no value: {few}"] if few else []
    notes += [f"{unknown} images have no group"] if (unknown := int((groups < 0).sum())) else []
    pick = min if larger_is_better else max
    return {
        "groups": out,
        "gap": gap and gap.value,
        "gap_interval": gap and list(gap[1:]),
        "gap_by_chance": by_chance,
        "worst": out[pick(counted, key=lambda k: out[k]["value"])]["name"] if counted else None,
        "note": "; ".join(notes),
    }


def _gap_by_chance(groups: list[np.ndarray], samples: int) -> float:
    rng = np.random.default_rng((0, len(groups), 1))
    rows, cuts = np.concatenate(groups), np.cumsum([len(group) for group in groups])[:-1]
    orders = (rng.permutation(len(rows)) for _ in range(samples))
    gaps = [np.ptp([mean_of(part.sum(0)) for part in np.split(rows[order], cuts)]) for order in orders]
    return float(np.nanpercentile(gaps, 95))
