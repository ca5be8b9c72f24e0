"""Numbers and names as people read them; the templates use every function here as a filter."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Undefined

from facessl.core.markdown import cell

_INITIALS = frozenset({"nme", "fr", "auc", "roc", "eer", "tar", "far", "f1", "iou"})


def format_value(value: Any) -> str:
    """A setting as text, "-" if there is none."""
    return "-" if value is None or isinstance(value, Undefined) else str(value)


def short(value: float | None) -> str:
    """Four digits of a number, "-" if there is none."""
    return "-" if value is None else f"{value:.4g}"


def count(value: float | None) -> str:
    """A number of things or a rate, with commas between thousands, "-" if there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value != int(value) else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as "80 s", "90 min" or "2 h 05 min", "-" if there are none."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_name(name: str) -> str:
    """The name of a score as people write it: `nme_interocular` -> "NME interocular", `mean_f1` -> "mean F1"."""
    text = " ".join(w.upper() if w in _INITIALS else w for w in name.replace("@", " @ ").replace("_", " ").split())
    return text.replace(" @ ", "@").replace("IOU", "IoU")


def score(value: Any, name: str = "", unit: str = "fraction") -> str:
    """A score as text: fractions in per cent, areas under a curve as they are, other units behind the number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return format_value(value)
    if isinstance(value, int):
        return f"{value:,}"
    if unit != "fraction":
        return f"{value:.4g} {unit}".strip()
    return f"{value:.3f}" if "auc" in name else f"{100 * value:.2f} %"


def interval(bounds: Sequence[float | None] | None, name: str = "", unit: str = "fraction") -> str:
    """ "80.10 to 82.30 %", empty if there is none."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2 or None in bounds:
        return ""
    low, high = (score(bound, name, unit) for bound in bounds)
    return f"{low.partition(' ')[0]} to {high}"


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + "."


def unbroken(text: Any) -> str:
    """Text in which no line ends between a number and its %."""
    return format_value(text).replace(" %", "\u00a0%")


def table(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Any]]:
    """`head` and `rows` of a table, as templates take it, from one mapping of column -> text per row."""
    return {"head": list(rows[0]) if rows else [], "rows": [list(row.values()) for row in rows]}


FILTERS = (format_value, short, count, duration, format_name, score, interval, sentence, unbroken, cell)
