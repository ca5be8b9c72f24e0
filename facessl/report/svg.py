"""Curves as small self-contained SVG. Nothing here opens a window or a file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

#: Matplotlib colours that `curve` turns into CSS: the page decides what they look like in light and dark.
_INK, _GRID = "#010101", "#020202"
SERIES = 8
_MAX_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One line of a curve.

    Attributes:
        x, y: (n,) points; values of y that are not finite are left out.
        label: name in the legend; empty: none.
        colour: 0 to 7, position in the page's series colours.
        markers: draw the points, for values measured now and then.
    """

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    colour: int = 0
    markers: bool = False


def curve(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    references: Mapping[str, float] | None = None,
    bottom: float | None = None,
    band: Mapping[int, tuple[np.ndarray, np.ndarray]] | None = None,
    size: tuple[float, float] = (4.2, 2.5),
) -> str:
    """A line chart over training steps as inline SVG.

    Args:
        title: above the chart.
        lines: at most eight; long ones are averaged into 400 bins, with the range of each bin shaded.
        unit: of the y axis, or what its values mean.
        references: name -> y of horizontal dashed lines (chance, ideal).
        bottom: lowest y shown, where it has a meaning (0 for shares).
        band: line position -> (low, high) to be shaded, e.g. confidence intervals; each (n,).
        size: inches.

    Returns:
        `<svg>...</svg>` whose text and lines take their colours from the CSS variables --grid and
        --series-0 ... --series-7 and from the current text colour.
    """
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.size": 8.5,
        "font.family": "sans-serif",
        "svg.hashsalt": title,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        # Fixed margins: charts side by side then have their axes in line.
        axes = figure.add_axes((0.13, 0.18, 0.84, 0.69))
        for position, line in enumerate(lines):
            _draw(axes, line, (band or {}).get(position))
        for name, y in (references or {}).items():
            axes.axhline(y, color=_INK, alpha=0.45, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                name,
                (1, y),
                (-2, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                fontsize=7.5,
                color=_INK,
                alpha=0.65,
            )
        if references:
            # Room above the line for its name.
            low, high = axes.get_ylim()
            axes.set_ylim(top=max(high, max(references.values()) + 0.14 * (high - (low if bottom is None else bottom))))
        _dress(axes, title, unit, bottom, legend=any(line.label for line in lines))
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), title)


def _draw(axes: matplotlib.axes.Axes, line: Line, band: tuple[np.ndarray, np.ndarray] | None) -> None:
    colour = f"#0a0b0{line.colour % SERIES}"
    keep = np.isfinite(line.y)
    x, y = line.x[keep], line.y[keep]
    if band is not None:
        axes.fill_between(x, band[0][keep], band[1][keep], color=colour, alpha=0.18, linewidth=0)
    if len(x) > _MAX_POINTS:
        groups = np.array_split(np.arange(len(x)), _MAX_POINTS)
        low, high = (np.array([f(y[g]) for g in groups]) for f in (np.min, np.max))
        x, y = (np.array([v[g].mean() for g in groups]) for v in (x, y))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    # A single point would be invisible as a line.
    marker = "o" if line.markers or len(x) == 1 else None
    axes.plot(x, y, color=colour, linewidth=1.4, marker=marker, markersize=3.2, label=line.label or None)


def _dress(axes: matplotlib.axes.Axes, title: str, unit: str, bottom: float | None, *, legend: bool) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=_INK)
    axes.set_xlabel("step", color=_INK)
    axes.set_title(unit, loc="right", fontsize=7.5, color=_INK, alpha=0.65)
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    axes.grid(True, axis="y", color=_GRID, linewidth=0.7)
    axes.tick_params(colors=_INK, length=0)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)
    if legend:
        axes.legend(frameon=False, fontsize=7.5, labelcolor=_INK, handlelength=1.4)


def _themed(svg: str, title: str) -> str:
    """The SVG without its prologue and unused ids, with CSS colours instead of the placeholders."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([\w-]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r"#0a0b0([0-7])", r"var(--series-\1)", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}" style="width:100%"', 1).strip()
