"""Tables of Markdown."""

from collections.abc import Mapping, Sequence


def cell(text: str) -> str:
    """Text in a table of Markdown, without markup of its own."""
    return " ".join(text.split("\n")).replace("|", "\\|").replace("<", "&lt;")


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines of a table, from one mapping of column -> text per row; none without rows."""
    if not rows:
        return []
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return ["| " + " | ".join(map(cell, line)) + " |" for line in lines]
