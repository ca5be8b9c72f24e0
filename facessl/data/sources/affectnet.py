"""AffectNet: the manually annotated part, 8 or 7 expressions."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from facessl.core.types import Sample
from facessl.data.sources._class_folders import ClassFolders
from facessl.data.sources._lists import (
    Items,
    box_of_size,
    check_width,
    choice,
    counted,
    csv_rows,
    expected,
    find,
    find_any,
    real,
    root_folder,
    whole,
)

LAYOUT = expected(
    "affectnet",
    "Manually_Annotated_file_lists/training.csv and validation.csv, Manually_Annotated_Images/1/abc.jpg",
    "or class folders train/0 ... train/7 and val/0 ... val/7",
)

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)
LISTS = {"train": "training.csv", "val": "validation.csv"}
#: Images of each number of classes, as commonly reported; of validation one image is missing in some editions.
SIZES = {
    (8, "train"): (287651,),
    (7, "train"): (283901,),
    (8, "val"): (4000, 3999),
    (7, "val"): (3500, 3499),
}
_NO_CLASS = 10  # 8 none, 9 uncertain, 10 no face


class AffectNet:
    """AffectNet (Mollahosseini et al., 2017), manually annotated images.

    Licence: non-commercial research, on a professor's request; see the data set's own terms. Photographs of real
    people.
    Expected: `Manually_Annotated_file_lists/{training,validation}.csv` with the nine columns `COLUMNS` (with or without
    a header) and `Manually_Annotated_Images/`; or the copy that FRA makes, class folders `train|val/{label}/`, which
    has no boxes. Labels of `classes` and above (contempt for 7; none, uncertain, no face) are left out.
    The test set of the published results is the validation list: role test opens `split=val`.
    Asserted: labels 0..10, and 287651 / 4000 images of 8 classes, 283901 / 3500 of 7.

    Attributes:
        provides: label; box where the lists are read (`face_x` ... `face_height`).
        label_names: the first `classes` of `CLASSES`.
    """

    attribute_names: tuple[str, ...] = ()
    streaming = False
    splits: ClassVar = {"train": "train", "test": "val"}

    def __init__(self, path: str | Path, *, split: str = "train", classes: int = 8, strict: bool = True) -> None:
        """
        Args:
            path: folder of one of the layouts above.
            split: train or val.
            classes: 8, or 7 without contempt.
            strict: refuse a part of the images.

        Raises:
            ConfigError: no such split or number of classes.
            DataError: a file that is missing or not as expected, or another count.
        """
        choice("affectnet", "split", split, LISTS)
        choice("affectnet", "classes", classes, (8, 7))
        root = root_folder(path, LAYOUT)
        self.label_names = CLASSES[:classes]
        folder = find_any(root, [split])
        self._items: Items | ClassFolders
        if folder is not None:
            labels = {str(label): label if label < classes else None for label in range(_NO_CLASS + 1)}
            self._items, file = ClassFolders(folder, labels, LAYOUT), folder
        else:
            file = find(root, [f"Manually_Annotated_file_lists/{LISTS[split]}", LISTS[split]], LAYOUT)
            self._items = _listed(root, file, classes)
        self.provides = self._items.provides
        counted(file, f"{split} images of {classes} classes", len(self._items), SIZES[classes, split], strict)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes. Raises ImageError where the file cannot be read."""
        return self._items[index]

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        return self._items.key(index)

    def column(self, field: str) -> np.ndarray:
        """The values of a provided field, in the order of the images; none is read."""
        return self._items.column(field)


def _listed(root: Path, file: Path, classes: int) -> Items:
    """The images of a list with one of the first `classes` labels."""
    name = "Manually_Annotated_Images"
    images = find(root, [name, f"Manually_Annotated/{name}"], LAYOUT)
    names, labels, boxes = [], [], []
    for number, (where, cells) in enumerate(csv_rows(file, LAYOUT)):
        check_width(where, len(cells), len(COLUMNS))
        if number == 0 and cells[0] == COLUMNS[0]:
            continue
        label = whole(cells[6], where, "expression", 0, _NO_CLASS)
        if label < classes:
            names.append(cells[0])
            labels.append(label)
            left, top, width, height = (real(cells[at], where, COLUMNS[at]) for at in range(1, 5))
            boxes.append(box_of_size(left, top, width, height))
    return Items(images, names, {"label": labels, "box": boxes}, file=file, hint=LAYOUT)
