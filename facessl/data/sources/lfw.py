"""LFW: Labeled Faces in the Wild as verification pairs in ten folds."""

from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.data.source import Source
from facessl.data.sources._lists import check_width, counted, expected, find, lines, root_folder, whole

FOLDERS = ("lfw", "lfw_funneled", "lfw-funneled", "lfw-deepfunneled", "lfw_deepfunneled", "lfwa")
LAYOUT = expected(
    "lfw",
    "pairs.txt (first line '10<tab>300')",
    "lfw/Name/Name_0001.jpg (or lfw_funneled, lfw-deepfunneled, or the persons' folders themselves)",
)
FOLDS, PAIRS = 10, 300


class LFW(Source):
    """Labeled Faces in the Wild (Huang et al., 2007), view 2: the images that occur in `pairs.txt`, once each.

    License: for research; see the data set's own terms. Photographs of real people.
    Expected: `pairs.txt` (also beside the folder of images) and `lfw/Name/Name_0001.jpg`, original or (deep-)funneled.
    The first line has the number of folds and of pairs; then each fold has that many pairs of one person
    (`Name 1 4`) and as many of two (`Name 1 Other 2`). Asserted: this form, and 10 folds of 300 + 300 pairs.
    """

    def __init__(self, path: str | Path, *, strict: bool = True) -> None:
        root = root_folder(path, LAYOUT)
        file = find(root, ["pairs.txt", "../pairs.txt"], LAYOUT)
        images = find(root, [*(f"{name}/{name}" for name in FOLDERS), *FOLDERS, "."], LAYOUT)
        rows, self.same, self.folds = _pairs(file, strict)
        people = sorted({name for row in rows for name, _ in row})
        faces = sorted({face for row in rows for face in row})
        place = {face: i for i, face in enumerate(faces)}
        person = {name: i for i, name in enumerate(people)}
        self.pairs = np.array([[place[face] for face in row] for row in rows], np.int64)
        names = [f"{name}/{name}_{number:04d}.jpg" for name, number in faces]
        columns = {"identity": [person[name] for name, _ in faces]}
        super().__init__(names, columns, folder=images, file=file, hint=LAYOUT)


_Face = tuple[str, int]


def _pairs(file: Path, strict: bool) -> tuple[list[tuple[_Face, _Face]], np.ndarray, np.ndarray]:
    """The P pairs of faces (name, number), (P,) bool whether they are one person, (P,) int64 folds."""
    rows = lines(file, LAYOUT)
    where, first = next(rows, (str(file), ""))
    header = first.split()
    check_width(where, len(header), 2)
    folds, each = (whole(cell, where, what, 1, 100_000) for cell, what in zip(header, ("folds", "pairs"), strict=True))
    counted(file, "folds", folds, FOLDS, strict)
    counted(file, "pairs of one person in a fold", each, PAIRS, strict)
    total = 2 * folds * each
    same = np.tile(np.arange(2 * each) < each, folds)
    pairs: list[tuple[_Face, _Face]] = []
    count = 0
    for count, (where, line) in enumerate(rows, 1):
        if count > total:
            continue
        cells = line.split()
        check_width(where, len(cells), 3 if same[count - 1] else 4)
        other = cells[2] if len(cells) == 4 else cells[0]
        pairs.append((_face(where, cells[0], cells[1]), _face(where, other, cells[-1])))
    if count != total:
        raise DataError(f"{file} has {count} pairs where its first line says 2 x {folds} x {each} ({LAYOUT})")
    return pairs, same, np.repeat(np.arange(folds, dtype=np.int64), 2 * each)


def _face(where: str, name: str, number: str) -> _Face:
    return name, whole(number, where, "number of the image", 1, 9999)
