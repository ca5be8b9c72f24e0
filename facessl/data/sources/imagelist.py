"""Images named by a list: a CSV file with optional columns, or a text file with one path per line."""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data.decode import EXTENSIONS, read_file
from facessl.data.index import Table, class_order, texts

#: Column names (lower case) that `auto` looks for, first match first.
_AUTO = {
    "image": ("image", "path", "file", "filename", "image_path", "img"),
    "label": ("label", "class", "expression"),
    "text": ("text", "caption"),
    "identity": ("identity", "person", "subject"),
}
_MAX_CLASSES = 10_000_000
_ENDING = "|".join(re.escape(extension) for extension in EXTENSIONS)
_LINE = re.compile(rf"(?P<image>.*?(?:{_ENDING}))(?:[\s,;]+(?P<label>\S+))?\s*", re.IGNORECASE)

_Row = dict[str, str]


class ImageList:
    """Images in the order of a list.

    A `.csv` or `.tsv` file has a header with a column of paths and, where wanted, columns `label` (class names,
    or numbers from 0), `text`, `identity` (names or numbers) and landmarks `x0, y0, x1, y1, ...` in pixels. Any
    other file has one path per line, and a label behind it where the path ends like an image file.

    Attributes:
        provides: the fields whose column is filled in every row.
        label_names: names of the classes; numbers stand for themselves.
    """

    attribute_names: tuple[str, ...] = ()
    streaming = False

    def __init__(
        self,
        path: str | Path,
        *,
        root: Path | None = None,
        image: str = "auto",
        label: str = "auto",
        split: str | None = None,
    ) -> None:
        """
        Args:
            path: the list.
            root: folder that relative paths start from; None: the list's own.
            image, label: columns to take; "auto" looks for the usual names.
            split: take only rows with this value in the column `split`.

        Raises:
            DataError: the list or its first image is missing, or it has no usable row or column.
            ConfigError: a column or split that the list does not have.
        """
        self.path = Path(path).expanduser()
        base = self.path.parent if root is None else Path(root).expanduser()
        fields, points, count = self._read({"image": image, "label": label}, split)
        if not count:
            raise DataError(f"no image in the list {self.path}" + (f" with split {split!r}" if split else ""))
        self._base = str(base)
        self._table = Table(texts("image", map(os.fsencode, fields["image"])), {})
        if not os.path.exists(self._file(0)):
            raise DataError(f"{self.path} names {self._file(0)}, which is missing: say with root= where paths start")
        self.label_names: tuple[str, ...] = ()
        self._add_fields(fields, points, count)
        self.provides = frozenset(self._table.columns) & {"label", "text", "identity", "landmarks"}

    def __len__(self) -> int:
        return len(self._table["image.ends"]) - 1

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes. Raises ImageError where the file cannot be read."""
        file = self.key(index)
        sample = Sample(read_file(file), key=file)
        if "label" in self.provides:
            sample.label = int(self._table["label"][index])
        if "identity" in self.provides:
            sample.identity = int(self._table["identity"][index])
        if "text" in self.provides:
            sample.text = self._table.text("text", index).decode()
        if "landmarks" in self.provides:
            sample.landmarks = self._table["landmarks"][index]
        return sample

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._file(index)

    def column(self, field: str) -> np.ndarray:
        """(N,) values of a field that is provided (label, identity), without reading an image."""
        return self._table[field]

    def _file(self, index: int) -> str:
        return os.path.join(self._base, os.fsdecode(self._table.text("image", index)))

    def _read(self, columns: dict[str, str], split: str | None) -> tuple[dict[str, list[str]], array[float], int]:
        """Values by field, the coordinates of all landmarks one after the other, and the number of rows.

        A field that some rows leave empty has fewer values than there are rows.
        """
        fields: dict[str, list[str]] = {field: [] for field in _AUTO}
        points, count, widths = array("f"), 0, set()
        for row in self._rows(columns, split):
            count += 1
            for field, value in row.items():
                if field in fields:
                    fields[field].append(value)
            coordinates = _coordinates(row)
            points.extend(self._number(row, name) for name in coordinates)
            widths.add(len(coordinates))
        if len(widths - {0}) > 1:
            raise DataError(f"{self.path}: the rows have different numbers of landmarks, {sorted(widths)} values")
        return fields, points if len(widths) == 1 else array("f"), count

    def _rows(self, columns: dict[str, str], split: str | None) -> Iterator[_Row]:
        """Rows by field name ("image", "label", ..., "x0", ...), without empty values."""
        try:
            with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                if self.path.suffix.lower() in (".csv", ".tsv"):
                    yield from self._table_rows(file, columns, split)
                else:
                    yield from _line_rows(file)
        except OSError as error:
            raise DataError(f"cannot read the list {self.path}: {error.strerror}") from None
        except csv.Error as error:
            raise DataError(f"{self.path} is not a CSV file: {error}") from None

    def _table_rows(self, file: TextIO, columns: dict[str, str], split: str | None) -> Iterator[_Row]:
        reader = csv.reader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",")
        header = [name.strip() for name in next(reader, [])]
        used = self._columns(header, columns)
        split_at = self._column(header, "split") if split else None
        for cells in reader:
            if not cells or (split_at is not None and cells[split_at : split_at + 1] != [split]):
                continue
            if len(cells) != len(header):
                raise DataError(f"{self.path}, line {reader.line_num}: {len(cells)} values for {len(header)} columns")
            row = {field: cells[at].strip() for field, at in used.items() if cells[at].strip()}
            if "image" not in row:
                raise DataError(f"{self.path}, line {reader.line_num}: no path of an image")
            yield row

    def _columns(self, header: list[str], asked: dict[str, str]) -> dict[str, int]:
        """Position of the column of each field."""
        low = [name.lower() for name in header]
        found = {}
        for field, names in _AUTO.items():
            if asked.get(field, "auto") != "auto":
                found[field] = self._column(header, asked[field])
                continue
            match = next((name for name in names if name in low), None)
            if match is not None:
                found[field] = low.index(match)
        if "image" not in found:
            raise DataError(
                f"{self.path} has no column {', '.join(_AUTO['image'])} (it has {', '.join(header[:12]) or 'none'}): "
                "name the column of paths with image="
            )
        points = {name: at for at, name in enumerate(low) if re.fullmatch(r"[xy]\d+", name)}
        return found | points

    def _column(self, header: list[str], name: str) -> int:
        if name not in header:
            raise ConfigError(f"{self.path} has no column {name!r}: it has {', '.join(header[:40])}")
        return header.index(name)

    def _add_fields(self, fields: dict[str, list[str]], points: array[float], count: int) -> None:
        """Columns of the fields that every row has."""
        columns = self._table.columns
        for field in ("label", "identity"):
            if len(fields[field]) == count:
                columns[field], names = self._numbers(field, fields[field])
                self.label_names = names if field == "label" else self.label_names
        if len(fields["text"]) == count:
            columns.update(texts("text", (text.encode("utf-8", "replace") for text in fields["text"])))
        if points:
            columns["landmarks"] = np.array(points, np.float32).reshape(count, -1, 2)

    def _number(self, row: _Row, name: str) -> float:
        try:
            return float(row[name])
        except ValueError:
            raise DataError(f"{self.path}: {name} of {row['image']} is {row[name]!r}, not a number") from None

    def _numbers(self, field: str, values: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
        """Numbers as they are, names by their place in the sorted list of names."""
        if all(re.fullmatch(r"-?\d+", value) for value in values):
            numbers = np.array([int(value) for value in values], np.int64)
            odd = next((n for n in (numbers.min(), numbers.max()) if not 0 <= n < _MAX_CLASSES), None)
            if field == "label" and odd is not None:
                raise DataError(f"{self.path}: the label {odd} is not a class number: classes count from 0")
            # A list of one part of a data set may lack a class: numbers must not move up.
            return numbers, tuple(map(str, range(numbers.max() + 1))) if field == "label" else ()
        names = class_order(values)
        place = {name: at for at, name in enumerate(names)}
        return np.array([place[value] for value in values], np.int64), tuple(names)


def _coordinates(row: _Row) -> list[str]:
    """Names of the coordinates in a row: x0, y0, x1, y1, ... as far as they go."""
    count = 0
    while f"x{count}" in row and f"y{count}" in row:
        count += 1
    return [axis + str(point) for point in range(count) for axis in "xy"]


def _line_rows(file: TextIO) -> Iterator[_Row]:
    for line in file:
        line = line.strip()
        match = _LINE.fullmatch(line)
        if match:
            yield {field: value for field, value in match.groupdict().items() if value}
        elif line:
            yield {"image": line}
