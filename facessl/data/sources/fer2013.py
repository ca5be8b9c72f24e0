"""FER2013: 35887 gray 48 x 48 faces in 7 expressions, from the CSV file or class folders."""

from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.core.files import open_regular
from facessl.data.skipped import ImageError, unreadable
from facessl.data.source import TRAIN_VAL_TEST, Source
from facessl.data.sources._lists import check_width, choice, class_folders, counted, expected, find, find_any, whole
from facessl.data.splits import part_folders

LAYOUT = expected("fer2013", "fer2013.csv (emotion,pixels,Usage)", "or class folders train/angry, test/angry, ...")

#: In the order of the labels 0..6.
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
USAGES = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
#: Kaggle's copy in folders has both test parts in one.
SIZES = {"train": (28709,), "val": (3589,), "test": (3589, 7178)}
SIDE = 48
_COLUMNS = ("emotion", "pixels", "Usage")
_ALIASES = {"anger": 0, "happiness": 3, "sadness": 4}


class FER2013(Source):
    """FER2013 (Goodfellow et al., 2013); for FERPlus' votes on the same images see `ferplus`.

    License: for research; see the data set's own terms (Kaggle's competition). Photographs of real people.
    Expected: `fer2013.csv` (or `icml_face_data.csv`) with a label 0..6, 2304 gray values separated by blanks, and the
    use (Training, PublicTest, PrivateTest: train, val, test); or class folders by name or number, `train/angry/*.jpg`.
    Asserted: columns, labels, number of pixels, and 28709 / 3589 / 3589 images (folders may hold 7178 test images).
    Opening scans the CSV file for its lines; pixels are read on access.

    Attributes:
        splits: those that are there.
    """

    label_names = CLASSES

    def __init__(self, path: str | Path, *, split: str = "train", strict: bool = True) -> None:
        """`path` is the CSV file, or a folder."""
        choice("fer2013", "split", split, USAGES)
        root = Path(path).expanduser()
        if not str(path) or not root.exists():
            raise DataError(f"no such file or folder: {str(path) or '(empty path)'} ({LAYOUT})")
        file = root if root.is_file() else find_any(root, ["fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv"])
        self._file, self._rows = file, np.zeros((0, 2), np.int64)  # of a CSV file: offset and size of each row
        if file is not None:
            self.splits = TRAIN_VAL_TEST
            lines, self._rows, labels = self._scan(file, USAGES[split])
            counted(file, f"{split} images", len(lines), SIZES[split], strict)
            super().__init__(map(str, lines), {"label": labels})
        else:
            folders = part_folders(root)
            self.splits = {role: role for role in folders}
            known = {name: label for label, name in enumerate(CLASSES)} | _ALIASES
            known |= {str(label): label for label in range(len(CLASSES))}
            folder = folders.get(split) or find(root, [split], LAYOUT)
            names, labels = class_folders(folder, known, LAYOUT)
            counted(root, f"{split} images", len(names), SIZES[split], strict)
            super().__init__(names, {"label": labels}, folder=folder)

    def name(self, index: int) -> str:
        """Path of image `index`, or the CSV file and its line there."""
        return super().name(index) if self._file is None else f"{self._file}/{super().name(index)}"

    def image(self, index: int) -> bytes | np.ndarray:
        """(48, 48, 3) uint8 of a CSV file, else encoded bytes. Raises ImageError if the pixels are damaged."""
        if self._file is None:
            return super().image(index)
        key = self.key(index)
        offset, size = self._rows[index].tolist()
        try:
            with open_regular(self._file, buffering=0) as file:
                file.seek(offset)
                cells = file.read(size).split(b",")
            gray = np.array(cells[self._pixels].strip(b' "').split(), np.int64)
        except OSError as error:
            raise unreadable(key, error) from None
        except (ValueError, IndexError, OverflowError):
            raise ImageError(key, "a pixel is not a number") from None
        if len(gray) != SIDE * SIDE or gray.min() < 0 or gray.max() > 255:
            raise ImageError(key, f"it has not {SIDE * SIDE} pixels from 0 to 255")
        return np.repeat(gray.astype(np.uint8).reshape(SIDE, SIDE, 1), 3, axis=2)

    def _scan(self, file: Path, usage: str) -> tuple[list[int], np.ndarray, list[int]]:
        """Line, offset and size (n, 2), and label of each row with this use. DataError if a row is invalid."""
        lines, rows, labels = [], [], []
        try:
            with open_regular(file) as text:
                header = [name.strip() for name in text.readline().decode("utf-8-sig", "replace").split(",")]
                if sorted(header) != sorted(_COLUMNS):
                    raise DataError(f"{file} has the columns {', '.join(header)[:80]} ({LAYOUT})")
                at = [header.index(name) for name in _COLUMNS]
                self._pixels, offset = at[1], text.tell()
                for line, row in enumerate(text, 2):
                    if row.strip():
                        label, use = _checked(f"{file}, line {line}", row, at)
                        if use == usage:
                            lines.append(line)
                            rows.append((offset, len(row)))
                            labels.append(label)
                    offset += len(row)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror} ({LAYOUT})") from None
        return lines, np.array(rows, np.int64).reshape(-1, 2), labels


def _checked(where: str, row: bytes, at: list[int]) -> tuple[int, str]:
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
