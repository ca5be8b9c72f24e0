"""CelebA: 202599 aligned faces with 40 attributes, identities and five points."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from facessl.core.errors import DataError, UnknownName
from facessl.data.source import TRAIN_VAL_TEST, Source
from facessl.data.sources import _lists as lists

LAYOUT = lists.expected(
    "celeba",
    "img_align_celeba/000001.jpg",
    "list_attr_celeba.txt and list_eval_partition.txt (or .csv; also in Anno/ and Eval/)",
    "if wanted identity_CelebA.txt and list_landmarks_align_celeba.txt",
)

SIZES = {"train": 162770, "val": 19867, "test": 19962}


class CelebA(Source):
    """CelebA (Liu et al., ICCV 2015), the aligned 178 x 218 images.

    License: non-commercial research only; see the data set's own terms. Photographs of real people.
    Expected: `img_align_celeba/000001.jpg`, `list_attr_celeba.txt` (count, 40 names, then rows of -1 and 1),
    `list_eval_partition.txt` (0 train, 1 val, 2 test), and if they are there `identity_CelebA.txt` and
    `list_landmarks_align_celeba.txt`; in one folder or in the official `Img/`, `Anno/`, `Eval/`. The CSV files of
    Kaggle's copy are read likewise.
    Asserted: 40 attributes, every image in all lists, counts 162770 / 19867 / 19962.

    Attributes:
        attribute_names: the list's own, in its order; -1 is 0.
    """

    splits = TRAIN_VAL_TEST

    def __init__(
        self, path: str | Path, *, split: str = "train", group: str | None = None, strict: bool = True
    ) -> None:
        """`group` is an attribute (as "Male") that divides the images into two groups."""
        lists.choice("celeba", "split", split, SIZES)
        root = lists.root_folder(path, LAYOUT)
        images = lists.find(root, ["img_align_celeba", "Img/img_align_celeba"], LAYOUT)
        images = lists.find_any(images, ["img_align_celeba"]) or images  # Kaggle's copy has the folder twice
        file = lists.find(root, _names("list_eval_partition", "Eval"), LAYOUT)
        part = list(SIZES).index(split)
        _, rows = _table(file, 2)
        names = [name for where, (name, cell) in rows if lists.whole(cell, where, "partition", 0, 2) == part]
        lists.counted(file, f"{split} images", len(names), SIZES[split], strict)
        header, bits = _values(lists.find(root, _names("list_attr_celeba", "Anno"), LAYOUT), 40, names, _bit)
        self.attribute_names, values = tuple(header), np.array(bits, np.uint8)
        columns: dict[str, Any] = {"attributes": values}
        identities = lists.find_any(root, _names("identity_CelebA", "Anno"))
        if identities is not None:
            person = functools.partial(lists.whole, low=0, high=10_000_000)
            columns["identity"] = [cells[0] for cells in _values(identities, 1, names, person)[1]]
        points = lists.find_any(root, _names("list_landmarks_align_celeba", "Anno"))
        if points is not None:  # CelebA's "left" eye is the one on the image's left
            columns["five_points"] = np.array(_values(points, 10, names, lists.real)[1], np.float32).reshape(-1, 5, 2)
        if group is not None:
            if group not in self.attribute_names:
                raise UnknownName("attribute of celeba", group, self.attribute_names)
            columns["group"] = values[:, self.attribute_names.index(group)]
            self.group_names = (f"not {group}", group)
        super().__init__(names, columns, folder=images, file=file, hint=LAYOUT)


def _names(stem: str, folder: str) -> list[str]:
    """Possible paths of a list: the official text file first, then Kaggle's CSV file."""
    return [f"{place}{stem}{ending}" for ending in (".txt", ".csv") for place in ("", f"{folder}/")]


def _bit(cell: str, where: str, column: str) -> int:
    if cell not in ("-1", "1"):
        raise DataError(f"{where}: {column} is {cell!r}, not -1 or 1")
    return int(cell == "1")


def _table(file: Path, width: int) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """Names of the columns but the first (none in a text file of two), and place and `width` cells of every row.

    A text file of more columns begins with the number of images and the names. DataError if a number is wrong.
    """
    is_csv = file.suffix == ".csv"
    words = ((where, line.split()) for where, line in lists.lines(file, LAYOUT))
    rows = lists.csv_rows(file, LAYOUT) if is_csv else words
    count = None
    header: list[str] = []
    if not is_csv and width > 2:
        where, cells = next(rows, (str(file), [""]))
        count = lists.whole(cells[0], where, "number of images", 1, 10_000_000)
    if is_csv or width > 2:
        where, header = next(rows, (str(file), []))
        header = header[1:] if is_csv else header
        lists.check_width(where, len(header) + 1, width)

    def checked() -> Iterator[tuple[str, list[str]]]:
        total = 0
        for where, cells in rows:
            lists.check_width(where, len(cells), width)
            total += 1
            yield where, cells
        if count not in (None, total):
            raise DataError(f"{file} has {total} rows where its first line says {count} ({LAYOUT})")

    return header, checked()


def _values(
    file: Path, width: int, names: list[str], value: Callable[[str, str, str], Any]
) -> tuple[list[str], list[list[Any]]]:
    """Names of `width` columns, and what `value(cell, where, column)` makes of their cells, of each of the images."""
    header, rows = _table(file, 1 + width)
    called = header or ["identity"]
    requested = set(names)
    by_name = {
        name: [value(cell, where, column) for cell, column in zip(cells, called, strict=True)]
        for where, (name, *cells) in rows
        if name in requested
    }
    lacking = next((name for name in names if name not in by_name), None)
    if lacking is not None:
        raise DataError(f"{file} has no row for {lacking}, which the partition lists ({LAYOUT})")
    return header, [by_name[name] for name in names]
