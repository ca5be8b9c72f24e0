"""The small parts that report pages are made of: style, tables, pictures, numbers as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

_INITIALS = frozenset({"nme", "fr", "auc", "roc", "eer", "tar", "far", "f1", "iou"})

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #63676e; --page: #ffffff; --card: #f6f7f9;
  --grid: #d9dce1; --good: #1a7f4b; --bad: #c0362c; --series-0: #2563eb; --series-1: #d9480f;
  --series-2: #2b8a3e; --series-3: #9c36b5; --series-4: #0b7285; --series-5: #c2255c; --series-6: #7c5e10;
  --series-7: #5f6770; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa0a8; --page: #15171a; --card: #1e2125;
  --grid: #363b42; --good: #51cf8a; --bad: #ff8078; --series-0: #74a7ff; --series-1: #ff9a5c; --series-2: #69db7c;
  --series-3: #da8ff0; --series-4: #5fd0e0; --series-5: #ff85ad; --series-6: #e0bd5c; --series-7: #adb5bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--grid); }
p { margin: .5rem 0; max-width: 46rem; } .soft { color: var(--soft); } code { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.2rem, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.2rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .82rem; display: block; line-height: 1.35; }
.verdict { border-left: 4px solid var(--soft); padding: .5rem .9rem; background: var(--card); max-width: none; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
.charts svg { display: block; background: var(--card); border-radius: .5rem; padding: .5rem; height: auto; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(34rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .85rem; margin-bottom: .25rem; }
img { display: block; max-width: 100%; height: auto; border-radius: .3rem; }
pre { background: var(--card); border-radius: .5rem; padding: .9rem 1.1rem; overflow-x: auto; font-size: .84rem;
  line-height: 1.45; columns: 22rem 2; column-gap: 2.5rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { font-weight: 600; color: var(--soft); } td { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
.bar { display: inline-block; height: .7rem; border-radius: .15rem; background: var(--series-0); }
.two { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.confusion td, .confusion th { padding: .3rem .55rem; border: 1px solid var(--page); text-align: center; }
.confusion th { text-align: right; } .confusion tr:first-child th { text-align: center; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .45rem; }
"""


def whole_page(title: str, parts: Sequence[str]) -> str:
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(parts) + "\n</body>\n</html>\n"


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def missing(sentence: str) -> str:
    return f'<p class="soft">{escape(sentence)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; `rows` are HTML already, `head` is text."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{f"<tr>{top}</tr>" if any(head) else ""}{body}</table></div>'


def pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def shown(value: Any) -> str:
    return "-" if value is None else str(value)


def short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def count(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value != int(value) else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def spoken(name: str) -> str:
    """The name of a score as people write it: `nme_interocular` -> "NME interocular", `mean_f1` -> "mean F1"."""
    text = " ".join(w.upper() if w in _INITIALS else w for w in name.replace("@", " @ ").replace("_", " ").split())
    return text.replace(" @ ", "@").replace("IOU", "IoU")


def score(name: str, value: Any, unit: str = "share") -> str:
    """A score as text: shares in per cent, areas under a curve as they are, other units behind the number, counts in
    full."""
    if value is None or isinstance(value, bool | str):
        return shown(value)
    if isinstance(value, int):
        return f"{value:,}"
    if unit != "share":
        return f"{value:.4g} {unit}".strip()
    return f"{value:.3f}" if "auc" in name else f"{100 * value:.2f} %"


def interval(name: str, bounds: Sequence[float | None] | None, unit: str = "share") -> str:
    """ "80.10 to 82.30 %", empty where there is none."""
    if not bounds or None in bounds:
        return ""
    low, high = (score(name, bound, unit) for bound in bounds)
    return f"{low.partition(' ')[0]} to {high}"


def picture(path: Path, width: int) -> str:
    """The picture as a data URI, at most `width` pixels wide; a sentence where it cannot be read."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError as error:
        return missing(f"{path.name} cannot be read: {error}.")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="WEBP", quality=88, method=4)
    data = base64.b64encode(out.getvalue()).decode()
    return (
        f'<img alt="{escape(path.stem)}" width="{picture.width}" height="{picture.height}" '
        f'src="data:image/webp;base64,{data}">'
    )
