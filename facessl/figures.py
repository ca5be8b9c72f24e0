"""Drawing: curves as small self-contained SVG, regions as pixels. Nothing here opens a window or a file."""

from __future__ import annotations

import colorsys
import functools
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch.nn.functional as F
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

#: Region colours that stay apart for most colour-blind readers; further ones are spread over the hues.
_PALETTE = ("#e6194b", "#4363d8", "#ffe119", "#3cb44b", "#f58231", "#42d4f4", "#911eb4", "#fabed4")

#: Matplotlib colours that `curve` turns into CSS: the page decides what they look like in light and dark.
_INK, _GRID = "#010101", "#020202"
#: Text of the pixel pictures, which are white in light and dark pages.
_DARK = (25, 25, 25)
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


def region_colours(count: int) -> list[tuple[int, int, int]]:
    """`count` RGB colours, 0..255, that can be told apart."""
    chosen = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in _PALETTE[:count]]
    for i in range(len(chosen), count):
        # The golden angle puts each new hue far from the earlier ones.
        hue, light = (0.05 + i * 0.618034) % 1, (0.42, 0.62, 0.78)[i % 3]
        chosen.append(tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.75)))
    return chosen  # type: ignore[return-value]


def region_overlay(image: np.ndarray, winners: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """A grey image tinted by region, with light borders between them.

    Args:
        image: (S, S, 3) uint8.
        winners: (S, S) region of each pixel.
        colours: RGB of each region.

    Returns:
        (S, S, 3) uint8.
    """
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    out = 0.5 * grey + 0.5 * np.asarray(colours, np.float32)[winners]
    border = np.zeros(winners.shape, bool)
    border[:, 1:] |= winners[:, 1:] != winners[:, :-1]
    border[1:] |= winners[1:] != winners[:-1]
    out[border] = 0.35 * out[border] + 0.65 * 255
    return out.round().astype(np.uint8)


def region_picture(images: np.ndarray, heatmaps: Tensor, *, max_regions: int = 16) -> np.ndarray:
    """A grid: each image, its N heatmaps on one common colour scale, and its arg-max regions.

    The scale runs from 0 to the largest value, but at least to twice the uniform share 1/N: regions that have
    not come alive look as flat as they are. The arg-max shows which region is ahead, be it by a hair.

    Args:
        images: (B, S, S, 3) uint8; S is the side of a cell in pixels.
        heatmaps: (B, N, h, w), sum 1 over N, any resolution.
        max_regions: columns at most; of more regions those with the largest mean are shown.

    Returns:
        (H, W, 3) uint8 RGB on white, with column titles and the colour scale.
    """
    rows, side = images.shape[:2]
    total = heatmaps.shape[1]
    maps = F.interpolate(heatmaps.float().cpu(), size=(side, side), mode="bilinear", align_corners=False)
    order = maps.mean(dim=(0, 2, 3)).argsort(descending=True)[:max_regions].sort().values.tolist()
    colours = region_colours(total)
    winners = maps.argmax(dim=1).numpy()  # (B, S, S)
    shown = maps[:, order].numpy()  # (B, n, S, S)
    top = max(float(shown.max()), 2 / total)
    painted = _colour_map()[(shown / top * 255).round().astype(np.uint8)]  # (B, n, S, S, 3)
    note = f"{len(order)} of {total} regions, those with the largest share" if len(order) < total else ""
    legend = _legend(top, 1 / total, side, note)

    gap, margin, head = max(3, side // 28), max(10, side // 8), max(22, side // 4)
    group = 2 * gap
    xs = [margin + i * (side + gap) + (group if i else 0) for i in range(len(order) + 1)]
    xs.append(xs[-1] + side + gap + group)
    width = max(xs[-1] + side, xs[1] + legend.width) + margin
    height = margin + head + rows * (side + gap) + 2 * gap + legend.height + margin
    canvas = Image.new("RGB", (width, height), "white")
    for row in range(rows):
        y = margin + head + row * (side + gap)
        cells = [images[row], *painted[row], region_overlay(images[row], winners[row], colours)]
        for x, cell in zip(xs, cells, strict=True):
            canvas.paste(Image.fromarray(cell), (x, y))
    draw = ImageDraw.Draw(canvas)
    titles = ["image", *(f"region {i + 1}" for i in order), "regions"]
    for position, (x, text) in enumerate(zip(xs, titles, strict=True)):
        swatch = colours[order[position - 1]] if 0 < position <= len(order) else None
        _title(draw, text, x=x, y=margin, side=side, swatch=swatch)
    canvas.paste(legend, (xs[1], height - margin - legend.height))
    return np.asarray(canvas)


def _title(
    draw: ImageDraw.ImageDraw, text: str, *, x: int, y: int, side: int, swatch: tuple[int, int, int] | None
) -> None:
    font = _font(side)
    indent = 0
    if swatch is not None:
        box = round(font.size * 0.8)
        draw.rectangle((x, y + 2, x + box, y + 2 + box), fill=swatch, outline=(90, 90, 90))
        indent = box + max(4, box // 2)
    draw.text((x + indent, y), text, fill=_DARK, font=font)


def _legend(top: float, uniform: float, side: int, note: str) -> Image.Image:
    """The colour bar: 0, the share of uniform heatmaps, and the largest value."""
    font, pad = _font(side), max(6, side // 14)
    length, thick = 2 * side, round(font.size)
    end = f"{top:.2f}   share of the pixel, one scale for all;   mark: {uniform:.3f}, uniform"
    start = round(font.getlength("0")) + pad
    width = max(start + length + pad + font.getlength(end), font.getlength(note))
    line = thick + 8
    strip = Image.new("RGB", (round(width) + 1, 2 * line if note else line), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((0, line + 2), note, fill=_DARK, font=font)
    draw.text((0, 4), "0", fill=_DARK, font=font)
    ramp = np.linspace(0, 255, length).round().astype(np.uint8)
    strip.paste(Image.fromarray(np.repeat(_colour_map()[ramp][None], thick, axis=0)), (start, 4))
    tick = start + round(uniform / top * (length - 1))
    draw.line((tick, 0, tick, line), fill=_DARK, width=max(1, side // 64))
    draw.text((start + length + pad, 4), end, fill=_DARK, font=font)
    return strip


@functools.cache
def _colour_map() -> np.ndarray:
    """(256, 3) uint8: matplotlib's magma, dark to light with equal perceived steps."""
    return (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def _font(side: int) -> ImageFont.FreeTypeFont:
    return font(max(9, round(side / 8)))


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along, with letters of `size` pixels."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
