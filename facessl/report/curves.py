"""Which curves a report shows: one line per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from facessl.report.folder import RunFolder
from facessl.report.parts import spoken
from facessl.report.svg import SERIES, Line, curve

#: Monitor -> title and unit; others are shown under their own name.
_MONITORS = {
    "embedding_std": ("Embedding spread", "0 = all equal"),
    "effective_rank": ("Effective rank", "directions"),
    "usage_entropy": ("Regions in use", "exp entropy"),
    "sharpness": ("Sharpness of the regions", "mean of the largest share"),
    "winning_regions": ("Regions that win at least 1 %", "of the pixels"),
    "image_information": ("Regions told by the image", "1 = whole images are regions"),
    "position_information": ("Regions told by the position", "share of their entropy"),
}

#: Scores of fine-tuning runs while they train.
_SCORES = ("monitor/val_", "monitor/test_")


@dataclass(frozen=True)
class Group:
    """Curves that belong together.

    Attributes:
        title: heading.
        charts: inline SVG; empty where the runs logged nothing of it.
        lack: what to say then, without a full stop.
    """

    title: str
    charts: list[str]
    lack: str


def groups(runs: Sequence[RunFolder]) -> list[Group]:
    """Every curve of one or several runs (at most eight are drawn), each run in its own colour."""
    columns = dict.fromkeys(c for run in runs for c in run.table)
    terms = dict.fromkeys(t for run in runs for t in run.terms)
    regions = {run.regions for run in runs}
    count = regions.pop() if len(regions) == 1 else None
    ideal = {
        "usage_entropy": {"all regions": float(count)} if count else {},
        "sharpness": {"uniform": 1 / count} if count else {},
        "winning_regions": {"all regions": float(count)} if count else {},
    }
    loss = [_chart(runs, "loss", "Loss"), *(_chart(runs, t, t) for t in terms)]
    schedule = [
        _chart(runs, "lr", "Learning rate", bottom=0),
        _chart(runs, "momentum", "EMA momentum"),
        _chart(runs, "grad_norm", "Gradient norm", bottom=0),
    ]
    scores = [c for c in columns if c.startswith(_SCORES)]
    watched = [c for c in columns if c.startswith("monitor/") and not c.startswith(("monitor/knn_", *_SCORES))]
    monitors = []
    for column in watched:
        name = column.removeprefix("monitor/")
        title, unit = _MONITORS.get(name, (name, ""))
        monitors.append(_chart(runs, column, title, unit=unit, bottom=0, references=ideal.get(name)))
    knn = [
        _chart(runs, "monitor/knn_accuracy", "k-NN accuracy", unit="%", scale=100, interval=True),
        _chart(runs, "monitor/knn_mean_class_accuracy", "k-NN mean class accuracy", unit="%", scale=100),
    ]
    tuned = [run.tuned for run in runs]
    score = [_score(runs, column) for column in scores]
    speed = [
        _chart(runs, "images_per_second", "Images per second", bottom=0),
        _chart(runs, "data_wait", "Waiting for data", unit="% of the time", bottom=0, scale=100),
    ]
    return [
        Group(title, [chart for chart in charts if chart], lack)
        for title, charts, lack, wanted in (
            ("Loss", loss, "No loss was logged", True),
            ("Score over time", score, "Not measured: with --select last only the end is", any(tuned)),
            ("k-NN over time", knn, "Not measured: name a labelled source with --monitor.knn", not all(tuned)),
            ("Representation and regions", monitors, "Not measured: set --monitor.every", not all(tuned)),
            ("Schedule", schedule, "No schedule was logged", True),
            ("Speed", speed, "No speed was logged", True),
        )
        if wanted
    ]


def _score(runs: Sequence[RunFolder], column: str) -> str:
    """A fine-tuning run's score on the part it is selected on."""
    part, _, name = column.removeprefix("monitor/").partition("_")
    where = {"val": "validation part", "test": "test part"}[part]
    told = [(run.results.get("test") or {}).get("headline") or {} for run in runs]
    unit = next((one["unit"] for one in told if "unit" in one), "share")
    shares = unit == "share" and not name.startswith("auc")
    shown = "%" if shares else unit.replace("share", "")
    title = spoken(name)
    return _chart(runs, column, f"{title[:1].upper()}{title[1:]}, {where}", unit=shown, scale=100 if shares else 1)


def _chart(
    runs: Sequence[RunFolder],
    column: str,
    title: str,
    *,
    unit: str = "",
    bottom: float | None = None,
    scale: float = 1,
    references: Mapping[str, float] | None = None,
    interval: bool = False,
) -> str:
    """One curve with a line per run that has the column; "" where none has."""
    lines: list[Line] = []
    bands = {}
    for position, run in enumerate(runs[:SERIES]):
        x, y = run.series(column)
        if not len(x):
            continue
        low, high = run.series(f"{column}_low"), run.series(f"{column}_high")
        if interval and np.array_equal(low[0], x) and np.array_equal(high[0], x):
            bands[len(lines)] = (low[1] * scale, high[1] * scale)
        lines.append(Line(x, y * scale, colour=position, markers=column.startswith("monitor/")))
    if not lines:
        return ""
    return curve(title, lines, unit=unit, bottom=bottom, references=references, band=bands)
