"""File names in tables: escaped for terminals, CSV, JSON, Parquet and HTML, and read back."""

import csv
import io
import os
import re
from typing import Any

#: Bytes that are not UTF-8 (as `os.fsdecode` decodes them), control characters and those of the writing direction.
_RAW = "[\udc80-\udcff\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
#: Their codes, which `printable` writes after a backslash.
_CODE = "x(?:[01][0-9a-f]|7f|[89a-f][0-9a-f])|u(?:00[89][0-9a-f]|202[a-e]|206[6-9])"
_ODD = re.compile(rf"(\\*)({_RAW}|{_CODE})")
_ESCAPED = re.compile(rf"(\\+)({_CODE})")
#: Text that spreadsheets run as a formula, after any quotes that prevent it.
_FORMULA = re.compile(r"'*\s*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|inf)(e[+-]?\d+)?", re.IGNORECASE)


def with_slashes(path: str) -> str:
    """A path with `/`, as keys, tables and cards have it on every system."""
    return path if os.sep == "/" else path.replace(os.sep, "/")


def printable(name: str) -> str:
    r"""Escape a file's name for terminals, CSV, JSON, Parquet and HTML.

    Bytes that are not UTF-8 and control characters become `\xfc` and `\x1b`, those of the writing direction `\u202e`;
    `from_printable` reads them back.
    """

    def escaped(match: re.Match[str]) -> str:
        slashes, odd = match.groups()
        if len(odd) > 1:
            return 2 * slashes + odd
        code = ord(odd) - 0xDC00 if odd >= "\udc80" else ord(odd)
        return f"{2 * slashes}\\" + (f"x{code:02x}" if odd >= "\udc80" or code < 0x80 else f"u{code:04x}")

    return _ODD.sub(escaped, name)


def printable_lines(text: str) -> str:
    """Escape a message for a terminal, except line breaks and names that are `printable` already."""
    return "\n".join(re.sub(_RAW, lambda match: printable(match[0]), line) for line in text.split("\n"))


def from_printable(text: str) -> str:
    """Invert `printable`."""

    def read(match: re.Match[str]) -> str:
        slashes, odd = match.groups()
        code = int(odd[1:], 16)
        if len(slashes) % 2:
            odd = chr(0xDC00 + code if odd[0] == "x" and code >= 0x80 else code)
        return len(slashes) // 2 * "\\" + odd

    return _ESCAPED.sub(read, text)


def csv_cell(text: str) -> str:
    """Escape a table's text: `printable`, with a leading `'` if a spreadsheet would run it as a formula."""
    cell = printable(text)
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def csv_row(*values: object) -> bytes:
    """A line of CSV with `csv_cell` texts, quoted if one has a `;`, which separates cells in some countries."""
    text = io.StringIO()
    cells = [csv_cell(value) if isinstance(value, str) else value for value in values]
    separated = any(";" in str(cell) for cell in cells)
    quoting: Any = csv.QUOTE_NONNUMERIC if separated else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def from_csv(cell: str) -> str:
    """Invert `csv_cell`."""
    return from_printable(cell.removeprefix("'") if _FORMULA.match(cell) else cell)
