"""Tables of benchmarks in the pages of docs/, and their cells."""

from __future__ import annotations

import re
from typing import Any


def fill(text: str, name: str, block: str) -> str:
    """Replace the content of a marked block."""
    pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
    if not re.search(pattern, text, re.S):
        raise SystemExit(
            f"the page has no block {name!r}: write <!-- {name}: begin --> and <!-- {name}: end --> into it"
        )
    return re.sub(pattern, lambda m: m.group(1) + block + "\n" + m.group(2), text, flags=re.S)


def table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def number(value: Any) -> str:
    """Three digits that say something."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def spread(value: Any) -> str:
    """Median (range)."""
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    low, high = value["range"]
    return f"{value['median']:.2f} ({low:.2f}-{high:.2f})"


def words(name: str) -> str:
    return name.replace("_", " ")


def listed(value: Any) -> list[Any]:
    """A part of the report that is a list; one that failed is a dict with its error."""
    return value if isinstance(value, list) else []


def flat_table(values: dict[str, Any]) -> str:
    """Nested values, a row each: "part: name | value"."""
    rows: list[list[str]] = [["", "value"]]

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}: {words(str(key))}" if prefix else words(str(key)), inner)
        elif isinstance(value, list):
            rows.append([prefix, ", ".join(map(number, value)) if len(value) <= 16 else f"{len(value)} values"])
        else:
            rows.append([prefix, number(value)])

    walk("", values)
    return table(rows)
