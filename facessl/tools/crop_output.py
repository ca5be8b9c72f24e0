"""Output folder of `facessl crop`: crops, tables, and the settings of a stopped call.

A photo is finished when it is in faces.csv or skipped.csv, which are written after its crops.
"""

import csv
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from facessl.core.errors import ConfigError
from facessl.core.escape import csv_row, from_csv
from facessl.core.files import inside, open_new, open_own, open_regular, read_regular, write_atomic
from facessl.tools.phash import DUPLICATES, DUPLICATES_COLUMNS, Near

FACES, SKIPPED, SETTINGS = "faces.csv", "skipped.csv", "crop.json"
#: faces.csv: the crop, its photo, the crop's perceptual hash, the detector's box and score, the box's longer side in
#: the photo's pixels, the sharpness (`facessl.tools.crop.sharpness`), and the two rows of the map from the photo's
#: pixels to the crop's (`facessl.data.face_square.Frame.matrix`).
COLUMNS = (
    *("image", "original", "phash", "left", "top", "right", "bottom", "score", "size", "sharpness"),
    *("m00", "m01", "m02", "m10", "m11", "m12"),
)
_SKIPPED_COLUMNS = ("key", "reason")
NO_FACE, LEFT_OUT, DUPLICATE = "no face found", "too small or blurred", "near-duplicate"
_FINAL = (NO_FACE, LEFT_OUT, DUPLICATE)
_HASH = "[0-9a-f]{16}"


class Crop(NamedTuple):
    """An encoded crop, its hash, and the numbers of its row from `left` on."""

    data: bytes
    hash: int
    numbers: list[float]


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError with the flags that differ if the folder `path` has other settings."""
    try:
        stored = json.loads(read_regular(path / SETTINGS))
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict) or stored.keys() != settings.keys():
        raise ConfigError(f"{path / SETTINGS} does not hold the settings of this version: name another folder")
    changed = [name for name in settings if stored[name] != settings[name]]
    before, now = (", ".join(_flag(name, values[name]) for name in changed) for values in (stored, settings))
    if changed:
        raise ConfigError(
            f"{path} was made {before}, and this call is {now}: use the same flags, or name another folder"
        )


def _flag(name: str, value: Any) -> str:
    flag = "--" + {"detector_model": "model"}.get(name, name).replace("_", "-")
    if value is None or value is False:
        return f"without {flag}"
    return f"with {flag}" if value is True else f"with {flag} {value}"


class CropFolder:
    """Folder of crops and its tables.

    Attributes:
        done: keys of the finished photos.
        faces, duplicates: numbers of crops and of faces left out as near-duplicates.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """ConfigError: the folder has other settings."""
        self.path, self._format = path, settings["format"]
        self._near = None if settings["dedupe"] is None else Near(settings["dedupe"])
        if (path / SETTINGS).is_file():
            _check_settings(path, settings)
        else:
            write_atomic(path / SETTINGS, (json.dumps(dict(settings), indent=1) + "\n").encode())
        rows = self._rows(FACES, COLUMNS)
        # The last photo of a stopped call may lack some of its faces.
        incomplete = {row[1] for row in rows if not ((path / row[0]).is_file() and re.fullmatch(_HASH, row[2]))}
        rows = [row for row in rows if row[1] not in incomplete]
        # Unreadable photos are tried again.
        skipped = [row for row in self._rows(SKIPPED, _SKIPPED_COLUMNS) if row[1] in _FINAL]
        self.done = {row[1] for row in rows} | {row[0] for row in skipped}
        duplicates = [row for row in self._rows(DUPLICATES, DUPLICATES_COLUMNS) if row[0] in self.done]
        tables = {FACES: [COLUMNS, *rows], SKIPPED: [_SKIPPED_COLUMNS, *skipped]}
        if self._near:
            tables[DUPLICATES] = [DUPLICATES_COLUMNS, *duplicates]
        for name, lines in tables.items():
            write_atomic(path / name, b"".join(csv_row(*line) for line in lines))
        self.duplicates = len(duplicates)
        self._files = [row[0] for row in rows]
        self._names = set(self._files)
        if self._near:
            for owner, row in enumerate(rows):
                self._near.add(int(row[2], 16), owner)

    @property
    def faces(self) -> int:
        return len(self._files)

    def _rows(self, name: str, columns: Sequence[str]) -> list[list[str]]:
        if not (self.path / name).is_file():
            return []
        with open_regular(self.path / name, "r", newline="", encoding="utf-8", errors="replace") as file:
            rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(columns) and row[-1]]
        return [[*map(from_csv, row)] for row in rows]

    def _append(self, name: str, rows: list[list[Any]]) -> None:
        """Write all rows of a photo at once, so that a stop leaves all or none of them."""
        with open_own(self.path / name, "ab") as file:
            file.write(b"".join(csv_row(*row) for row in rows))

    def skip(self, key: str, reason: str) -> None:
        """Record a photo without a crop."""
        self._append(SKIPPED, [[key, reason]])

    def add(self, key: str, name: str, crops: Sequence[Crop]) -> None:
        """Write the crops of a photo that are no near-duplicates: NAME.jpg, NAME-2.jpg, ..."""
        unique: list[Crop] = []
        duplicates: list[tuple[int, int]] = []
        for crop in crops:
            duplicate = self._near.find(crop.hash) if self._near else None
            if duplicate is not None:
                duplicates.append(duplicate)
                continue
            if self._near:
                self._near.add(crop.hash, self.faces + len(unique))
            unique.append(crop)
        files = self._new_names(name, len(unique))
        rows: list[list[Any]] = []
        for file, crop in zip(files, unique, strict=True):
            path = inside(self.path, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_new(path) as image:
                image.write(crop.data)
            rows.append([file, key, f"{crop.hash:016x}", *(f"{value:.12g}" for value in crop.numbers)])
        self._files += files
        if duplicates:
            self._append(DUPLICATES, [[key, self._files[owner], distance] for owner, distance in duplicates])
            self.duplicates += len(duplicates)
        if rows:
            self._append(FACES, rows)
        else:
            self.skip(key, DUPLICATE)

    def _new_names(self, name: str, count: int) -> list[str]:
        """Unused names of `count` crops of a photo."""
        stem = os.path.splitext(name)[0]
        for number in itertools.count(1):
            files = [f"{stem}{f'-{n}' if n else ''}.{self._format}" for n in (0, *range(2, count + 1))][:count]
            if self._names.isdisjoint(files):
                break
            stem = name if number == 1 else f"{name}_{number}"  # a.jpg beside a.png
        self._names.update(files)
        return files
