"""A folder of images, with its first level of sub-folders as labels."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.decode import EXTENSIONS, read_file
from facessl.data.index import Table, cache_file, class_order, load, texts

_SUFFIXES = tuple(os.fsencode(extension) for extension in EXTENSIONS)
_LAYOUT = 1
# A file added within one tick of the file system's clock does not change its folder's time.
_TICK_NS = 2_000_000_000
#: First image of a folder and of the next one, its path with a slash, its label: before any was looked up.
_NONE: tuple[int, int, bytes, int | None] = (0, 0, b"", None)


class Folder:
    """Every JPEG, PNG, WebP and BMP below a folder, in the order of their paths.

    The list of files is kept in the user's cache. A later start only asks every sub-folder for its time of
    change and lists again those that changed. Hidden files and folders and `__MACOSX` are left out; links to
    folders are followed once.

    Attributes:
        provides: {"label"} where every image lies in one of at least two sub-folders.
        label_names: names of the first-level sub-folders, by number where all are numbers.
    """

    attribute_names: tuple[str, ...] = ()
    streaming = False

    def __init__(self, path: str | Path, *, recursive: bool = True, cache: bool = True) -> None:
        """
        Args:
            path: the folder.
            recursive: also look into sub-folders.
            cache: keep the list of files in the user's cache folder.

        Raises:
            DataError: no such folder, no right to list it, or no image in it.
        """
        self.root = Path(path).expanduser()
        if not str(path) or not self.root.is_dir():
            raise DataError(f"no such folder: {str(path) or 'folder:PATH needs a path'}")
        self._prefix = os.fsencode(os.path.join(self.root, ""))
        file = cache_file("folder", os.path.abspath(self.root), f"{_LAYOUT} {recursive}")
        known = load(file) if cache else None
        self._table = _update(self.root, known, recursive)
        if not self._table["first"][-1]:
            raise DataError(_nothing_found(self.root))
        if cache and self._table is not known:
            self._table = self._table.saved(file)
        self.label_names = tuple(self._table.note["label_names"])
        self.provides = frozenset({"label"} if self.label_names else ())
        self._count = int(self._table["first"][-1])
        self._last = _NONE

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": _NONE}  # two folders are the same whatever was read from them last

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes. Raises ImageError where the file cannot be read."""
        path = self.key(index)
        return Sample(read_file(path), key=path, label=self._folder(index)[3])

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        if not 0 <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        return os.fsdecode(self._folder(index)[2] + self._table.text("name", index))

    def labels(self) -> np.ndarray:
        """(N,) int32 labels of all images; -1 where `label_names` is empty."""
        return np.repeat(self._table["label"], np.diff(self._table["first"]))

    def _folder(self, index: int) -> tuple[int, int, bytes, int | None]:
        """First image of the folder that image `index` is in and of the next one, its path with a slash, its label."""
        last = self._last
        if last[0] <= index < last[1]:  # images are mostly asked for in order, or there is one folder
            return last
        first = self._table["first"]
        row = int(first.searchsorted(index, side="right")) - 1
        folder = self._table.text("folder", row)
        label = int(self._table["label"][row]) if self.label_names else None
        self._last = int(first[row]), int(first[row + 1]), self._prefix + (folder and folder + b"/"), label
        return self._last


@dataclass(slots=True)
class _Row:
    """One folder: `names` of its images, or `kept`, the place of its unchanged names in the known table."""

    folder: bytes
    time: int
    names: list[bytes] = field(default_factory=list)
    kept: tuple[int, int] | None = None
    alias: bool = False


def _update(root: Path, known: Table | None, recursive: bool) -> Table:
    """The table of `root`: `known` itself where nothing changed."""
    old = _Known(known)
    now = time.time_ns()
    rows: list[_Row] = []
    seen: set[tuple[int, int]] = set()
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        full = os.path.join(os.fsencode(root), folder)
        try:
            status = os.stat(full)
            alias = (status.st_dev, status.st_ino) in seen  # a link back to a folder that is already in the list
            seen.add((status.st_dev, status.st_ino))
            changed = status.st_mtime_ns if status.st_mtime_ns < now - _TICK_NS else 0
            row = _Row(folder, changed, alias=alias)
            if alias:
                rows.append(row)
                continue
            inner = old.reuse(row)
            if inner is None:
                row.names, inner = _list(full)
        except OSError as error:
            raise DataError(f"cannot list the folder {os.fsdecode(full)}: {error.strerror}") from None
        rows.append(row)
        if recursive:
            waiting.extend(os.path.join(folder, name) for name in reversed(inner))  # so that the first is next
    if known is not None and old.same(rows):
        return known
    return _table(sorted(rows, key=lambda row: row.folder), known)


def _list(folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Names of the images and of the sub-folders of one folder, sorted."""
    names, inner = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b".") or name == b"__MACOSX":
                continue
            try:
                if name.lower().endswith(_SUFFIXES) and entry.is_file():
                    names.append(name)
                elif entry.is_dir():
                    inner.append(name)
            except OSError:  # a link to itself
                continue
    names.sort()
    inner.sort()
    return names, inner


class _Known:
    """The folders of a cached table, by name."""

    def __init__(self, table: Table | None) -> None:
        self.rows: dict[bytes, int] = {}
        self.inner: dict[bytes, list[bytes]] = {}
        if table is None:
            return
        self.times, self.first, self.alias = (table[c].tolist() for c in ("time", "first", "alias"))
        for row in range(len(self.times)):
            folder = table.text("folder", row)
            self.rows[folder] = row
            if folder:
                parent, name = os.path.split(folder)
                self.inner.setdefault(parent, []).append(name)

    def reuse(self, row: _Row) -> list[bytes] | None:
        """Mark `row` as unchanged and return its sub-folders; None where it has to be listed."""
        at = self.rows.get(row.folder)
        if at is None or not row.time or self.times[at] != row.time or self.alias[at]:
            return None
        row.kept = self.first[at], self.first[at + 1]
        return self.inner.get(row.folder, [])

    def same(self, rows: list[_Row]) -> bool:
        """Whether `rows` are exactly the known folders, all unchanged."""
        return len(rows) == len(self.rows) and all(
            row.kept is not None or (row.alias and row.folder in self.rows) for row in rows
        )


def _table(rows: list[_Row], known: Table | None) -> Table:
    counts = [len(row.names) if row.kept is None else row.kept[1] - row.kept[0] for row in rows]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    blobs, lengths = [], []
    for row in rows:
        if row.kept is None:
            blobs.append(b"".join(row.names))
            lengths.append(np.array([len(name) for name in row.names], np.int64))
        else:
            assert known is not None
            ends = known["name.ends"][row.kept[0] : row.kept[1] + 1]
            blobs.append(known["name"][ends[0] : ends[-1]].tobytes())
            lengths.append(np.diff(ends))
    tops = [os.fsdecode(row.folder.split(b"/", 1)[0]) if n else "" for row, n in zip(rows, counts, strict=True)]
    # Images beside the sub-folders, or one sub-folder alone, mean that the folders are no classes.
    loose = any(n and not row.folder for row, n in zip(rows, counts, strict=True))
    names = [] if loose else class_order(top for top in tops if top)
    names = names if len(names) > 1 else []
    number = {name: label for label, name in enumerate(names)}
    columns = {
        **texts("folder", (row.folder for row in rows)),
        "time": np.array([row.time for row in rows], np.int64),
        "alias": np.array([row.alias for row in rows], np.uint8),
        "first": first,
        "label": np.array([number.get(top, -1) for top in tops], np.int32),
        "name": np.frombuffer(b"".join(blobs), np.uint8),
        "name.ends": np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64),
    }
    return Table(columns, {"label_names": names})


def _nothing_found(root: Path) -> str:
    accepted = ", ".join(EXTENSIONS)
    if any(root.glob("*.tar")):
        return f"the folder {root} holds tar files and no images: name them as {root}/*.tar"
    return f"no image in the folder {root} or below it (looked for {accepted})"
