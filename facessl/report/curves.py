"""The curves of a report, one line per run, as small self-contained SVG."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from facessl.report.folder import RunFolder
from facessl.report.results import unit as unit_of
from facessl.report.text import format_name

#: Monitor -> title and unit; others are shown under their own name.
_MONITORS = {
    "embedding_std": ("Embedding spread", "0 = all equal"),
    "effective_rank": ("Effective rank", "directions"),
    "usage_entropy": ("Effective number of regions", "exp entropy"),
    "sharpness": ("Sharpness of the regions", "mean of the largest fraction"),
    "winning_regions": ("Regions that win at least 1 %", "of the pixels"),
    "image_information": ("Regions told by the image", "1 = whole images are regions"),
    "position_information": ("Regions told by the position", "fraction of their entropy"),
}
#: Scores of fine-tuning runs while they train.
_SCORES = {"monitor/val_": "validation part", "monitor/test_": "test part"}
#: Matplotlib colors that `curve` turns into CSS: the page decides what they look like in light and dark.
_INK, _GRID = "#010101", "#020202"
_SERIES = 8
_MAX_POINTS = 400


@dataclass(frozen=True)
class Group:
    """Curves that belong together; `lack` is the reason why there is none, without a full stop."""

    title: str
    charts: list[Markup]
    lack: str


@dataclass(frozen=True)
class Line:
    """One line of a curve."""

    # x, y: (n,) points; values of y that are not finite are left out.
    x: np.ndarray
    y: np.ndarray
    color: int = 0  # 0 to 7, position in the page's series colors
    markers: bool = False  # draw the points, for values measured now and then
    band: tuple[np.ndarray, np.ndarray] | None = None  # (low, high) to be shaded, e.g. confidence intervals; each (n,).


def groups(runs: Sequence[RunFolder]) -> list[Group]:
    """Every curve of one or several runs (at most eight are drawn), each run in its own color."""
    columns = dict.fromkeys(c for run in runs for c in run.table)
    terms = dict.fromkeys(t for run in runs for t in run.terms)
    regions = {run.regions for run in runs}
    count = regions.pop() if len(regions) == 1 else None
    uniform, every = ({"uniform": 1 / count}, {"all regions": float(count)}) if count else ({}, {})
    ideal = {"usage_entropy": every, "sharpness": uniform, "winning_regions": every}
    monitors = []
    for column in columns:
        name = column.removeprefix("monitor/")
        if name != column and not column.startswith(("monitor/knn_", *_SCORES)):
            title, unit = _MONITORS.get(name, (name, ""))
            monitors.append(_chart(runs, column, title, unit=unit, bottom=0, references=ideal.get(name)))
    loss = [chart for c in ("loss", *terms) for chart in _by_kind(runs, c, "Loss" if c == "loss" else c)]
    score = [chart for c in columns if c.startswith(tuple(_SCORES)) for chart in _score(runs, c)]
    knn = [
        _chart(runs, "monitor/knn_accuracy", "k-NN accuracy", unit="%", scale=100),
        _chart(runs, "monitor/knn_mean_class_accuracy", "k-NN mean class accuracy", unit="%", scale=100),
    ]
    schedule = [
        _chart(runs, "lr", "Learning rate", bottom=0),
        _chart(runs, "momentum", "EMA momentum"),
        _chart(runs, "grad_norm", "Gradient norm", bottom=0),
    ]
    speed = [
        _chart(runs, "images_per_second", "Images per second", bottom=0),
        _chart(runs, "data_wait", "Waiting for data", unit="% of the time", bottom=0, scale=100),
    ]
    tuned = [run.tuned for run in runs]
    return [
        Group(title, [chart for chart in charts if chart], lack)
        for title, charts, lack, applies in (
            ("Loss", loss, "No loss was logged", True),
            ("Score over time", score, "Not measured: with --select last only the end is", any(tuned)),
            ("k-NN over time", knn, "Not measured: name a labeled source with --monitor.knn", not all(tuned)),
            ("Representation and regions", monitors, "Not measured: set --monitor.every", not all(tuned)),
            ("Schedule", schedule, "No schedule was logged", True),
            ("Speed", speed, "No speed was logged", True),
        )
        if applies
    ]


def _by_kind(runs: Sequence[RunFolder], column: str, title: str, **options: Any) -> list[Markup | None]:
    """A chart for each task or method that has the column: losses and scores of several are not on one scale."""
    kinds = dict.fromkeys(run.kind for run in runs[:_SERIES] if len(run.series(column)[0]))
    return [
        _chart(runs, column, title if len(kinds) == 1 else f"{title}, {kind}", kind=kind, **options) for kind in kinds
    ]


def _score(runs: Sequence[RunFolder], column: str) -> list[Markup | None]:
    """A fine-tuning run's score on the part it is selected on."""
    prefix = next(prefix for prefix in _SCORES if column.startswith(prefix))
    name = column.removeprefix(prefix)
    title = f"{format_name(name)[:1].upper()}{format_name(name)[1:]}, {_SCORES[prefix]}"
    unit = next((unit for run in runs if (unit := unit_of(run, name)) != "fraction"), "fraction")
    percent = unit == "fraction" and not name.startswith("auc")
    return _by_kind(
        runs, column, title, unit="%" if percent else unit.replace("fraction", ""), scale=100 if percent else 1
    )


def _chart(
    runs: Sequence[RunFolder], column: str, title: str, *, scale: float = 1, kind: str | None = None, **options: Any
) -> Markup | None:
    """One curve with a line per run (of that kind) that has the column; None if none has."""
    lines = []
    for position, run in enumerate(runs[:_SERIES]):
        x, y = run.series(column)
        if not len(x) or kind not in (None, run.kind):
            continue
        low, high = run.series(f"{column}_low"), run.series(f"{column}_high")
        whole = np.array_equal(low[0], x) and np.array_equal(high[0], x)
        band = (low[1] * scale, high[1] * scale) if whole else None
        lines.append(Line(x, y * scale, color=position, markers=column.startswith("monitor/"), band=band))
    return curve(title, lines, **options) if lines else None


def curve(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    references: Mapping[str, float] | None = None,
    bottom: float | None = None,
) -> Markup:
    """A line chart over training steps: a `<figure>` with caption and inline SVG.

    Its colors are the CSS variables --grid and --series-0 ... --series-7, and the current text color.

    Args:
        lines: at most eight; long ones are averaged into 400 bins, with the range of each bin shaded.
        unit: of the y axis, or what its values mean.
        references: name -> y of horizontal dashed lines (chance, ideal), which the caption names.
        bottom: lowest y shown, if it has a meaning (0 for fractions).
    """
    title = title.encode("utf-8", "backslashreplace").decode()
    style: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 8.5, "font.family": "sans-serif"}
    with matplotlib.rc_context(style | {"svg.hashsalt": title}):
        figure = Figure(figsize=(4.2, 2.2))
        # Fixed margins: charts side by side then have their axes in line.
        axes = figure.add_axes((0.13, 0.21, 0.84, 0.75))
        for line in lines:
            _draw(axes, line)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        for y in (references or {}).values():
            axes.axhline(y, color=_INK, alpha=0.6, linewidth=0.8, linestyle=(0, (4, 3)))
        if references:
            low, high = axes.get_ylim()
            axes.set_ylim(top=max(high, max(references.values()) + 0.05 * (high - low)))
        _dress(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    about = "; ".join(filter(None, [unit, *(f"dashed: {name}" for name in references or ())]))
    caption = Markup("<figcaption><b>{}</b> {}</figcaption>").format(title, about)
    return Markup('<figure class="chart">{}{}</figure>').format(caption, _themed(out.getvalue(), title))


def _draw(axes: matplotlib.axes.Axes, line: Line) -> None:
    color = f"#0a0b0{line.color % _SERIES}"
    keep = np.isfinite(line.y)
    x, y = line.x[keep], line.y[keep]
    if line.band is not None:
        axes.fill_between(x, line.band[0][keep], line.band[1][keep], color=color, alpha=0.18, linewidth=0)
    if len(x) > _MAX_POINTS:
        bins = np.array_split(np.arange(len(x)), _MAX_POINTS)
        low, high = (np.array([f(y[b]) for b in bins]) for f in (np.min, np.max))
        x, y = (np.array([v[b].mean() for b in bins]) for v in (x, y))
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    # A single point would be invisible as a line.
    marker = "o" if line.markers or len(x) == 1 else None
    axes.plot(x, y, color=color, linewidth=1.4, marker=marker, markersize=3.2)


def _dress(axes: matplotlib.axes.Axes) -> None:
    axes.set_xlabel("step", color=_INK)
    axes.grid(True, axis="y", color=_GRID, linewidth=0.7)
    axes.tick_params(colors=_INK, length=0)
    steps = [1, 2, 2.5, 5, 10]
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True, steps=steps))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=steps))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)


def _themed(svg: str, title: str) -> Markup:
    """The SVG without its prologue and unused ids, with CSS colors instead of the placeholders."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([\w-]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r"#0a0b0([0-7])", r"var(--series-\1)", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}" style="width:100%"', 1).strip())
