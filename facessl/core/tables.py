"""Texts in tables: names of files as CSV, JSON, Parquet and HTML can hold them, and back."""

from __future__ import annotations

import csv
import io
import re

#: A byte that is not UTF-8 (as `os.fsdecode` gives it), and text that reads like one that `printable` wrote.
_ODD = re.compile(r"(\\*)([\udc80-\udcff]|x[89a-f][0-9a-f])")
_ESCAPED = re.compile(r"(\\+)x([89a-f][0-9a-f])")
#: What spreadsheets run as a formula, with the quotes in front that keep them from it.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|inf)(e[+-]?\d+)?", re.IGNORECASE)


def printable(name: str) -> str:
    r"""A file's name as text that CSV, JSON, Parquet and HTML can hold: its bytes that are not UTF-8 as `\xfc`."""

    def escaped(match: re.Match[str]) -> str:
        slashes, odd = match.groups()
        if odd[0] == "x":
            return 2 * slashes + odd
        return f"{2 * slashes}\\x{ord(odd) - 0xDC00:02x}"

    return _ODD.sub(escaped, name)


def from_printable(text: str) -> str:
    """The name that `printable` wrote as `text`."""

    def byte(match: re.Match[str]) -> str:
        slashes, odd = match.groups()
        half = len(slashes) // 2 * "\\"
        return half + (chr(0xDC00 + int(odd, 16)) if len(slashes) % 2 else f"x{odd}")

    return _ESCAPED.sub(byte, text)


def csv_cell(text: str) -> str:
    """`text` in a table: `printable`, and with a `'` in front where a spreadsheet would run it as a formula."""
    cell = printable(text)
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def csv_row(*values: object) -> bytes:
    """A line of CSV; texts as `csv_cell` writes them."""
    text = io.StringIO()
    cells = [csv_cell(value) if isinstance(value, str) else value for value in values]
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def from_csv(cell: str) -> str:
    """The text that `csv_row` wrote as `cell`."""
    return from_printable(cell.removeprefix("'") if _FORMULA.match(cell) else cell)
