"""Tables of landmarks, one face per row."""

import re
import warnings
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError, DataWarning
from facessl.data.source import Source
from facessl.data.sources._annotations import check_layout, square_around
from facessl.data.sources._lists import expected
from facessl.data.sources._tables import ImageTable

LAYOUT = expected("landmarks-csv", "a .csv or .tsv table", "columns image, x0, y0, x1, y1, ...")
#: Interquartile ranges from the median beyond which a landmark is not part of its face; faces reach about 2.
_STRAY = 6


class LandmarksCSV(Source):
    """Faces with landmarks from a table, one face a row.

    Expected: a column of paths (`image`, `path`, `file`, ...), relative to the table or to the folder `images` beside
    it, and `x0, y0, x1, y1, ...` in pixels, the center of the top-left pixel at (0, 0). Further columns are used where
    they are there: `split`; `left, top, right, bottom` (or `xmin, ymin, xmax, ymax`), the box of the face. It is the
    square around the landmarks' bounding box if these are not there. The license is that of your images.

    Attributes:
        layout: the option's; None: landmarks are not named, so nothing may be mirrored.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        layout: str | None = None,
        image: str = "auto",
        root: Path | None = None,
    ) -> None:
        """
        Args:
            path: the table, or a folder with one `landmarks.csv`.
            split: take only rows with this value in the column `split`; None: all.
            layout: order of the landmarks, a name of `facessl.data.layouts` (ibug68, wflw98, aflw19, lapa106).
        """
        file = Path(path).expanduser()
        file = file / "landmarks.csv" if file.is_dir() else file
        table = ImageTable(file, LAYOUT)
        _check_points(table, layout)
        rows = table.rows(split, "landmarks-csv")
        points = table.points[rows]
        for face, point, axis in np.argwhere(np.isnan(points))[:1].tolist():
            raise DataError(f"{table.where[rows[face]]}: the landmark {'xy'[axis]}{point} is missing")
        _warn_of_strays(points, [table.where[row] for row in rows])
        boxes = table.boxes()
        self.splits, self.layout = table.splits, layout
        columns = {"landmarks": points, "box": square_around(points) if boxes is None else boxes[rows]}
        super().__init__(columns=columns, **table.source_args(table.paths(rows, image), root))


def _check_points(table: ImageTable, layout: str | None) -> None:
    """Raise DataError or ConfigError if the columns of landmarks have a gap, are none, or do not fit the layout."""
    count = table.points.shape[1]
    numbered = {name.lower() for name in table.header if re.fullmatch(r"[xy]\d+", name, re.IGNORECASE)}
    top = max((int(name[1:]) for name in numbered), default=-1)
    if top >= count and (count or {"x0", "y0"} & numbered):
        gap = next(f"{axis}{count}" for axis in "xy" if f"{axis}{count}" not in numbered)
        raise DataError(f"{table.file} has no column {gap}, but landmarks up to number {top}: each needs an x and a y")
    if not count:
        raise DataError(f"{table.file} has no columns x0, y0, x1, y1, ...: it has {', '.join(table.header[:12])}")
    check_layout(table.file, count, layout)


def _warn_of_strays(points: np.ndarray, lines: list[str]) -> None:
    """Warn if one of the landmarks (N, K, 2) lies far from all others of its face; with fewer than five, none does.

    `lines` are the faces' places in the table.
    """
    if points.shape[1] < 5:
        return
    low, middle, high = np.quantile(points, (0.25, 0.5, 0.75), axis=1)  # (N, 2)
    side = (high - low).max(1)[:, None, None]
    far = np.argwhere(np.abs(points - middle[:, None]) > _STRAY * side)  # (M, 3)
    if len(far):
        face, point, axis = far[0].tolist()
        several = f"; {len(far)} coordinates in all" if len(far) > 1 else ""
        warnings.warn(
            f"{lines[face]}: {'xy'[axis]}{point} is {points[face, point, axis]:g}, far from the face's other "
            f"landmarks{several}: correct it, or leave the row out",
            DataWarning,
            stacklevel=3,
        )
