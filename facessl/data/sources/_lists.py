"""Helpers for readers of data sets: finding files, reading lists, checking values and counts.

Every error is one sentence with the file (and line), its content, and what is expected.
"""

import codecs
import contextlib
import csv
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.files import open_regular
from facessl.data.sources.folder import Folder
from facessl.data.splits import part_folders


def expected(source: str, *parts: str) -> str:
    """End of an error message: the files and folders (`parts`) that the reader `source` looks for."""
    return f"{source} expects in its folder {'; '.join(parts)}"


def root_folder(path: str | Path, layout: str) -> Path:
    """`path` with `~` expanded. DataError if there is no such folder; `layout` is of `expected`."""
    root = Path(path).expanduser()
    if not str(path) or not root.is_dir():
        raise DataError(f"no such folder: {str(path) or '(empty path)'} ({layout})")
    return root


def find(root: Path, names: Sequence[str], layout: str) -> Path:
    """The first of `names` (relative, "." for `root` itself) that exists below `root`. DataError if none does."""
    path = find_any(root, names)
    if path is None:
        raise DataError(f"{root / names[0]} is missing ({layout})")
    return path


def find_any(root: Path, names: Sequence[str]) -> Path | None:
    """As `find`, but None if there is none."""
    return next((root / name for name in names if (root / name).exists()), None)


def part_folder(root: Path, split: str, layout: str) -> Path:
    """The sub-folder of `root` that is called after a part, as `train` or `Training`. DataError if there is none."""
    return part_folders(root).get(split) or find(root, [split], layout)


def choice(source: str, option: str, value: Any, valid: Iterable[Any]) -> None:
    """ConfigError if `value` is not one of `valid`."""
    valid = list(valid)
    if value not in valid:
        shown = ", ".join(map(str, valid))
        raise ConfigError(f"{source}?{option}={value} cannot be used: it must be one of {shown}")


@contextlib.contextmanager
def _text(file: Path, layout: str) -> Iterator[IO[str]]:
    """A text file, of UTF-8, or of UTF-16 where its first bytes say so. DataError if it cannot be read."""
    try:
        with open_regular(file) as raw:
            wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
        with open_regular(file, "r", encoding=encoding, errors=errors, newline="") as text:
            yield text
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror} ({layout})") from None


def lines(file: Path, layout: str) -> Iterator[tuple[str, str]]:
    """Lines of a text file that are not empty, stripped, with their place ("FILE, line N")."""
    with _text(file, layout) as text:
        for number, line in enumerate(text, 1):
            if line := line.strip():
                yield f"{file}, line {number}", line


def text_rows(file: Path, width: int, layout: str, *, skip: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Rows of `width` values that are separated by blanks, with their place, after `skip` lines of a header."""
    for at, (where, line) in enumerate(lines(file, layout)):
        if at < skip:
            continue
        cells = line.split()
        check_width(where, len(cells), width)
        yield where, cells


def check_width(where: str, width: int, expected_width: int) -> None:
    """Raise DataError if a row does not have the expected number of values."""
    if width != expected_width:
        raise DataError(f"{where}: {width} values where {expected_width} are expected")


def csv_rows(file: Path, layout: str, *, strip: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Rows of a CSV file that are not empty, with their place; the first one may be a header.

    Cells are separated by the first of comma, semicolon, tab and bar that its first row has (tab first in a .tsv).
    """
    marks = "\t,;|" if file.suffix.lower() == ".tsv" else ",;\t|"
    try:
        with _text(file, layout) as text:
            first = re.sub('"[^"]*"', "", text.readline())
            text.seek(0)
            mark = next((mark for mark in marks if mark in first), ",")
            reader = csv.reader(text, delimiter=mark)
            for cells in reader:
                if cells:
                    yield f"{file}, line {reader.line_num}", [cell.strip() for cell in cells] if strip else cells
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file: {error}") from None


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


def counted(where: str | Path, what: str, count: int, published: int | Sequence[int], strict: bool) -> None:
    """Raise DataError if a list or folder (`where`) does not have the `published` number, or one of several editions'.

    `what` names the things counted ("training images"). `strict` is the reader's option; False accepts any but 0.
    """
    sizes = [published] if isinstance(published, int) else list(published)
    if count == 0:
        raise DataError(f"{where} has no {what}")
    if strict and count not in sizes:
        expected = " or ".join(map(str, sizes))
        raise DataError(
            f"{where} has {count} {what} where the published set has {expected}: "
            "get the whole set, or use a part of it with strict=false"
        )


def names_by_stem(folder: Path, endings: tuple[str, ...]) -> dict[str, str]:
    """File name by stem of the files of a folder with these endings (in any case), sorted; not macOS's `._` files."""
    names: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        if name.lower().endswith(endings) and not name.startswith("."):
            names.setdefault(os.path.splitext(name)[0], name)
    return names


def class_folders(folder: Path, classes: Mapping[str, int | None], layout: str) -> tuple[list[str], list[int]]:
    """Paths within a folder and labels of the images in its sub-folders, which are called after classes.

    `classes` gives the label by the lower-case name of the sub-folder; None leaves the sub-folder out. DataError if
    there is no image, an image outside sub-folders, or a name not in `classes`.
    """
    source = Folder(folder)
    numbers = source.column("label") if source.label_names else np.array([-1])
    if (numbers < 0).any():
        raise DataError(f"{source.key(int(numbers.argmin()))} lies outside the class folders of {folder} ({layout})")
    odd = next((name for name in source.label_names if name.lower() not in classes), None)
    if odd is not None:
        raise DataError(f"{folder / odd} is not a class: valid are {', '.join(classes)} ({layout})")
    labels = [classes[source.label_names[label].lower()] for label in numbers]
    pairs = [(source.inner_name(i), label) for i, label in enumerate(labels) if label is not None]
    return [name for name, _ in pairs], [label for _, label in pairs]


def box_of_size(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of `width` x `height` pixels; (left, top) is the center of the first."""
    return left - 0.5, top - 0.5, left + width - 0.5, top + height - 0.5
