"""A person's own table of images: a column each for classes, attributes, identities, groups and boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facessl.core.errors import ConfigError, DataError, listed
from facessl.core.types import Sample
from facessl.data.index import class_order
from facessl.data.sources._lists import (
    Items,
    box_of_size,
    check_column,
    choice,
    csv_header,
    csv_table,
    image_column,
    real,
    whole,
)

LAYOUT = "labels-csv expects a CSV file with a header and a column of image paths"

#: Values of a column `split` that stand for the roles.
ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_BOXES = (("left", "top", "right", "bottom"), ("x", "y", "w", "h"))
_MAX_CLASSES = 100_000


class LabelsCsv:
    """A CSV (or .tsv) table with one image per row.

    Licence: the table is yours.
    Expected: a header, a column of paths, and the columns that the options name. Classes and groups are names, or
    numbers from 0 that stand for themselves; identities likewise; attributes are 0 or 1. Names are numbered over the
    whole table, so that all splits agree. A box is read where the columns left, top, right, bottom or x, y, w, h are.
    Asserted: every row is complete, numbers are numbers, the first image exists.

    Attributes:
        provides: the fields whose column is named, and box.
        splits: role -> value of the column `split`, where there is one.
        label_names, group_names: class names and group names.
        attribute_names: names of the attribute columns.
    """

    streaming = False

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        label: str | None = None,
        classes: int | None = None,
        attributes: str | None = None,
        identity: str | None = None,
        group: str | None = None,
        image: str = "auto",
        root: Path | None = None,
    ) -> None:
        """
        Args:
            path: the table.
            split: take only rows with this value in the column `split`; None takes all.
            label, identity, group: columns with these values.
            classes: how many classes `label` has. None: as many as there are names, or the largest number and 1; one
                that is far above the next is refused, as a slip of the pen would make many empty classes.
            attributes: columns, separated by commas or semicolons; "*" takes every column that is 0 or 1 in all rows.
            image: column of paths; "auto" looks for the usual names.
            root: folder that relative paths start from; None: the table's own.

        Raises:
            UnknownName: a column that the table does not have.
            ConfigError: a split that does not occur, another number of class names than `classes`, or no attribute
                column.
            DataError: the table or its first image is missing, or a row is not as expected.
        """
        file = Path(path).expanduser()
        table = _Table(file)
        paths = image_column(file, table.header, image)
        box = next((names for names in _BOXES if all(name in table.header for name in names)), ())
        columns: dict[str, Any] = {}
        self.label_names: tuple[str, ...] = ()
        self.attribute_names: tuple[str, ...] = ()
        if label is not None:
            columns["label"], self.label_names = table.labels(label, classes)
        elif classes is not None:
            raise ConfigError(f"labels-csv?classes={classes} has no column to count: add label=COLUMN")
        if group is not None:
            columns["group"], self.group_names = table.classes(group)
        if identity is not None:
            columns["identity"] = table.people(identity)
        if attributes is not None:
            self.attribute_names = table.attribute_names(attributes, {paths, "split", identity, *box})
            columns["attributes"] = table.bits(self.attribute_names)
        if box:
            columns["box"] = table.boxes(box)
        self.splits = table.splits()
        kept = table.positions(split)
        names = table.texts(paths)
        base = file.parent if root is None else Path(root).expanduser()
        self._items = Items(
            base,
            [names[at] for at in kept],
            {field: np.asarray(values)[kept] for field, values in columns.items()},
            file=file,
            hint="say with root= where paths start",
        )
        self.provides = self._items.provides

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes. Raises ImageError where the file cannot be read."""
        return self._items[index]

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        return self._items.key(index)

    def column(self, field: str) -> np.ndarray:
        """The values of a provided field, in the order of the images; none is read."""
        return self._items.column(field)


class _Table:
    """All cells of the table by column, and what they mean."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.header = csv_header(file, LAYOUT)
        self._wheres: list[str] = []
        rows = []
        for where, cells in csv_table(file, self.header, LAYOUT):
            self._wheres.append(where)
            rows.append(cells)
        if not rows:
            raise DataError(f"{file} has no row below its header")
        self._cells = dict(zip(self.header, zip(*rows, strict=True), strict=True))

    def texts(self, column: str) -> Sequence[str]:
        """Values of a column; DataError where one is empty, UnknownName where there is no such column."""
        values = self._cells[check_column(self.file, self.header, column)]
        if "" in values:
            raise DataError(f"{self._wheres[values.index('')]}: no value in the column {column}")
        return values

    def classes(self, column: str) -> tuple[list[int], tuple[str, ...]]:
        """(N,) class numbers and the names: numbers as they are, names by their place in the sorted list."""
        values = self.texts(column)
        if all(re.fullmatch(r"[+-]?\d+", value) for value in values):
            numbers = [whole(value, self._wheres[at], column, 0, _MAX_CLASSES) for at, value in enumerate(values)]
            # A table of a part of a data set may lack a class: numbers must not move up.
            return numbers, tuple(map(str, range(max(numbers) + 1)))
        names = class_order(values)
        place = {name: at for at, name in enumerate(names)}
        return [place[value] for value in values], tuple(names)

    def labels(self, column: str, count: int | None) -> tuple[list[int], tuple[str, ...]]:
        """As `classes`, of the column of labels: `count` classes, or as many as the values say if that is plausible."""
        numbers, names = self.classes(column)
        used = sorted(set(numbers))
        top = used[-1]
        where = self._wheres[numbers.index(top)]
        if names != tuple(map(str, range(top + 1))):
            if count not in (None, len(names)):
                raise ConfigError(
                    f"{self.file} has {len(names)} classes in the column {column}, not classes={count}: {listed(names)}"
                )
        elif count is not None:
            whole(str(top), where, column, 0, count - 1)
            return numbers, tuple(map(str, range(count)))
        elif len(used) > 1 and top > 2 * (used[-2] + 2):
            raise DataError(
                f"{where}: {column} is {top}, and the next lower class in the table is {used[-2]}: correct the row, or "
                f"say that there are so many classes with classes={top + 1}"
            )
        return numbers, names

    def people(self, column: str) -> list[int]:
        """(N,) identities: numbers as they are, names by their place in the sorted list."""
        values = self.texts(column)
        if all(value.isdecimal() for value in values):
            return [int(value) for value in values]
        place = {name: at for at, name in enumerate(class_order(values))}
        return [place[value] for value in values]

    def attribute_names(self, asked: str, reserved: set[str | None]) -> tuple[str, ...]:
        """Columns that the option `attributes` names; "*" are those of zeros and ones but for `reserved`."""
        if asked == "*":
            names = tuple(c for c in self.header if c not in reserved and set(self._cells[c]) <= {"0", "1"})
            if not names:
                raise ConfigError(f"{self.file} has no column of zeros and ones for attributes=*")
            return names
        names = tuple(name.strip() for name in re.split("[,;]", asked) if name.strip())
        if not names:
            raise ConfigError(f"labels-csv?attributes={asked} cannot be used: name columns, or * for all of 0 and 1")
        return tuple(check_column(self.file, self.header, name) for name in names)

    def bits(self, names: Sequence[str]) -> np.ndarray:
        """(N, A) uint8 attributes."""
        columns = []
        for name in names:
            odd = next((at for at, value in enumerate(self._cells[name]) if value not in ("0", "1")), None)
            if odd is not None:
                raise DataError(f"{self._wheres[odd]}: {name} is {self._cells[name][odd]!r}, not 0 or 1")
            columns.append([value == "1" for value in self._cells[name]])
        return np.array(columns, np.uint8).T

    def boxes(self, names: Sequence[str]) -> list[tuple[float, ...]]:
        """(N, 4) left, top, right, bottom."""
        rows = [
            tuple(real(cell, where, name) for cell, name in zip(cells, names, strict=True))
            for where, *cells in zip(self._wheres, *(self._cells[name] for name in names), strict=True)
        ]
        return [box_of_size(*row) for row in rows] if names == _BOXES[1] else rows

    def splits(self) -> dict[str, str]:
        """Role -> the value of the column `split` that stands for it."""
        values = set(self._cells.get("split", ()))
        found = {role: next((v for v in sorted(values) if v.lower() in words), None) for role, words in ROLES.items()}
        return {role: value for role, value in found.items() if value is not None}

    def positions(self, split: str | None) -> list[int]:
        """Rows with this value in the column `split`; all for None."""
        if split is None:
            return list(range(len(self._wheres)))
        values = self._cells[check_column(self.file, self.header, "split")]
        choice("labels-csv", "split", split, sorted(set(values)))
        return [at for at, value in enumerate(values) if value == split]
