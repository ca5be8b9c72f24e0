"""What readers of published data sets share: finding files, reading lists, checking values and counts, giving samples.

Every refusal is one sentence with the file (and line), what was found there, and what is expected.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facessl.core.errors import ConfigError, DataError, UnknownName
from facessl.core.types import FIELDS, Sample
from facessl.data.decode import read_file
from facessl.data.index import Table, texts

#: Column names (lower case) that hold paths of images in people's own tables, first match first.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "img", "image_id")
_SCALARS = frozenset({"label", "identity", "group"})


def expected(source: str, *parts: str) -> str:
    """The end of a sentence that says what a reader looks for.

    Args:
        source: name of the reader.
        parts: files and folders below its path, with "or" where there is a choice.
    """
    return f"{source} expects in its folder {'; '.join(parts)}"


def root_folder(path: str | Path, layout: str) -> Path:
    """`path` with `~` expanded. DataError where there is no such folder; `layout` is of `expected`."""
    root = Path(path).expanduser()
    if not str(path) or not root.is_dir():
        raise DataError(f"no such folder: {str(path) or '(empty path)'} ({layout})")
    return root


def find(root: Path, names: Sequence[str], layout: str) -> Path:
    """The first of `names` (relative, "." for `root` itself) that exists below `root`, file or folder.

    DataError where none does: names the first, and `layout` of `expected`.
    """
    found = find_any(root, names)
    if found is None:
        raise DataError(f"{root / names[0]} is missing ({layout})")
    return found


def find_any(root: Path, names: Sequence[str]) -> Path | None:
    """As `find`, None where there is none."""
    return next((root / name for name in names if (root / name).exists()), None)


def choice(source: str, option: str, value: Any, valid: Iterable[Any]) -> None:
    """ConfigError where `value` is not one of `valid`."""
    valid = list(valid)
    if value not in valid:
        shown = ", ".join(map(str, valid))
        raise ConfigError(f"{source}?{option}={value} cannot be used: it must be one of {shown}")


def lines(file: Path, layout: str) -> Iterator[tuple[str, str]]:
    """Lines of a text file that are not empty, stripped, with their place ("FILE, line N").

    DataError where the file cannot be read.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as text:
            for number, line in enumerate(text, 1):
                if line := line.strip():
                    yield f"{file}, line {number}", line
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror} ({layout})") from None


def text_rows(file: Path, width: int, layout: str, *, skip: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Rows of a text file whose values are separated by blanks, with their place.

    Args:
        file: the list.
        width: values in every row.
        layout: of `expected`.
        skip: lines at the beginning (that are not empty) that are no rows.

    Raises:
        DataError: the file cannot be read, or a row has another number of values.
    """
    for at, (where, line) in enumerate(lines(file, layout)):
        if at < skip:
            continue
        cells = line.split()
        check_width(where, len(cells), width)
        yield where, cells


def check_width(where: str, found: int, wanted: int) -> None:
    """DataError where a row has `found` values instead of `wanted`."""
    if found != wanted:
        raise DataError(f"{where}: {found} values where {wanted} are expected")


def csv_rows(file: Path, layout: str) -> Iterator[tuple[str, list[str]]]:
    """Rows of a CSV file (.tsv: tab-separated), cells stripped, with their place; empty rows are left out.

    The header, where the file has one, is the first row. DataError where the file cannot be read.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            reader = csv.reader(text, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            for cells in reader:
                if cells:
                    yield f"{file}, line {reader.line_num}", [cell.strip() for cell in cells]
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror} ({layout})") from None
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file: {error}") from None


def csv_header(file: Path, layout: str) -> list[str]:
    """Column names of a CSV file. DataError where it is empty or cannot be read."""
    for _, cells in csv_rows(file, layout):
        return cells
    raise DataError(f"{file} is empty ({layout})")


def csv_table(file: Path, columns: Sequence[str], layout: str) -> Iterator[tuple[str, list[str]]]:
    """Values of `columns`, in this order, of every row below the header, with the row's place.

    Raises:
        DataError: the file cannot be read or is empty, a column is missing, or a row is longer or shorter than
            the header.
    """
    header = csv_header(file, layout)
    for column in columns:
        if column not in header:
            shown = ", ".join(header[:12]) + (", ..." if len(header) > 12 else "")
            raise DataError(f"{file} has no column {column!r}: it has {shown} ({layout})")
    at = [header.index(column) for column in columns]
    rows = csv_rows(file, layout)
    next(rows)
    for where, cells in rows:
        check_width(where, len(cells), len(header))
        yield where, [cells[i] for i in at]


def image_column(file: Path, header: Sequence[str], asked: str = "auto") -> str:
    """Name of the column of image paths in a person's own table.

    Args:
        file, header: the table and its columns.
        asked: the column; "auto" looks for one of `IMAGE_COLUMNS`, whatever its case.

    Raises:
        UnknownName: no column `asked`.
        DataError: "auto" found none.
    """
    if asked != "auto":
        return check_column(file, header, asked)
    low = [name.lower() for name in header]
    for name in IMAGE_COLUMNS:
        if name in low:
            return header[low.index(name)]
    shown = ", ".join(header[:12]) or "none"
    raise DataError(
        f"{file} has no column {', '.join(IMAGE_COLUMNS[:4])} (it has {shown}): name the column of paths with image="
    )


def check_column(file: Path, header: Sequence[str], name: str) -> str:
    """`name`, if it is a column. UnknownName where the table has no such column."""
    if name not in header:
        raise UnknownName(f"column of {file}", name, header)
    return name


def whole(text: str, where: str, what: str, low: int, high: int) -> int:
    """`text` as a whole number from `low` to `high`. DataError with the place and `what` it is."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise DataError(f"{where}: the {what} is {text!r}, not a whole number from {low} to {high}")
    return value


def real(text: str, where: str, what: str) -> float:
    """`text` as a finite number. DataError with the place and `what` it is."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: the {what} is {text!r}, not a number")
    return value


def counted(where: str | Path, what: str, found: int, published: int | Sequence[int], strict: bool) -> None:
    """DataError where a list that claims to be a published split has another size.

    Args:
        where: the list or folder.
        what: of what there are `found` ("training images").
        found: how many there are.
        published: how many there should be; several where several editions exist.
        strict: the reader's option; False accepts any number but 0.
    """
    sizes = [published] if isinstance(published, int) else list(published)
    if found == 0:
        raise DataError(f"{where} has no {what}")
    if strict and found not in sizes:
        wanted = " or ".join(map(str, sizes))
        raise DataError(
            f"{where} has {found} {what} where the published set has {wanted}: "
            "get the whole set, or use a part of it with strict=false"
        )


def box_of_size(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the face in `width` x `height` pixels of which (left, top) is the first.

    The centre of the first pixel has its whole coordinates, so the outline begins half a pixel before it.
    """
    return left - 0.5, top - 0.5, left + width - 0.5, top + height - 0.5


class Items:
    """Images of a list with the values that the list gives them: what a reader delegates to.

    Values lie in arrays, not in Python objects, which forked workers share without copying.

    Attributes:
        provides: the fields in `columns`.
    """

    def __init__(
        self,
        base: str | Path,
        names: Sequence[str],
        columns: Mapping[str, Any],
        *,
        file: str | Path,
        hint: str,
    ) -> None:
        """
        Args:
            base: folder that relative names start from.
            names: paths of the N images.
            columns: field of `Sample` -> N values: label, identity and group as int64, attributes and visible as uint8,
                the others (landmarks, pose, box, five_points) as float32. A field whose value is None is left out.
            file: where the names were read, for errors.
            hint: what to do where the first image is missing (a layout of `expected`).

        Raises:
            DataError: no image, the first image is missing, or a column has another length (a fault of the list).
        """
        if not names:
            raise DataError(f"no image in {file} ({hint})")
        self._base = str(base)
        arrays = {field: _array(field, values) for field, values in columns.items() if values is not None}
        for field, values in arrays.items():
            if len(values) != len(names):
                raise DataError(f"{file} has {len(names)} images but {len(values)} values for {field}")
        self._table = Table({**arrays, **texts("image", map(os.fsencode, names))}, {})
        self.provides = frozenset(arrays)
        if not os.path.exists(self._file(0)):
            raise DataError(f"{file} names {self._file(0)}, which is missing ({hint})")

    def __len__(self) -> int:
        return len(self._table["image.ends"]) - 1

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes with its values. ImageError where the file cannot be read."""
        file = self.key(index)
        sample = Sample(read_file(file), key=file)
        for field in self.provides:
            value = self._table[field][index]
            setattr(sample, field, int(value) if field in _SCALARS else value)
        return sample

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._file(index)

    def column(self, field: str) -> np.ndarray:
        """The N values of a field that is provided."""
        return self._table[field]

    def _file(self, index: int) -> str:
        return os.path.join(self._base, os.fsdecode(self._table.text("image", index)))


def _array(field: str, values: Any) -> np.ndarray:
    """A column in the type that `Sample` documents for the field."""
    if field not in FIELDS:
        raise ValueError(f"{field} is not a field of Sample")
    if field in _SCALARS:
        return np.asarray(values, np.int64)
    return np.asarray(values, np.uint8 if field in ("attributes", "visible") else np.float32)
