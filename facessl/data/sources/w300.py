"""300-W: 3148 training and 689 test faces with 68 landmarks, from .pts files or HRNet's tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facessl.data.source import Source
from facessl.data.sources import _lists as lists
from facessl.data.sources._annotations import hrnet_table, pts_faces, square_around

POINTS = 68
LAYOUT = lists.expected(
    "w300",
    "face_landmarks_300w_{train,valid_common,valid_challenge}.csv (HRNet)"
    " or image.pts beside image.jpg or .png in afw, helen/trainset, helen/testset, lfpw/trainset, lfpw/testset, ibug",
    "the images in these folders, also below images/",
)
#: Folders of the .pts files of each part.
FOLDERS = {
    "train": ("afw", "helen/trainset", "lfpw/trainset"),
    "common": ("helen/testset", "lfpw/testset"),
    "challenge": ("ibug",),
}
#: Endings of the names of HRNet's tables of each part; of the test set in one file, the folder
#: decides between common and challenge.
TABLES = {
    "train": ("train",),
    "common": ("valid_common", "test_common"),
    "challenge": ("valid_challenge", "test_challenge"),
}
TOGETHER = ("valid", "test")
SPLITS = {"train": "train", "test": "full"}
SIZES = {"train": 3148, "full": 689, "common": 554, "challenge": 135}
# One file of the release has a blank in its name, which HRNet's tables leave out.
_BLANK = ("ibug/image_092_01.jpg", "ibug/image_092 _01.jpg")

_Part = tuple[list[str], np.ndarray, np.ndarray]


class W300(Source):
    """300 Faces in-the-Wild (Sagonas et al., ICCV-W 2013), the usual split of its re-annotated sets.

    License: non-commercial research; the images belong to AFW, Helen, LFPW and iBUG, each with terms of its own.
    Photographs of real people.
    Expected: HRNet's tables, or .pts files beside their images: `afw`, `helen/trainset` and `lfpw/trainset` are train,
    `helen/testset` and `lfpw/testset` common, `ibug` challenge; full is common, then challenge. Asserted: 3148 / 554 /
    135 faces. There is no validation part.

    Coordinates: .pts files count from 1 (MATLAB), so 1 is subtracted. HRNet's tables lie above the .pts by another
    pixel: FaRL takes 2.0 from every coordinate and center, and works with pixel centers at whole numbers as we do, so
    2.0 is subtracted here, too. HRNet itself subtracts nothing.

    `box`: HRNet's square of side 200 `scale`, or, of .pts files, the square around the landmarks' bounding box, the way
    that scale was made.

    Attributes:
        subsets: of split full: common and challenge.
    """

    splits = SPLITS
    layout = "ibug68"

    def __init__(self, path: str | Path, *, split: str = "train", format: str = "auto", strict: bool = True) -> None:
        """`split` is train, full, common or challenge; `format` pts, csv, or auto: the tables if they are there."""
        lists.choice("w300", "split", split, SIZES)
        lists.choice("w300", "format", format, ("auto", "pts", "csv"))
        root = lists.root_folder(path, LAYOUT)
        base = root / "images" if (root / "images").is_dir() else root
        if format == "auto":
            endings = [*TABLES["train"], *TABLES["common"], *TOGETHER]
            format = "csv" if lists.find_any(root, _tables(endings)) else "pts"
        parts = ("common", "challenge") if split == "full" else (split,)
        read = []
        for part in parts:
            file, faces = _csv(root, part, base) if format == "csv" else _pts(base, part)
            lists.counted(file, f"{part} faces", len(faces[0]), SIZES[part], strict)
            read.append(faces)
        names = [name for faces in read for name in faces[0]]
        points, boxes = (np.concatenate([faces[i] for faces in read]) for i in (1, 2))
        if split == "full":
            common = len(read[0][0])
            self.subsets = {"common": np.arange(common), "challenge": np.arange(common, len(names))}
        super().__init__(names, {"landmarks": points, "box": boxes}, folder=base, file=file, hint=LAYOUT)


def _tables(endings: Sequence[str]) -> list[str]:
    return [f"face_landmarks_300w_{ending}.csv" for ending in endings]


def _csv(root: Path, part: str, base: Path) -> tuple[Path, _Part]:
    """The table of one part, and its names, landmarks (N, 68, 2) and boxes (N, 4)."""
    table = lists.find_any(root, _tables(TABLES[part]))
    together = None if part == "train" else lists.find_any(root, _tables(TOGETHER))
    file = table or together or lists.find(root, _tables(TABLES[part]), LAYOUT)
    names, points, boxes = hrnet_table(file, POINTS, LAYOUT, shift=2.0)
    if table is None:
        inside = np.array([name.startswith("ibug/") == (part == "challenge") for name in names], bool)
        names, points, boxes = [n for n, yes in zip(names, inside, strict=True) if yes], points[inside], boxes[inside]
    if (base / _BLANK[1]).exists():
        names = [_BLANK[1] if name == _BLANK[0] else name for name in names]
    return file, (names, points, boxes)


def _pts(base: Path, part: str) -> tuple[Path, _Part]:
    """The last folder of one part, and its names, landmarks (N, 68, 2) and boxes (N, 4)."""
    names: list[str] = []
    points = []
    for folder in FOLDERS[part]:
        inside = lists.find(base, [folder], LAYOUT)
        in_folder, marks = pts_faces(inside, LAYOUT, 1, POINTS)
        names += [f"{folder}/{name}" for name in in_folder]
        points.append(marks.reshape(-1, POINTS, 2))
    table = np.concatenate(points)
    return inside, (names, table, square_around(table))
