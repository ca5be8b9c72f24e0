"""Tables of verification pairs: two images per row, and whether they show one person."""

from pathlib import Path

import numpy as np

from facessl.data.source import Source
from facessl.data.sources._lists import whole
from facessl.data.sources._tables import ImageTable

LAYOUT = "pairs-csv expects a CSV file with the columns image_a, image_b, same (0 or 1) and, if wanted, fold"
_MAX_FOLDS = 10_000


class PairsCsv(Source):
    """A CSV (or .tsv) table of pairs; the items are the images that occur in it, once each, by path.

    License: the table is yours.
    Expected: the columns `image_a`, `image_b`, `same` (1 or 0), and `fold` (numbers from 0) where thresholds are to be
    chosen on other folds, as LFW's protocol does. Asserted: the columns, the numbers, that the first image exists.
    """

    def __init__(self, path: str | Path, *, root: Path | None = None) -> None:
        table = ImageTable(Path(path).expanduser(), LAYOUT)
        table.rows(None, "pairs-csv")
        rows = [table.paths(column=column) for column in ("image_a", "image_b")]
        names, positions = np.unique(np.array(rows, object).T, return_inverse=True)
        super().__init__(**table.source_args(names.tolist(), root))
        self.pairs = positions.reshape(-1, 2).astype(np.int64)
        self.same = _numbers(table, "same", "column same", 1).astype(bool)
        if "fold" in table.header:
            self.folds = _numbers(table, "fold", "fold", _MAX_FOLDS)


def _numbers(table: ImageTable, column: str, what: str, high: int) -> np.ndarray:
    """(P,) int64 from 0 to `high`."""
    cells = zip(table.column(column), table.where, strict=True)
    return np.array([whole(cell, where, what, 0, high) for cell, where in cells], np.int64)
