"""The folder that `facessl pack` writes: shards, tables, and the manifest by which a stopped call goes on."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.data import records
from facessl.data.source import Source
from facessl.tools.phash import Near

MANIFEST, SKIPPED, DUPLICATES, HASHES = "pack.json", "skipped.csv", "duplicates.csv", ".hashes"
_LOCK, _PART = ".lock", ".part"
_HEADERS = {SKIPPED: b"key,reason\n", DUPLICATES: b"key,duplicate_of,distance\n", HASHES: b""}
_HASH = np.dtype([("value", "<u8"), ("index", "<i8")])
_UNITS = {"MB": 10**6, "GB": 10**9}
_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """What decides about the bytes of the shards; see `facessl.tools.pack.pack`."""

    size: int
    quality: int
    copy: bool
    shard_size: str
    dedupe: int | None

    def __post_init__(self) -> None:
        for name, value, low, high in (("size", self.size, 8, 8192), ("quality", self.quality, 1, 100)):
            if not low <= value <= high and not (value == 0 and (self.copy or name == "size")):
                raise ConfigError(f"pack has {name}={value}, but it must be from {low} to {high}")
        self.limit()
        if self.dedupe is not None:
            Near(self.dedupe)

    def limit(self) -> tuple[int, bool]:
        """The shard size as a number, and whether it counts bytes. ConfigError where it is none."""
        match = re.fullmatch(r"(\d+)\s*(MB|GB)?", self.shard_size.strip(), re.IGNORECASE)
        if not match or not int(match[1]):
            raise ConfigError(
                f"shard_size={self.shard_size} cannot be used: give a number of images (2000) or a size (500MB, 2GB)"
            )
        return int(match[1]) * _UNITS.get((match[2] or "").upper(), 1), bool(match[2])


class Shards:
    """Context manager that takes images in order and writes them into shards.

    Attributes:
        path: the folder.
        next: position in the source of the first image that is in no finished shard yet.
        packed, skipped, duplicates: numbers of images, unfinished shards included.
        count, total_bytes: number and size of the finished shards.
    """

    def __init__(self, path: Path, settings: Settings, source: Source, spec: str) -> None:
        """
        Args:
            path: of the folder, new, empty or with a `pack.json` of the same settings and source.
            settings: see there.
            source: what is packed.
            spec: how a person wrote it.

        Raises:
            ConfigError: the folder has other things in it, other settings, or is in use.
            DataError: files in it were changed or are missing.
        """
        self.path, self._source = path, source
        self._limit, self._in_bytes = settings.limit()
        path.mkdir(parents=True, exist_ok=True)
        if not (path / MANIFEST).is_file() and any(p.name not in (_LOCK, MANIFEST + _PART) for p in path.iterdir()):
            raise ConfigError(f"{path} is not empty, and its files are not of an earlier pack: name another folder")
        self._lock = _locked(path)
        traits = json.dumps(records.traits(source)).encode()
        about = {"source": spec, "images": len(source), "keys": _keys(source)}
        wanted = {**asdict(settings), **about, "traits": hashlib.sha256(traits).hexdigest()}
        self._manifest = _manifest(path, wanted)
        self._near = None if settings.dedupe is None else Near(settings.dedupe)
        self._pending: dict[str, list[bytes]] = {name: [] for name in self._tables()}
        self._recover(traits)
        self.next: int = self._manifest["next"]
        self.packed, self.skipped, self.duplicates = (self._manifest[k] for k in ("packed", "skipped", "duplicates"))
        self._file: IO[bytes] | None = None  # the shard in work, its checksum, bytes and images
        self._sum, self._written, self._inside = hashlib.sha256(), 0, 0
        self._run: tuple[memoryview, int, int] | None = None  # of members that are next to each other in memory

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.close()

    @property
    def count(self) -> int:
        return len(self._manifest["shards"])

    @property
    def total_bytes(self) -> int:
        return sum(shard["bytes"] for shard in self._manifest["shards"])

    def add(self, index: int, view: memoryview, start: int, end: int, value: int = 0) -> None:
        """One image more.

        Args:
            index: its position in the source.
            view, start, end: `view[start:end]` are its members as they stand in a tar. They may be read as late as in
                `flush`, so that neighbours are written at once.
            value: its hash, where duplicates are left out.
        """
        found = self._near.find(value) if self._near else None
        if found is not None:
            row = (self._source.key(index), self._source.key(found[0]), found[1])
            self._pending[DUPLICATES].append(_row(*row))
            self.duplicates += 1
            return
        if self._in_bytes and self._inside and self._written + end - start + len(records.END) > self._limit:
            self._commit(index)
        if self._file is None:
            self._file = open(self._part(), "wb")  # noqa: SIM115 (closed when it is full)
            self._sum, self._written, self._inside = hashlib.sha256(), 0, 0
        if self._run is not None and self._run[0] is view and self._run[2] == start:
            self._run = view, self._run[1], end
        else:
            self.flush()
            self._run = view, start, end
        self._written += end - start
        self._inside += 1
        self.packed += 1
        if self._near:
            self._near.add(value, index)
            self._pending[HASHES].append(np.array((value, index), _HASH).tobytes())
        if not self._in_bytes and self._inside == self._limit:
            self._commit(index + 1)

    def skip(self, key: str, reason: str) -> None:
        """An image that cannot be read."""
        self._pending[SKIPPED].append(_row(key, reason))
        self.skipped += 1

    def finish(self, total: int) -> None:
        """After the last image: `total` of them were given."""
        if self.next < total:
            self._commit(total)

    def flush(self) -> None:
        """Write what was added, so that its memory can be used for other things."""
        if self._run is not None:
            view, start, end = self._run
            self._run = None
            self._write(view[start:end])

    def _write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(data)
        self._sum.update(data)

    def _commit(self, following: int) -> None:
        """Make all images before `following` permanent."""
        entry = None
        if self._file is not None:
            self.flush()
            self._write(records.END)
            self._written += len(records.END)
            _synced(self._file)
            self._file.close()
            self._file = None
            entry = {"name": self._name(self.count), "images": self._inside, "bytes": self._written}
            entry["sha256"] = self._sum.hexdigest()
        for name, rows in self._pending.items():
            if rows:
                with open(self.path / name, "ab") as table:
                    table.write(b"".join(rows))
                    _synced(table)
                    self._manifest["tables"][name] = table.tell()
                rows.clear()
        part = self._part()
        known = self._manifest
        known["shards"] += [entry] if entry else []
        known |= {"next": following, "packed": self.packed, "skipped": self.skipped, "duplicates": self.duplicates}
        _replace(self.path / MANIFEST, _shown(known))
        if entry:
            self._name_last(part)
        self.next, self._inside = following, 0

    def _name_last(self, part: Path) -> None:
        """Give the shard that was written last its name."""
        final = self.path / self._manifest["shards"][-1]["name"]
        if final.exists():
            raise ConfigError(f"{final} exists and is not of this pack: remove it")
        os.rename(part, final)
        _sync_folder(self.path)

    def _recover(self, traits: bytes) -> None:
        """Bring the folder to the state that the manifest describes."""
        shards = self._manifest["shards"]
        if shards and not (self.path / shards[-1]["name"]).exists():
            part = self.path / f".{shards[-1]['name']}{_PART}"
            if part.is_file() and part.stat().st_size == shards[-1]["bytes"]:
                self._name_last(part)
        for shard in shards:
            file = self.path / shard["name"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise DataError(f"{file} was changed or is missing: put it back, or pack into another folder")
        for name, known in self._tables().items():
            file = self.path / name
            if known and (not file.is_file() or file.stat().st_size < known):
                raise DataError(f"{file} was changed or is missing: put it back, or pack into another folder")
            with open(file, "ab") as table:
                table.truncate(known)
                if not known and _HEADERS[name]:
                    table.write(_HEADERS[name])
                    _synced(table)
        if not (self.path / records.TRAITS).is_file():
            _replace(self.path / records.TRAITS, traits)
        if self._near:
            for value, index in np.fromfile(self.path / HASHES, _HASH).tolist():
                self._near.add(value, index)

    def _tables(self) -> dict[str, int]:
        tables: dict[str, int] = self._manifest["tables"]
        return tables

    def _name(self, number: int) -> str:
        return f"shard-{number:06d}.tar"

    def _part(self) -> Path:
        return self.path / f".{self._name(self.count)}{_PART}"


def verify(path: str | Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Compare every shard with its checksum.

    Args:
        path: folder of `facessl pack`.
        progress: called with the numbers of shards read and in total.

    Returns:
        `shards`, `images`, `bytes`, `complete` (whether pack came to its end), and `damaged`: names of shards that are
        missing or have other bytes, and of tars that are not in the manifest.

    Raises:
        DataError: no `pack.json`, or one that cannot be understood.
    """
    folder = Path(path).expanduser()
    known = _read(folder)
    shards, damaged = known["shards"], []
    for count, shard in enumerate(shards, 1):
        try:
            with open(folder / shard["name"], "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            found = ""
        if found != shard["sha256"]:
            damaged.append(shard["name"])
        if progress is not None:
            progress(count, len(shards))
    damaged += sorted({file.name for file in folder.glob("*.tar")} - {shard["name"] for shard in shards})
    complete = known["next"] == known["settings"]["images"]
    size = sum(shard["bytes"] for shard in shards)
    return {
        "shards": len(shards),
        "images": known["packed"],
        "bytes": size,
        "complete": complete,
        "damaged": damaged,
    }


def _read(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if known["facessl_pack"] != _VERSION:
            raise DataError(f"{file} is of version {known['facessl_pack']} of the layout, this is {_VERSION}: update")
        return known
    except FileNotFoundError:
        raise DataError(f"{folder} has no {MANIFEST}: name a folder that `facessl pack` wrote") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{file} is not of `facessl pack`, or damaged: name a folder that it wrote") from None


def _manifest(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder, a new one where it has none. ConfigError where `wanted` has changed."""
    if not (path / MANIFEST).is_file():
        tables = dict.fromkeys((SKIPPED, DUPLICATES, *((HASHES,) if wanted["dedupe"] is not None else ())), 0)
        counts = {"next": 0, "packed": 0, "skipped": 0, "duplicates": 0}
        new = {"facessl_pack": _VERSION, "settings": wanted, **counts, "tables": tables, "shards": []}
        _replace(path / MANIFEST, _shown(new))
        return new
    known = _read(path)
    for name, value in wanted.items():
        before = known["settings"].get(name)
        if before == value:
            continue
        if name in ("keys", "traits"):
            raise ConfigError(
                f"the files or labels of {wanted['source']} have changed since {path} was begun: name another folder"
            )
        raise ConfigError(
            f"{path} was begun with {name}={before}, and now it is {name}={value}: use the same, or name another folder"
        )
    return known


def _shown(manifest: dict[str, Any]) -> bytes:
    """As JSON with a line for each shard."""
    rest = json.dumps({k: v for k, v in manifest.items() if k != "shards"}, indent=1)
    shards = ",\n".join(json.dumps(shard) for shard in manifest["shards"])
    return (rest.removesuffix("\n}") + ',\n "shards": [\n' + shards + "\n ]\n}\n").encode()


def _keys(source: Source) -> str:
    """SHA-256 of the names of all images."""
    found = hashlib.sha256()
    for start in range(0, len(source), 1024):
        part = (os.fsencode(source.key(index)) + b"\0" for index in range(start, min(start + 1024, len(source))))
        found.update(b"".join(part))
    return found.hexdigest()


def _row(*values: object) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _locked(path: Path) -> IO[bytes]:
    """An open file that one process at a time can have; its children do not inherit that."""
    file = open(path / _LOCK, "ab")  # noqa: SIM115 (held as long as the folder is in use)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"another pack is writing to {path}: wait for it, or name another folder") from None
    except OSError:  # a file system without locks
        pass
    return file


def _replace(path: Path, data: bytes) -> None:
    """Write a file that holds its old or its new content, never a part."""
    part = path.with_name(path.name + _PART)
    with open(part, "wb") as file:
        file.write(data)
        _synced(file)
    os.replace(part, path)
    _sync_folder(path.parent)


def _synced(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make names in a folder permanent."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
