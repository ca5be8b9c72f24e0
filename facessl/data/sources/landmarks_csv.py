"""A person's own landmarks: a table with one face a row."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np

from facessl.core.errors import ConfigError, DataError, DataWarning
from facessl.core.types import Sample
from facessl.data.layouts import layout as landmark_layout
from facessl.data.sources._annotations import numbers, square_around
from facessl.data.sources._lists import Items, check_column, csv_header, csv_table, expected, image_column

LAYOUT = expected("landmarks-csv", "a .csv or .tsv table", "columns image, x0, y0, x1, y1, ...")
#: Columns of a box, first match.
BOXES = (("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"))
#: Interquartile ranges from the median beyond which a landmark is not part of its face; faces reach about 2.
_STRAY = 6
_ROLES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class LandmarksCSV:
    """Faces with landmarks from a table, one face a row.

    Expected: a column of paths (`image`, `path`, `file`, ...), relative to the table or to the folder `images` beside
    it, and `x0, y0, x1, y1, ...` in pixels, the centre of the top-left pixel at (0, 0). Further columns are used where
    they are there: `split`; `left, top, right, bottom` (or `xmin, ymin, xmax, ymax`), the box of the face. It is the
    square around the landmarks' bounding box where these are not there. The licence is that of your images.

    Attributes:
        layout: the option's; None: landmarks are not named, so nothing may be mirrored.
        splits: the values of the column `split` that are roles.
    """

    provides = frozenset({"landmarks", "box"})
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    streaming = False

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        layout: str | None = None,
        where: str | None = None,
        image: str = "auto",
        root: Path | None = None,
    ) -> None:
        """
        Args:
            path: the table, or a folder with one `landmarks.csv`.
            split: take only rows with this value in the column `split`; None: all.
            layout: order of the landmarks, a name of `facessl.data.layouts` (ibug68, wflw98, aflw19, lapa106).
            where: take only rows that fit, as `source:helen` or `source:helen|afw`; several conditions with commas.
            image: column of paths; "auto" looks for the usual names.
            root: folder that relative paths start from.

        Raises:
            ConfigError, UnknownName: a column, split or layout that there is not.
            DataError: no table, no landmarks, a value that is not a number, a missing image.
        """
        file = Path(path).expanduser()
        file = file / "landmarks.csv" if file.is_dir() else file
        header = csv_header(file, LAYOUT)
        count = _points(file, header, layout)
        box = next((names for names in BOXES if set(names) <= set(header)), ())
        filters = _filters(file, header, where)
        if split is not None:
            filters[check_column(file, header, "split")] = {split}
        paths = image_column(file, header, image)
        coordinates = [f"{axis}{i}" for i in range(count) for axis in "xy"]
        extra = [*filters, *(["split"] if "split" in header else [])]
        names, values, lines, found = [], [], [], set()
        for place, cells in csv_table(file, [paths, *extra, *box, *coordinates], LAYOUT):
            if extra and extra[-1] == "split":
                found.add(cells[len(extra)])
            if all(cell in wanted for cell, wanted in zip(cells[1:], filters.values(), strict=False)):
                names.append(cells[0])
                lines.append(place)
                values.append(numbers(cells[1 + len(extra) :], place, "box or landmark"))
        if not names:
            asked = ", ".join(f"{column} {'|'.join(sorted(wanted))}" for column, wanted in filters.items())
            raise ConfigError(f"{file} has no row" + (f" with {asked}" if asked else ""))
        self.splits = _roles(found)
        self.layout = layout
        table = np.array(values)
        points = table[:, len(box) :].reshape(len(names), count, 2)
        _warn_of_strays(points, lines)
        boxes = _checked(file, table[:, :4]) if box else square_around(points)
        columns = {"landmarks": points, "box": boxes}
        hint = "paths start from the table, from images/ beside it, or from root="
        self._items = Items(_base(file, names[0], root), names, columns, file=file, hint=hint)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Face `index` as encoded bytes. Raises ImageError where the file cannot be read."""
        return self._items[index]

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        return self._items.key(index)


def _points(file: Path, header: list[str], layout: str | None) -> int:
    """Number of landmarks, checked against the layout."""
    count = 0
    while f"x{count}" in header and f"y{count}" in header:
        count += 1
    numbered = [int(name[1:]) for name in header if re.fullmatch(r"[xy]\d+", name)]
    if max(numbered, default=-1) >= count and (count or {"x0", "y0"} & set(header)):
        gone = next(f"{axis}{count}" for axis in "xy" if f"{axis}{count}" not in header)
        raise DataError(
            f"{file} has no column {gone}, but landmarks up to number {max(numbered)}: each needs an x and a y"
        )
    if not count:
        shown = ", ".join(header[:12])
        raise DataError(f"{file} has no columns x0, y0, x1, y1, ...: it has {shown}")
    if layout is not None and landmark_layout(layout).points != count:
        raise ConfigError(f"{file} has {count} landmarks, but the layout {layout} has {landmark_layout(layout).points}")
    return count


def _warn_of_strays(points: np.ndarray, lines: list[str]) -> None:
    """DataWarning where a landmark lies far from all others of its face, as a slip of the pen does.

    Args:
        points: (N, K, 2) pixels; fewer than five landmarks tell nothing.
        lines: place of each face in the table.
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


def _filters(file: Path, header: list[str], where: str | None) -> dict[str, set[str]]:
    """Values that are wanted, by column."""
    filters = {}
    for condition in (where or "").split(","):
        column, colon, values = condition.strip().partition(":")
        if colon and values:
            filters[check_column(file, header, column)] = set(values.split("|"))
        elif condition.strip() or where is not None:
            raise ConfigError(
                f"landmarks-csv?where={where} cannot be used: write it as COLUMN:VALUE or COLUMN:VALUE|VALUE"
            )
    return filters


def _roles(values: set[str]) -> dict[str, str]:
    """The values of a column `split` that are roles, by role."""
    return {role: name for role, names in _ROLES.items() for name in names if name in values}


def _checked(file: Path, boxes: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
    if len(bad):
        raise DataError(f"{file} has the box {boxes[bad[0]].tolist()}, which is not left, top, right, bottom")
    return boxes


def _base(file: Path, first: str, root: Path | None) -> Path:
    """The folder that the paths of a table start from."""
    if root is not None:
        return root.expanduser()
    beside = file.parent / "images"
    return beside if not (file.parent / first).exists() and (beside / first).exists() else file.parent
