"""Texts in tables: names of files as terminals, CSV, JSON, Parquet and HTML can hold them, and back."""

import csv
import io
import os
import re
from typing import Any

#: A byte that is not UTF-8 (as `os.fsdecode` gives it), and what a terminal obeys: control characters, and those that
#: turn the direction of writing.
_RAW = "[\udc80-\udcff\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
#: What `printable` writes for them after a backslash.
_CODE = "x(?:[01][0-9a-f]|7f|[89a-f][0-9a-f])|u(?:00[89][0-9a-f]|202[a-e]|206[6-9])"
_ODD = re.compile(rf"(\\*)({_RAW}|{_CODE})")
_ESCAPED = re.compile(rf"(\\+)({_CODE})")
#: What spreadsheets run as a formula, with the quotes in front that keep them from it.
_FORMULA = re.compile(r"'*\s*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|inf)(e[+-]?\d+)?", re.IGNORECASE)


def with_slashes(path: str) -> str:
    """A path as it is written in keys, tables and cards, which are the same on every system."""
    return path if os.sep == "/" else path.replace(os.sep, "/")


def printable(name: str) -> str:
    r"""A file's name as text that a terminal, CSV, JSON, Parquet and HTML can hold.

    Its bytes that are not UTF-8 and its control characters are written as `\xfc` and `\x1b`, others that a terminal
    obeys as `\u202e`; `from_printable` reads them back.
    """

    def escaped(match: re.Match[str]) -> str:
        slashes, odd = match.groups()
        if len(odd) > 1:
            return 2 * slashes + odd
        code = ord(odd) - 0xDC00 if odd >= "\udc80" else ord(odd)
        return f"{2 * slashes}\\" + (f"x{code:02x}" if odd >= "\udc80" or code < 0x80 else f"u{code:04x}")

    return _ODD.sub(escaped, name)


def printable_lines(text: str) -> str:
    """A message for a terminal, whose ends of lines and names that are `printable` already stay."""
    return "\n".join(re.sub(_RAW, lambda match: printable(match[0]), line) for line in text.split("\n"))


def from_printable(text: str) -> str:
    """The name that `printable` wrote as `text`."""

    def read(match: re.Match[str]) -> str:
        slashes, odd = match.groups()
        code = int(odd[1:], 16)
        if len(slashes) % 2:
            odd = chr(0xDC00 + code if odd[0] == "x" and code >= 0x80 else code)
        return len(slashes) // 2 * "\\" + odd

    return _ESCAPED.sub(read, text)


def csv_cell(text: str) -> str:
    """`text` in a table: `printable`, and with a `'` in front where a spreadsheet would run it as a formula."""
    cell = printable(text)
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def csv_row(*values: object) -> bytes:
    """A line of CSV; texts as `csv_cell` writes them, quoted where one holds what separates cells in some countries."""
    text = io.StringIO()
    cells = [csv_cell(value) if isinstance(value, str) else value for value in values]
    separated = any(";" in str(cell) for cell in cells)
    quoting: Any = csv.QUOTE_NONNUMERIC if separated else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def from_csv(cell: str) -> str:
    """The text that `csv_row` wrote as `cell`."""
    return from_printable(cell.removeprefix("'") if _FORMULA.match(cell) else cell)
