"""FER2013: 35887 grey 48 x 48 faces in 7 expressions, from the CSV file or class folders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.decode import ImageError
from facessl.data.sources._class_folders import ClassFolders
from facessl.data.sources._lists import check_width, choice, counted, expected, find, find_any, whole

LAYOUT = expected("fer2013", "fer2013.csv (emotion,pixels,Usage)", "or class folders train/angry, test/angry, ...")

#: In the order of the labels 0..6.
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
USAGES = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
FOLDERS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}
#: Kaggle's copy in folders has both test parts in one.
SIZES = {"train": (28709,), "val": (3589,), "test": (3589, 7178)}
SIDE = 48
_COLUMNS = ("emotion", "pixels", "Usage")
_ALIASES = {"anger": 0, "happiness": 3, "sadness": 4}


class FER2013:
    """FER2013 (Goodfellow et al., 2013); for FERPlus' votes on the same images see `ferplus`.

    Licence: for research; see the data set's own terms (Kaggle's competition). Photographs of real people.
    Expected: `fer2013.csv` (or `icml_face_data.csv`) with a label 0..6, 2304 grey values separated by blanks, and the
    use (Training, PublicTest, PrivateTest: train, val, test); or class folders by name or number, `train/angry/*.jpg`.
    Asserted: columns, labels, number of pixels, and 28709 / 3589 / 3589 images (folders may hold 7178 test images).
    Opening scans the CSV file for its lines; pixels are read when an image is asked for.

    Attributes:
        splits: those that are there.
    """

    provides = frozenset({"label"})
    label_names: tuple[str, ...] = CLASSES
    attribute_names: tuple[str, ...] = ()
    streaming = False

    def __init__(self, path: str | Path, *, split: str = "train", strict: bool = True) -> None:
        """
        Args:
            path: the CSV file, or a folder of the layout above.
            split: train, val or test.
            strict: refuse a part of the images.

        Raises:
            ConfigError: no such split.
            DataError: a file that is missing or not as expected, or another count.
        """
        choice("fer2013", "split", split, USAGES)
        root = Path(path).expanduser()
        if not str(path) or not root.exists():
            raise DataError(f"no such file or folder: {str(path) or '(empty path)'} ({LAYOUT})")
        file = root if root.is_file() else find_any(root, ["fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv"])
        self.splits = {role: role for role in USAGES if file or find_any(root, FOLDERS[role])}
        self._items: _Rows | ClassFolders
        if file is not None:
            self._items = _Rows(file, USAGES[split])
        else:
            folder = find(root, FOLDERS[split], LAYOUT)
            classes = {name: label for label, name in enumerate(CLASSES)} | _ALIASES
            numbers = {str(label): label for label in range(len(CLASSES))}
            self._items = ClassFolders(folder, classes | numbers, LAYOUT)
        counted(file or root, f"{split} images", len(self._items), SIZES[split], strict)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Image `index`: (48, 48, 3) uint8 of a CSV file, else encoded bytes. Raises ImageError where it is damaged."""
        return self._items[index]

    def key(self, index: int) -> str:
        """Path of image `index`, or the CSV file and its line there, without reading it."""
        return self._items.key(index)

    def column(self, field: str) -> np.ndarray:
        """The values of a provided field, in the order of the images; none is read."""
        return self._items.column(field)


class _Rows:
    """Images of one use in the CSV file, by their places in it."""

    def __init__(self, file: Path, usage: str) -> None:
        """DataError: another header, a row with other values, or no room for 2304 pixels in it."""
        self._file = file
        found: list[tuple[int, int, int, int]] = []  # line, offset and size of the row, label
        try:
            with open(file, "rb") as text:
                header = [name.strip() for name in text.readline().decode("utf-8-sig", "replace").split(",")]
                if sorted(header) != sorted(_COLUMNS):
                    raise DataError(f"{file} has the columns {', '.join(header)[:80]} ({LAYOUT})")
                at = [header.index(name) for name in _COLUMNS]
                self._pixels, offset = at[1], text.tell()
                for line, row in enumerate(text, 2):
                    if row.strip():
                        label, use = _checked(f"{file}, line {line}", row, at)
                        if use == usage:
                            found.append((line, offset, len(row), label))
                    offset += len(row)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror} ({LAYOUT})") from None
        self._table = np.array(found, np.int64).reshape(-1, 4)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        key = self.key(index)
        _, offset, size, label = self._table[index].tolist()
        try:
            descriptor = os.open(self._file, os.O_RDONLY)
            try:
                cells = os.pread(descriptor, size, offset).split(b",")
            finally:
                os.close(descriptor)
            grey = np.array(cells[self._pixels].strip(b' "').split(), np.int64)
        except OSError as error:
            raise ImageError(key, error.strerror or str(error)) from None
        except (ValueError, IndexError):
            raise ImageError(key, "a pixel is not a number") from None
        if len(grey) != SIDE * SIDE or grey.min() < 0 or grey.max() > 255:
            raise ImageError(key, f"it has not {SIDE * SIDE} pixels from 0 to 255")
        image = np.repeat(grey.astype(np.uint8).reshape(SIDE, SIDE, 1), 3, axis=2)
        return Sample(image, key=key, label=label)

    def key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return f"{self._file}/{self._table[index, 0]}"

    def column(self, field: str) -> np.ndarray:
        """(N,) labels; there is no other field."""
        return self._table[:, 3]


def _checked(where: str, row: bytes, at: list[int]) -> tuple[int, str]:
    """Label and use of a row; `at` has the places of emotion, pixels and Usage."""
    cells = row.split(b",")
    check_width(where, len(cells), len(_COLUMNS))
    label = whole(cells[at[0]].decode(errors="replace"), where, "emotion", 0, len(CLASSES) - 1)
    use = cells[at[2]].decode(errors="replace").strip()
    if use not in USAGES.values():
        raise DataError(f"{where}: the Usage is {use!r}, not one of {', '.join(USAGES.values())}")
    pixels = cells[at[1]].strip().count(b" ") + 1
    if pixels != SIDE * SIDE:
        raise DataError(f"{where}: {pixels} pixels where {SIDE} x {SIDE} are expected")
    return label, use
