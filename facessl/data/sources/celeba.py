"""CelebA: 202599 aligned faces with 40 attributes, identities and five points."""

from __future__ import annotations

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
_ATTRIBUTES = 40
_BIT = {"-1": 0, "1": 1}


class CelebA(Source):
    """CelebA (Liu et al., ICCV 2015), the aligned 178 x 218 images.

    Licence: non-commercial research only; see the data set's own terms. Photographs of real people.
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
        """
        Args:
            path: folder of the layout above.
            group: attribute (as "Male") that divides the images into two groups.
        """
        lists.choice("celeba", "split", split, SIZES)
        root = lists.root_folder(path, LAYOUT)
        images = lists.find(root, ["img_align_celeba", "Img/img_align_celeba"], LAYOUT)
        images = lists.find_any(images, ["img_align_celeba"]) or images  # Kaggle's copy has the folder twice
        file = lists.find(root, _names("list_eval_partition", "Eval"), LAYOUT)
        names = _partition(file, list(SIZES).index(split))
        lists.counted(file, f"{split} images", len(names), SIZES[split], strict)
        attributes = lists.find(root, _names("list_attr_celeba", "Anno"), LAYOUT)
        identities = lists.find_any(root, _names("identity_CelebA", "Anno"))
        points = lists.find_any(root, _names("list_landmarks_align_celeba", "Anno"))
        self.attribute_names, values = _attributes(attributes, names)
        columns: dict[str, Any] = {"attributes": values}
        if identities is not None:
            columns["identity"] = _identities(identities, names)
        if points is not None:
            columns["five_points"] = _points(points, names)
        if group is not None:
            if group not in self.attribute_names:
                raise UnknownName("attribute of celeba", group, self.attribute_names)
            columns["group"] = values[:, self.attribute_names.index(group)]
            self.group_names = (f"not {group}", group)
        super().__init__(names, columns, folder=images, file=file, hint=LAYOUT)


def _names(stem: str, folder: str) -> list[str]:
    """Where a list may lie: the official text file first, then Kaggle's CSV file."""
    return [f"{place}{stem}{ending}" for ending in (".txt", ".csv") for place in ("", f"{folder}/")]


def _rows(file: Path, width: int) -> Iterator[tuple[str, list[str]]]:
    """Rows of `width` values of a text or CSV file, the names of the columns first where the file has them.

    A text file of more than two values per row begins with the number of images and the names of all columns but the
    first; one of two values has no header. DataError where a row has another width or the number is wrong.
    """
    is_csv = file.suffix == ".csv"
    rows = (
        lists.csv_rows(file, LAYOUT) if is_csv else ((where, line.split()) for where, line in lists.lines(file, LAYOUT))
    )
    count = None
    if not is_csv and width > 2:
        where, cells = next(rows, (str(file), [""]))
        count = lists.whole(cells[0], where, "number of images", 1, 10_000_000)
    if is_csv or width > 2:
        where, header = next(rows, (str(file), []))
        header = header if is_csv else ["image_id", *header]
        lists.check_width(where, len(header), width)
        yield where, header
    found = 0
    for where, cells in rows:
        lists.check_width(where, len(cells), width)
        found += 1
        yield where, cells
    if count not in (None, found):
        raise DataError(f"{file} has {found} rows where its first line says {count} ({LAYOUT})")


def _partition(file: Path, number: int) -> list[str]:
    """Names of the images in one part."""
    rows = _rows(file, 2)
    if file.suffix == ".csv":
        next(rows, None)
    return [name for where, (name, part) in rows if lists.whole(part, where, "partition", 0, 2) == number]


def _picked(
    rows: Iterator[tuple[str, list[str]]], file: Path, names: list[str], value: Callable[[str, list[str]], Any]
) -> list[Any]:
    """What `value(where, cells)` makes of the rows of `names`, in their order."""
    place = {name: at for at, name in enumerate(names)}
    values: list[Any] = [None] * len(names)
    for where, cells in rows:
        at = place.get(cells[0])
        if at is not None:
            values[at] = value(where, cells[1:])
    lacking = next((name for name, found in zip(names, values, strict=True) if found is None), None)
    if lacking is not None:
        raise DataError(f"{file} has no row for {lacking}, which the partition lists ({LAYOUT})")
    return values


def _attributes(file: Path, names: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the attributes, and (N, 40) uint8 values of the images `names`."""
    rows = _rows(file, 1 + _ATTRIBUTES)
    header = tuple(next(rows)[1][1:])

    def bits(where: str, cells: list[str]) -> list[int]:
        try:
            return [_BIT[cell] for cell in cells]
        except KeyError as odd:
            name = header[cells.index(odd.args[0])]
            raise DataError(f"{where}: {name} is {odd.args[0]!r}, not -1 or 1") from None

    return header, np.array(_picked(rows, file, names, bits), np.uint8)


def _identities(file: Path, names: list[str]) -> list[int]:
    """Person of each of the images `names`."""
    rows = _rows(file, 2)
    if file.suffix == ".csv":
        next(rows, None)
    return _picked(rows, file, names, lambda where, cells: lists.whole(cells[0], where, "identity", 0, 10_000_000))


def _points(file: Path, names: list[str]) -> np.ndarray:
    """(N, 5, 2) float32 points of the images `names`; CelebA's "left" eye is the one on the image's left."""
    rows = _rows(file, 11)
    next(rows)
    values = _picked(rows, file, names, lambda where, cells: [lists.real(cell, where, "coordinate") for cell in cells])
    return np.array(values, np.float32).reshape(-1, 5, 2)
