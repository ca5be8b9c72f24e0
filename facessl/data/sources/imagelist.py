"""Images named by a list: a CSV file with optional columns, or a text file with one path per line."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from facessl.core.errors import DataError, DataWarning
from facessl.data.decode import EXTENSIONS
from facessl.data.source import Source
from facessl.data.sources._lists import lines
from facessl.data.sources._tables import ImageTable

LAYOUT = "imagelist expects a CSV file with a header and a column of image paths, or a text file with one path per line"
#: Names of columns in any case, first match first.
_LABEL = ("label", "class", "expression")
_TEXT = ("text", "caption")
_IDENTITY = ("identity", "person", "subject")
_ENDING = "|".join(re.escape(extension) for extension in EXTENSIONS)
_LINE = re.compile(rf"(?P<image>.*?(?:{_ENDING}))(?:[\s,;]+(?P<label>\S+))?\s*", re.IGNORECASE)


class ImageList(Source):
    """Images in the order of a list.

    A `.csv` or `.tsv` file has a header with a column of paths and, where wanted, columns `label` (class names, or
    numbers from 0 or 1), `text`, `identity` (names or numbers), `split` and landmarks `x0, y0, x1, y1, ...` in pixels.
    Any other file has one path per line, and a label behind it where the path ends like an image file.

    Attributes:
        provides: the fields whose column is filled in every row, or in any of classes and identities (-1: unknown).
        label_names: names of the classes of the whole list; numbers stand for themselves.
    """

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
            root: folder that the paths start from; None: the list's own, or `images` beside it if the first path is
                there.
            image: column of paths; "auto" looks for the usual names.
            label: column to take; "auto" looks for the usual names.
            split: take only rows with this value in the column `split`; None: all.
        """
        file = Path(path).expanduser()
        is_table = file.suffix.lower() in (".csv", ".tsv")
        table = ImageTable(file, LAYOUT, None if is_table else _line_rows(file))
        rows = table.rows(split, "imagelist")
        names = table.paths(rows, image)
        self.splits = table.splits
        columns: dict[str, Any] = {}

        def empty(column: str) -> np.ndarray:
            values = table.column(column)
            return np.array([row for row in rows if not values[row]], np.int64)

        classes = table.find(_LABEL) if label == "auto" else label
        if classes is not None and len(empty(classes)) < len(rows):
            numbers, self.label_names = table.classes(classes)
            columns["label"] = numbers[rows]
        if (person := table.find(_IDENTITY)) and len(empty(person)) < len(rows):
            columns["identity"] = table.people(person)[rows]
        if (text := table.find(_TEXT)) and _complete(table, text, empty(text), len(rows)):
            columns["text"] = [table.column(text)[row] for row in rows]
        points = table.points[rows]
        missing = np.isnan(points).any((1, 2))
        if (missing & ~np.isnan(points).all((1, 2))).any():
            raise DataError(f"{file}: the rows have different numbers of landmarks")
        if points.shape[1] and _complete(table, "landmarks", rows[missing], len(rows)):
            columns["landmarks"] = points
        arguments = table.source_args(names, root)
        if not is_table:
            arguments["hint"] = f"the file is read as a list of image paths, one per line; {arguments['hint']}"
        super().__init__(columns=columns, **arguments)


def _complete(table: ImageTable, what: str, empty: np.ndarray, count: int) -> bool:
    """Whether none of `count` rows lacks a value; warns if only some do."""
    if 0 < len(empty) < count:
        warnings.warn(
            f"{table.where[empty[0]]}: no value of {what} ({len(empty)} of {count} rows have none), which is therefore "
            "not used: fill it in, or leave the rows out",
            DataWarning,
            stacklevel=3,
        )
    return not len(empty)


def _line_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    """A header, then path and label ("" if there is none) of every line."""
    yield "", ["image", "label"]
    for where, line in lines(file, LAYOUT):
        match = _LINE.fullmatch(line)
        yield where, [match["image"], match["label"] or ""] if match else [line, ""]
