"""Tables of images with columns of classes, attributes, identities, groups and boxes."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from facessl.core.errors import ConfigError, DataError, listed
from facessl.data.source import Source
from facessl.data.sources._lists import whole
from facessl.data.sources._tables import ImageTable

LAYOUT = "labels-csv expects a CSV file with a header and a column of image paths"


class LabelsCsv(Source):
    """A CSV (or .tsv) table with one image per row.

    License: the table is yours.
    Expected: a header, a column of paths, and the columns that the options name. Classes and groups are names, or
    numbers from 0 or 1 that stand for themselves; identities likewise; attributes are 0 or 1. Names are numbered over
    the whole table, so that all splits agree. A box is read where there are columns left, top, right, bottom or
    x, y, w, h.
    Asserted: every row is complete, numbers are numbers, the first image exists.
    """

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
                that is far above the next is refused, as a typing error would make many empty classes.
            attributes: columns, separated by commas or semicolons; "*" takes every column that is 0 or 1 in all rows.
        """
        table = ImageTable(Path(path).expanduser(), LAYOUT)
        rows = table.rows(split, "labels-csv")
        names = table.paths(rows, image)
        columns: dict[str, Any] = {}
        if label is not None:
            columns["label"], self.label_names = _labels(table, label, classes)
        elif classes is not None:
            raise ConfigError(f"labels-csv?classes={classes} has no column to count: add label=COLUMN")
        if group is not None:
            table.texts(group)
            columns["group"], self.group_names = table.classes(group)
        if identity is not None:
            table.texts(identity)
            columns["identity"] = table.people(identity)
        if attributes is not None:
            reserved = {table.path_column(image), identity, *table.box_columns()}
            self.attribute_names = _attributes(table, attributes, reserved)
            columns["attributes"] = np.stack([_bits(table, name) for name in self.attribute_names], 1)
        if (boxes := table.boxes()) is not None:
            columns["box"] = boxes
        self.splits = table.splits
        columns = {field: values[rows] for field, values in columns.items()}
        super().__init__(columns=columns, **table.source_args(names, root))


def _labels(table: ImageTable, column: str, count: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) labels and names of the classes: `count` of them, or as many as the values say if that is plausible."""
    table.texts(column)
    numbers, names = table.classes(column)
    used = np.unique(numbers)
    top = int(used[-1])
    where = table.where[int(numbers.argmax())]
    first = int(names[0] == "1")
    if names != tuple(map(str, range(first, first + top + 1))):
        if count not in (None, len(names)):
            raise ConfigError(
                f"{table.file} has {len(names)} classes in the column {column}, not classes={count}: {listed(names)}"
            )
    elif count is not None:
        if first and count > top + 1:  # they count from 0, and no row has that class
            numbers, top, first = numbers + 1, top + 1, 0
        whole(str(top + first), where, column, first, first + count - 1)
        names = tuple(map(str, range(first, first + count)))
    elif len(used) > 1 and top > 2 * (used[-2] + 2):
        raise DataError(
            f"{where}: {column} is {names[-1]}, and the next lower class in the table is {names[used[-2]]}: correct "
            f"the row, or say that there are so many classes with classes={top + 1}"
        )
    return numbers, names


def _attributes(table: ImageTable, option: str, reserved: set[str | None]) -> tuple[str, ...]:
    """Columns that the option `attributes` names; "*" are all of zeros and ones except `reserved`."""
    if option == "*":
        free = {name: table.column(name) for name in table.cells if name not in reserved and name.lower() != "split"}
        names = tuple(name for name, cells in free.items() if set(cells) <= {"0", "1"})
        if not names:
            raise ConfigError(f"{table.file} has no column of zeros and ones for attributes=*")
        return names
    names = tuple(name.strip() for name in re.split("[,;]", option) if name.strip())
    if not names:
        raise ConfigError(f"labels-csv?attributes={option} cannot be used: name columns, or * for all of 0 and 1")
    return names


def _bits(table: ImageTable, name: str) -> np.ndarray:
    values = table.column(name)
    odd = next((row for row, value in enumerate(values) if value not in ("0", "1")), None)
    if odd is not None:
        raise DataError(f"{table.where[odd]}: {name} is {values[odd]!r}, not 0 or 1")
    return np.array(values, np.uint8)
