"""RAF-DB, basic expressions: 15339 web faces in 7 classes, original or aligned."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.sources._lists import Items, choice, counted, expected, find, root_folder, text_rows, whole

# "patition" is the official spelling.
LIST = "EmoLabel/list_patition_label.txt"
LAYOUT = expected(
    "rafdb", f"{LIST} (lines as 'train_00001.jpg 5')", "Image/aligned/train_00001_aligned.jpg or Image/original"
)

#: In the order of the list's labels 1..7.
CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
SIZES = {"train": 12271, "test": 3068}


class RAFDB:
    """Real-world Affective Faces, the basic set (Li et al., CVPR 2017).

    Licence: non-commercial research, on request; see the data set's own terms. Photographs of real people.
    Expected (also in a sub-folder `basic`): `EmoLabel/list_patition_label.txt` with lines `train_00001.jpg 5` and
    labels 1..7, which become 0..6; `Image/aligned/train_00001_aligned.jpg` (100 x 100) or
    `Image/original/train_00001.jpg`.
    Asserted: labels, names, and 12271 / 3068 images. The published split has no validation part.
    """

    provides = frozenset({"label"})
    label_names: tuple[str, ...] = CLASSES
    attribute_names: tuple[str, ...] = ()
    streaming = False
    splits: ClassVar = {"train": "train", "test": "test"}

    def __init__(self, path: str | Path, *, split: str = "train", images: str = "aligned", strict: bool = True) -> None:
        """
        Args:
            path: folder of the layout above.
            split: train or test.
            images: aligned or original.
            strict: refuse a part of the images.

        Raises:
            ConfigError: no such split or kind of images.
            DataError: a file that is missing or not as expected, or another count.
        """
        choice("rafdb", "split", split, SIZES)
        choice("rafdb", "images", images, ("aligned", "original"))
        root = root_folder(path, LAYOUT)
        file = find(root, [LIST, f"basic/{LIST}"], LAYOUT)
        folder = find(file.parent.parent, [f"Image/{images}"], LAYOUT)
        names, labels = [], []
        for where, (name, label) in text_rows(file, 2, LAYOUT):
            part, _, number = name.partition("_")
            if part not in SIZES or not number.endswith(".jpg"):
                raise DataError(f"{where}: the image is {name!r}, not called as train_00001.jpg or test_0001.jpg")
            value = whole(label, where, "label", 1, len(CLASSES))
            if part == split:
                names.append(name if images == "original" else name.removesuffix(".jpg") + "_aligned.jpg")
                labels.append(value - 1)
        counted(file, f"{split} images", len(names), SIZES[split], strict)
        self._items = Items(folder, names, {"label": labels}, file=file, hint=LAYOUT)

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
