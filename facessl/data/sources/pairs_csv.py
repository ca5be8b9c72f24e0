"""A person's own verification pairs: two images per row, and whether they show one person."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facessl.core.types import Sample
from facessl.data.sources._lists import Items, csv_header, csv_table, whole

LAYOUT = "pairs-csv expects a CSV file with the columns image_a, image_b, same (0 or 1) and, if wanted, fold"
_MAX_FOLDS = 10_000


class PairsCsv:
    """A CSV (or .tsv) table of pairs; the items are the images that occur in it, once each, by path.

    Licence: the table is yours.
    Expected: the columns `image_a`, `image_b`, `same` (1 or 0), and `fold` (numbers from 0) where thresholds are to be
    chosen on other folds, as LFW's protocol does. Asserted: the columns, the numbers, that the first image exists.

    Attributes:
        pairs: (P, 2) int64 positions; same: (P,) bool; folds: (P,) int64, only with the column.
    """

    provides: frozenset[str] = frozenset()
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    streaming = False

    def __init__(self, path: str | Path, *, root: Path | None = None) -> None:
        """
        Args:
            path: the table.
            root: folder that relative paths start from; None: the table's own.

        Raises:
            DataError: the table or its first image is missing, a column is missing, or a value is not such a number.
        """
        file = Path(path).expanduser()
        columns = ["image_a", "image_b", "same"]
        columns += ["fold"] if "fold" in csv_header(file, LAYOUT) else []
        rows, same, folds = [], [], []
        for where, (first, second, one, *fold) in csv_table(file, columns, LAYOUT):
            rows.append((first, second))
            same.append(whole(one, where, "column same", 0, 1))
            folds += [whole(cell, where, "fold", 0, _MAX_FOLDS) for cell in fold]
        names = sorted({name for row in rows for name in row})
        place = {name: at for at, name in enumerate(names)}
        base = file.parent if root is None else Path(root).expanduser()
        self._items = Items(base, names, {}, file=file, hint="say with root= where paths start")
        self.pairs = np.array([[place[name] for name in row] for row in rows], np.int64)
        self.same = np.array(same, bool)
        if folds:
            self.folds = np.array(folds, np.int64)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes. Raises ImageError where the file cannot be read."""
        return self._items[index]

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        return self._items.key(index)
