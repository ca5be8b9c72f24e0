"""A folder of images, with its first level of sub-folders as labels."""

import os
import posixpath  # names within the folder are the same on every system
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facessl.core.errors import DataError, DataWarning, many
from facessl.core.escape import printable
from facessl.core.types import Sample
from facessl.data.decode import EXTENSIONS, OTHER_EXTENSIONS, read_file
from facessl.data.index import Table, cache_file, class_order, load, texts
from facessl.data.source import Source
from facessl.data.splits import role
from facessl.data.video import FILMS

#: Folders of thumbnails and deleted files that systems and network drives make.
_NOT_PHOTOS = (b"__MACOSX", b"@eaDir", b"#recycle", b"$RECYCLE.BIN", b"lost+found")
_OTHERS = tuple(os.fsencode(extension) for extension in (*OTHER_EXTENSIONS, *FILMS))
_LAYOUT = 4
# A file added within one tick of the file system's clock does not change its folder's time.
_TICK_NS = 2_000_000_000


class Folder(Source):
    """Every image file below a folder, in the order of their paths; a warning counts those of other kinds.

    The list of files is kept in the user's cache. A later start only asks every sub-folder for its time of
    change and lists again those that changed. Hidden files and folders, `@eaDir` and the like are left out; links to
    folders are followed once.

    Attributes:
        provides: {"label"} where all images lie in sub-folders, or in two or more and some beside them, with label -1.
        label_names: names of the first-level sub-folders, by number where all are numbers; of the second level where
            those of the first are called after parts (train, test).
        root: the folder; None for a single image.
        endings: of the names of its files, lower case.
    """

    endings = EXTENSIONS

    classes_may_be_people = True

    def __init__(self, path: str | Path, *, recursive: bool = True, cache: bool = True) -> None:
        """`path` is the folder, or one image; `recursive` also looks into sub-folders."""
        root = Path(path).expanduser()
        self.root = None if root.is_file() else root
        if not str(path) or not root.exists():
            raise DataError(f"no such folder: {str(path) or 'folder:PATH needs a path'}")
        self._prefix = str(root if self.root else root.parent)
        if self.root:
            file = cache_file("folder", os.path.abspath(root), f"{_LAYOUT} {recursive} {self.endings}")
            known = load(file) if cache else None
            self._table = _update(root, known, recursive, tuple(map(os.fsencode, self.endings)))
            if cache and self._table is not known and len(self._table["name"]):
                self._table = self._table.saved(file)
        else:
            name = os.fsencode(root.name)
            self._table = _table([_Row(b"", 0, False, name, np.array([len(name)], np.int64))])
        self._count = int(self._table["first"][-1])
        self._warn_of_others()
        if not self._count and any(root.glob("*.tar")):
            raise DataError(f"the folder {root} holds tar files and no images: name them as {root}/*.tar")
        if not self._count:
            raise DataError(f"no image in the folder {root} or below it (looked for {', '.join(EXTENSIONS)})")
        self.label_names = tuple(self._table.note["label_names"])
        self.provides = self.columns = frozenset({"label"} if self.label_names else ())

    def _warn_of_others(self) -> None:
        endings = Counter(self._table["other"].tobytes().decode().split())
        if not endings:
            return
        kinds = ", ".join(f"{many(count, 'file')} ending in {ending}" for ending, count in endings.most_common())
        cure = "convert them to JPEG"
        if not endings.keys().isdisjoint((".heic", ".heif")):
            cure = "install pillow-heif, which reads .heic and .heif, or " + cure
        if not endings.keys().isdisjoint(FILMS):
            cure = f"write video:{self.root}?every=1s for frames of the videos" + (
                "" if endings.keys() <= {*FILMS} else f", and of the others {cure}"
            )
        warnings.warn(f"{self.root}: left out {kinds}: {cure}", DataWarning, stacklevel=3)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        path = self.key(index)
        label = int(self._table["label"][self._row(index)]) if self.label_names else None
        return Sample(read_file(path), key=path, label=label)

    def name(self, index: int) -> str:
        return os.path.join(self._prefix, self.inner_name(index))

    def inner_name(self, index: int) -> str:
        folder, name = self._table.text("folder", self._row(index)), self._table.text("name", index)
        return os.fsdecode(posixpath.join(folder, name))

    def values(self, field: str) -> np.ndarray:
        return np.repeat(self._table["label"], np.diff(self._table["first"])).astype(np.int64)

    def _row(self, index: int) -> int:
        return int(self._table["first"].searchsorted(index, side="right")) - 1


class _Row(NamedTuple):
    """One folder: when it was changed (0: perhaps just now), its images' names and their lengths."""

    folder: bytes
    time: int
    alias: bool
    names: bytes = b""
    lengths: np.ndarray = np.zeros(0, np.int64)
    other: bytes = b""  # endings of pictures that are left out, each with a blank


def _update(root: Path, known: Table | None, recursive: bool, endings: tuple[bytes, ...]) -> Table:
    """The table of `root`: `known` itself where nothing changed."""
    old, inner_of = _by_folder(known)
    now = time.time_ns()
    rows: list[_Row] = []
    seen: set[tuple[int, int]] = set()
    waiting, changed = [b""], known is None
    while waiting:
        folder = waiting.pop()
        full = os.path.join(os.fsencode(root), folder)
        try:
            status = os.stat(full)
            alias = (status.st_dev, status.st_ino) in seen  # a link back to a folder that is already in the list
            seen.add((status.st_dev, status.st_ino))
            stamp = status.st_mtime_ns if status.st_mtime_ns < now - _TICK_NS else 0
            before = old.get(folder)
            if alias:
                rows.append(_Row(folder, stamp, True))
                changed |= before is None or not before.alias
                continue
            if before is not None and stamp and (before.time, before.alias) == (stamp, False):
                rows.append(before)
                inner = inner_of.get(folder, [])
            else:
                names, inner, other = _list(full, endings)
                lengths = np.array([len(name) for name in names], np.int64)
                rows.append(_Row(folder, stamp, False, b"".join(names), lengths, other))
                changed = True
        except OSError as error:
            raise DataError(f"cannot list the folder {os.fsdecode(full)}: {error.strerror}") from None
        if recursive:
            waiting.extend(posixpath.join(folder, name) for name in reversed(inner))  # so that the first is next
    if known is not None and not changed and len(rows) == len(old):
        return known
    return _table(sorted(rows, key=lambda row: row.folder))


def _list(folder: bytes, endings: tuple[bytes, ...]) -> tuple[list[bytes], list[bytes], bytes]:
    """Names of the images and of the sub-folders of one folder, sorted, and endings of other pictures."""
    names, inner, other = [], [], b""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b".") or name in _NOT_PHOTOS:
                continue
            try:
                if name.lower().endswith(endings) and entry.is_file():
                    names.append(name)
                elif entry.is_dir():
                    inner.append(name)
                elif name.lower().endswith(_OTHERS):
                    other += os.path.splitext(name)[1].lower() + b" "
            except OSError:  # a link to itself
                continue
    names.sort()
    inner.sort()
    return names, inner, other


def _by_folder(table: Table | None) -> tuple[dict[bytes, _Row], dict[bytes, list[bytes]]]:
    """The rows of a cached table by folder, and the names of the sub-folders of each."""
    rows: dict[bytes, _Row] = {}
    inner: dict[bytes, list[bytes]] = {}
    if table is None:
        return rows, inner
    times, first, alias = (table[column].tolist() for column in ("time", "first", "alias"))
    for at in range(len(times)):
        folder = table.text("folder", at)
        ends = table["name.ends"][first[at] : first[at + 1] + 1]
        rows[folder] = _Row(
            folder,
            times[at],
            bool(alias[at]),
            table["name"][ends[0] : ends[-1]].tobytes(),
            np.diff(ends),
            table.text("other", at),
        )
        if folder:
            parent, inside = posixpath.split(folder)
            inner.setdefault(parent, []).append(inside)
    return rows, inner


def _table(rows: list[_Row]) -> Table:
    counts = [len(row.lengths) for row in rows]
    paths = [os.fsdecode(row.folder).split("/") if n else [] for row, n in zip(rows, counts, strict=True)]
    tops = {path[0] for path in paths if path}
    level = int(len(tops) > 1 and all(map(role, tops)))  # train and test are not classes, but their sub-folders
    classes = [path[level] if len(path) > level else "" for path in paths]
    classes = [printable(name) for name in classes]
    names = class_order(top for top in classes if top)
    loose = any(n and not top for top, n in zip(classes, counts, strict=True))
    number = {name: label for label, name in enumerate(names if len(names) > 1 or not loose else ())}
    columns = {
        **texts("folder", (row.folder for row in rows)),
        **texts("other", (row.other for row in rows)),
        "time": np.array([row.time for row in rows], np.int64),
        "alias": np.array([row.alias for row in rows], np.uint8),
        "first": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "label": np.array([number.get(top, -1) for top in classes], np.int32),
        "name": np.frombuffer(b"".join(row.names for row in rows), np.uint8),
        "name.ends": np.concatenate([[0], np.cumsum(np.concatenate([row.lengths for row in rows]))]).astype(np.int64),
    }
    return Table(columns, {"label_names": list(number)})
