"""The table of the groups of faces, with the names that the user gives them."""

from __future__ import annotations

import contextlib
import csv
import functools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from facessl.app.faces import Faces
from facessl.core import escape, files
from facessl.core.errors import ConfigError, DataError
from facessl.core.lock import only_writer
from facessl.inference.groups import Groups

_HEAD = ("path", "group", "probability", "name")


@dataclass
class People:
    """The table of the groups: `path`, `group`, `probability`, `name`, a row per face.

    The file is what counts: it is read before each change, as another browser or program may have changed it. Browsers
    change it in turn, and what they see is replaced as a whole.

    Attributes:
        faces: all faces.
        file: the table.
        labels: (N,) group of each face, -1 in none.
        probabilities: (N,) membership probabilities.
        names: of the faces, N of them; "" without one.
        LONGEST: characters of a name, at most.
    """

    LONGEST: ClassVar[int] = 200

    faces: Faces
    file: Path
    labels: np.ndarray
    probabilities: np.ndarray
    names: list[str]
    _lock: Any = field(default_factory=threading.RLock, repr=False)

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
        return self.name_of(self.members(number).tolist())

    def name_of(self, rows: list[int]) -> str:
        """The name of most of some faces."""
        names = self.names
        named = Counter(names[row] for row in rows if names[row])
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
                known = {escape.from_csv(line["path"]): self._checked(line) for line in lines}
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise DataError(f"cannot read the table {self.file} ({error}): restore it, or move it away") from None
        rows = [known.get(key, (-1, 0.0, "")) for key in self.faces.rows.keys]
        labels, probabilities = np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows])
        with self._lock:
            self.labels, self.probabilities, self.names = labels, probabilities, [r[2] for r in rows]

    def _checked(self, line: dict[str, str]) -> tuple[int, float, str]:
        """Group, probability and name of a line. ValueError: it is not one that was written here."""
        group, probability = int(line["group"]), float(line["probability"])
        if not -1 <= group < len(self.faces):
            raise ValueError(f"group {group} is not one of {len(self.faces):,} faces")
        if not math.isfinite(probability):
            raise ValueError(f"probability {probability} is not a number")
        return group, probability, escape.from_csv(line["name"] or "")

    def locked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function during which no other thread changes the groups or names."""

        @functools.wraps(function)
        def held(*given: Any) -> Any:
            with self._lock:
                return function(*given)

        return held

    def regroup(self, found: Groups) -> None:
        """Take new groups; each face keeps its name."""
        with self._changed():
            self._write(found.labels, found.probabilities, self.names)

    def rename(self, rows: list[int], name: str) -> None:
        """Give faces a name. ConfigError: it is too long."""
        if len(name) > self.LONGEST:
            raise ConfigError(f"a name of {len(name):,} characters is not kept: give one of at most {self.LONGEST}")
        with self._changed():
            names = list(self.names)
            for row in rows:
                names[row] = name
            self._write(self.labels, self.probabilities, names)

    @contextlib.contextmanager
    def _changed(self) -> Iterator[None]:
        """Keep other threads and processes away, and take what they have written."""
        with self._lock, only_writer(self.file, folder=False, wait=True):
            self.read()
            yield

    def _write(self, labels: np.ndarray, probabilities: np.ndarray, names: list[str]) -> None:
        lines = [escape.csv_row(*_HEAD)]
        for row, key in enumerate(self.faces.rows.keys):
            lines.append(escape.csv_row(key, int(labels[row]), round(float(probabilities[row]), 4), names[row]))
        files.write_atomic(self.file, b"".join(lines), private=True)
        self.labels, self.probabilities, self.names = labels, probabilities, names
