"""The table of the groups of faces, with the names that the user gives them."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facessl.app.faces import Faces
from facessl.core import files, tables
from facessl.core.errors import DataError
from facessl.core.lock import only_writer
from facessl.inference.groups import Groups

_HEAD = ("path", "group", "probability", "name")


@dataclass
class People:
    """The table of the groups: `path`, `group`, `probability`, `name`, a row per face.

    The file is what counts: it is read before each change, as another browser or program may have changed it.

    Attributes:
        faces: all faces.
        file: the table.
        labels: (N,) group of each face, -1 in none.
        probabilities: (N,) membership probabilities.
        names: of the faces, N of them; "" without one.
    """

    faces: Faces
    file: Path
    labels: np.ndarray
    probabilities: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, faces: Faces) -> People:
        """The groups of an earlier call, or none. DataError: the table cannot be read."""
        count = len(faces)
        found = cls(faces, faces.file("people.csv"), np.full(count, -1), np.zeros(count), [""] * count)
        found.read()
        return found

    @property
    def groups(self) -> list[int]:
        """Numbers of the groups that have faces, rising."""
        return [number for number in np.unique(self.labels).tolist() if number >= 0]

    def members(self, number: int) -> np.ndarray:
        """Rows of a group, most confident first."""
        own = np.flatnonzero(self.labels == number)
        return own[np.argsort(-self.probabilities[own], kind="stable")]

    def name(self, number: int) -> str:
        """The name of most of a group's faces."""
        named = Counter(self.names[row] for row in self.members(number).tolist() if self.names[row])
        return named.most_common(1)[0][0] if named else ""

    def read(self) -> None:
        """Take what the table says. DataError: it is not such a table."""
        if not self.file.exists():
            return
        try:
            with files.open_regular(self.file, "r", newline="", encoding="utf-8-sig") as file:
                lines = csv.DictReader(file)
                if missing := set(_HEAD) - set(lines.fieldnames or ()):
                    raise DataError(f"{self.file} lacks the column {min(missing)}: restore it, or move the file away")
                known = {
                    tables.from_csv(line["path"]): (
                        int(line["group"]), float(line["probability"]), tables.from_csv(line["name"] or "")
                    )
                    for line in lines
                }  # fmt: skip
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise DataError(f"cannot read the table {self.file} ({error}): restore it, or move it away") from None
        rows = [known.get(key, (-1, 0.0, "")) for key in self.faces.rows.keys]
        self.labels, self.probabilities = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
        self.names = [r[2] for r in rows]

    def regroup(self, found: Groups) -> None:
        """Take new groups; each face keeps its name."""
        with only_writer(self.file, folder=False, wait=True):
            self.read()
            self.labels, self.probabilities = found.labels, found.probabilities
            self._write()

    def rename(self, rows: list[int], name: str) -> None:
        """Give faces a name."""
        with only_writer(self.file, folder=False, wait=True):
            self.read()
            for row in rows:
                self.names[row] = name
            self._write()

    def _write(self) -> None:
        lines = [tables.csv_row(*_HEAD)]
        for row, key in enumerate(self.faces.rows.keys):
            numbers = int(self.labels[row]), round(float(self.probabilities[row]), 4)
            lines.append(tables.csv_row(key, *numbers, self.names[row]))
        files.write_atomic(self.file, b"".join(lines))
