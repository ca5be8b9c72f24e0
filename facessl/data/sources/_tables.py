"""Tables of images, one per row: columns by name, the meaning of their values, and the rows of a part."""

import itertools
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facessl.core.errors import DataError, UnknownName
from facessl.core.escape import printable
from facessl.data.index import class_order
from facessl.data.source import stored
from facessl.data.sources._lists import box_of_size, check_width, choice, csv_rows, real, whole
from facessl.data.splits import role, roles

#: Names of columns of image paths in any case, first match first.
_IMAGE = ("image", "path", "file", "filename", "file_name", "image_path", "img", "image_id")
_BOXES = (("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"), ("x", "y", "w", "h"))
_NUMBER = re.compile(r"[+-]?\d+")
_MAX_CLASSES = 10_000_000
#: Longer numbers of identities are names.
_DIGITS = 18
#: Cells that programs write for a missing value.
_NO_VALUE = frozenset(("nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL"))


class ImageTable:
    """The cells of a table.

    Attributes:
        file: where it was read.
        header: names of its columns.
        where: place of each of the N rows ("FILE, line 2").
        cells: column -> its N cells as they stand there, but for those of `points`.
        points: (N, K, 2) float64, the columns x0, y0, x1, y1, ... without a gap; NaN if a cell is empty.
        splits: as `Source.splits`.
    """

    def __init__(self, file: Path, layout: str, rows: Iterable[tuple[str, list[str]]] | None = None) -> None:
        """`rows` are place and cells of the header and of every row; None reads them from the file, with a header.

        DataError: it cannot be read or is empty, a row is longer or shorter than the header, or a coordinate is no
        number.
        """
        self.file = file
        rows = iter(csv_rows(file, layout, strip=False) if rows is None else rows)
        self.header = [printable(name.strip()) for name in next(rows, ("", []))[1]]
        if not self.header:
            raise DataError(f"{file} is empty ({layout})")
        self.where: list[str] = []
        low = [name.lower() for name in self.header]
        count = next(k for k in itertools.count() if not {f"x{k}", f"y{k}"} <= set(low))
        points = [low.index(f"{axis}{point}") for point in range(count) for axis in "xy"]
        others = [at for at in range(len(low)) if at not in points]
        columns: list[list[str]] = [[] for _ in others]
        numbers = array("d")
        for where, row in rows:
            check_width(where, len(row), len(self.header))
            self.where.append(where)
            for column, at in zip(columns, others, strict=True):
                column.append(row[at])
            numbers.extend(real(row[at], where, low[at]) if row[at].strip() else np.nan for at in points)
        self.points = np.array(numbers).reshape(len(self.where), count, 2)
        self.cells = {self.header[at]: column for at, column in zip(others, columns, strict=True)}
        self._split = self.find(["split"])
        self.splits = roles(self.column(self._split)) if self._split else {}

    def find(self, names: Iterable[str]) -> str | None:
        """Name of the first of these columns that the table has, in any case; None if it has none."""
        low = {name.lower(): name for name in reversed(self.cells)}
        return next((low[name] for name in names if name in low), None)

    def column(self, name: str) -> list[str]:
        """The N cells of a column, "" for no value. UnknownName if there is no such column."""
        if name not in self.cells:
            raise UnknownName(f"column of {self.file}", name, self.header)
        values = map(str.strip, self.cells[name])
        return ["" if value in _NO_VALUE else value for value in values]

    def texts(self, name: str) -> list[str]:
        """As `column`, but DataError if a cell is empty."""
        values = self.column(name)
        if "" in values:
            raise DataError(f"{self.where[values.index('')]}: no value in the column {name}")
        return values

    def rows(self, split: str | None, reader: str) -> np.ndarray:
        """Positions of the rows of one part (a role, or a value of the column `split`); None: all.

        DataError: the table has no rows. ConfigError, UnknownName: the split, or the column `split`, is missing.
        """
        if not self.where:
            raise DataError(f"{self.file} has no row below its header")
        if split is None:
            return np.arange(len(self.where))
        values = self.column(self._split or "split")
        choice(reader, "split", split, sorted({*values, *self.splits}))
        return np.array([at for at, value in enumerate(values) if split in (value, role(value))], np.int64)

    def path_column(self, column: str = "auto") -> str:
        """Name of the column of paths; "auto" looks for the usual names. DataError if there is none."""
        name = self.find(_IMAGE) if column == "auto" else column
        if name is None:
            raise DataError(
                f"{self.file} has no column {', '.join(_IMAGE[:4])} (it has {', '.join(self.header[:12])}): "
                "name the column of paths with image="
            )
        self.texts(name)
        return name

    def paths(self, rows: Iterable[int] | None = None, column: str = "auto") -> list[str]:
        """Paths of images, all or of some rows, from a column as of `path_column`, with blanks at their ends."""
        cells = self.cells[self.path_column(column)]
        return cells if rows is None else [cells[row] for row in rows]

    def source_args(self, names: Sequence[str], root: Path | None) -> dict[str, Any]:
        """Arguments of `Source.__init__` for images with these paths.

        They start from the folder `root`, else from the table's own, or from `images` beside it if the first one is
        there.
        """
        folders = [self.file.parent, self.file.parent / "images"] if root is None else [root.expanduser()]
        folder = next((folder for folder in folders if stored(names[0], folder)), folders[0])
        return {"names": names, "folder": folder, "file": self.file, "hint": "say with root= where paths start"}

    def classes(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """(N,) class numbers and names, -1 for no value.

        Numbers count from 0, or from 1 if none is 0; names are numbered by their place in the sorted list. They are
        numbered over the whole table, so that all parts agree.
        """
        values = list(map(printable, self.column(name)))
        used = {value for value in values if value}
        if used and all(map(_NUMBER.fullmatch, used)):
            numbers = [
                whole(value, where, name, 0, _MAX_CLASSES) if value else -1
                for value, where in zip(values, self.where, strict=True)
            ]
            # A table of a part of a data set may lack a class: numbers must not move up.
            first = int(min(map(int, used)) == 1)
            labels = np.array(numbers, np.int64)
            return np.where(labels < 0, -1, labels - first), tuple(map(str, range(first, max(numbers) + 1)))
        names = class_order(used)
        return self._numbered(values, names), tuple(names)

    def people(self, name: str) -> np.ndarray:
        """(N,) int64 identities: numbers as they are, names by their place in the sorted list, -1 for no value."""
        values = self.column(name)
        used = {value for value in values if value}
        if used and all(_NUMBER.fullmatch(value) and len(value) < _DIGITS for value in used):
            return np.array([int(value or -1) for value in values], np.int64)
        return self._numbered(values, class_order(used))

    def _numbered(self, values: Sequence[str], names: Sequence[str]) -> np.ndarray:
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers.get(value, -1) for value in values], np.int64)

    def box_columns(self) -> tuple[str, ...]:
        """Names of the columns of a box: left, top, right, bottom (or xmin, ...), or x, y, w, h; or none."""
        return next((names for names in _BOXES if all(name in self.cells for name in names)), ())

    def boxes(self) -> np.ndarray | None:
        """(N, 4) left, top, right, bottom; None if the table has no boxes."""
        names = self.box_columns()
        if not names:
            return None
        rows = [
            [real(cell, where, name) for cell, name in zip(cells, names, strict=True)]
            for where, *cells in zip(self.where, *(self.column(name) for name in names), strict=True)
        ]
        boxes = np.array([box_of_size(*row) if names[-1] == "h" else row for row in rows])
        inverted = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
        for row in np.flatnonzero(inverted)[:1]:
            raise DataError(
                f"{self.where[row]}: the box is {boxes[row].tolist()}, which is not left, top, right, bottom"
            )
        return boxes
