"""Output folder of `facessl pack`: shards, tables, and the manifest of a stopped call.

A shard becomes valid in three steps: its bytes and the rows of the tables are synced; `pack.json` lists it; it is
renamed. The next call finishes or discards what a stop leaves between them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.escape import csv_row
from facessl.core.files import open_new, open_own, open_regular, read_regular, sync, sync_folder, write_atomic
from facessl.core.schema import to_json
from facessl.data import records
from facessl.data.location import redacted
from facessl.data.source import Source
from facessl.tools.options import PackOptions, output_settings
from facessl.tools.phash import DUPLICATES, DUPLICATES_COLUMNS, Near

MANIFEST, SKIPPED, HASHES = "pack.json", "skipped.csv", ".hashes"
_HEADERS = {SKIPPED: b"key,reason\n", DUPLICATES: csv_row(*DUPLICATES_COLUMNS), HASHES: b""}
_HASH = np.dtype([("value", "<u8"), ("index", "<i8")])
_COUNTS = ("next", "packed", "skipped", "duplicates")
_UNITS = {"MB": 10**6, "GB": 10**9}
_VERSION = 1


class Shards:
    """Context manager that writes images, given in order, into shards.

    Attributes:
        path: the folder.
        next: position of the first image that is in no finished shard.
        packed, skipped, duplicates: numbers of images, unfinished shards included.
        finished: name, images, bytes and sha256 of each finished shard.
    """

    def __init__(self, path: Path, options: PackOptions, source: Source, spec: str) -> None:
        """`path` is empty or has a `pack.json` of the same options, source and `spec`; else ConfigError.

        DataError: files in it were changed or are missing.
        """
        self.path, self._source, (self._limit, self._in_bytes) = path, source, _limit(options.shard_size)
        self._file: IO[bytes] | None = None  # current shard, its checksum, bytes and images
        self._sum, self._written, self._inside = hashlib.sha256(), 0, 0
        traits = json.dumps(records.traits(source)).encode()
        settings = output_settings(options) | {"source": redacted(spec), "images": len(source), "keys": _keys(source)}
        self._manifest = _manifest(path, settings | {"traits": hashlib.sha256(traits).hexdigest()})
        self._tables: dict[str, int] = self._manifest["tables"]
        self._pending: dict[str, list[bytes]] = {name: [] for name in self._tables}
        self.finished: list[dict[str, Any]] = self._manifest["shards"]
        self.next, self.packed, self.skipped, self.duplicates = (self._manifest[name] for name in _COUNTS)
        self._near = None if options.dedupe is None else Near(options.dedupe)
        self._recover(traits)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, index: int, members: bytes, value: int) -> None:
        """Add the image at position `index`: its members in a tar, and its hash if duplicates are left out."""
        duplicate = self._near.find(value) if self._near else None
        if duplicate is not None:
            row = csv_row(self._source.key(index), self._source.key(duplicate[0]), duplicate[1])
            self._pending[DUPLICATES].append(row)
            self.duplicates += 1
            return
        if self._in_bytes and self._inside and self._written + len(members) + len(records.END) > self._limit:
            self._commit(index)
        if self._file is None:
            self._file = open_new(self._part())
            self._sum, self._written, self._inside = hashlib.sha256(), 0, 0
        self._write(members)
        self._inside += 1
        self.packed += 1
        if self._near:
            self._near.add(value, index)
            self._pending[HASHES].append(np.array((value, index), _HASH).tobytes())
        if not self._in_bytes and self._inside == self._limit:
            self._commit(index + 1)

    def skip(self, key: str, reason: str) -> None:
        """Record an unreadable image."""
        self._pending[SKIPPED].append(csv_row(key, reason))
        self.skipped += 1

    def finish(self, total: int) -> None:
        """Commit the last shard of `total` images."""
        if self.next < total:
            self._commit(total)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._sum.update(data)
        self._written += len(data)

    def _commit(self, following: int) -> None:
        """Make all images before `following` permanent."""
        part, file = self._part(), self._file
        if file is not None:
            self._write(records.END)
            sync(file)
            file.close()
            self._file = None
        for name, rows in self._pending.items():
            if rows:
                with open_own(self.path / name, "ab") as table:
                    table.write(b"".join(rows))
                    sync(table)
                    self._tables[name] = table.tell()
                rows.clear()
        if file is not None:
            entry = {"name": _name(len(self.finished)), "images": self._inside, "bytes": self._written}
            self.finished.append(entry | {"sha256": self._sum.hexdigest()})
        self.next, self._inside = following, 0
        self._manifest |= {name: getattr(self, name) for name in _COUNTS}
        write_atomic(self.path / MANIFEST, to_json(self._manifest, indent=1).encode())
        if file is not None:
            self._name_last(part)

    def _name_last(self, part: Path) -> None:
        """Rename the last shard."""
        final = self.path / self.finished[-1]["name"]
        if final.exists():
            raise ConfigError(f"{final} exists and is not of this pack: remove it")
        os.rename(part, final)
        sync_folder(self.path)

    def _recover(self, traits: bytes) -> None:
        """Restore the state of the manifest."""
        changed = "{} was changed or is missing: put it back, or pack into another folder"
        if self.finished and not (self.path / (last := self.finished[-1])["name"]).exists():
            part = self.path / f".{last['name']}.part"
            if part.is_file() and part.stat().st_size == last["bytes"]:
                self._name_last(part)
        for shard in self.finished:
            file = self.path / shard["name"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise DataError(changed.format(file))
        for name, size in self._tables.items():
            file = self.path / name
            if size and (not file.is_file() or file.stat().st_size < size):
                raise DataError(changed.format(file))
            with open_own(file, "ab") as table:
                table.truncate(size)
                if not size and _HEADERS[name]:
                    table.write(_HEADERS[name])
                    sync(table)
        if not (self.path / records.TRAITS).is_file():
            write_atomic(self.path / records.TRAITS, traits)
        if self._near:
            hashes = np.fromfile(self.path / HASHES, _HASH)
            if ((hashes["index"] < 0) | (hashes["index"] >= self.next)).any():
                raise DataError(changed.format(self.path / HASHES))
            for value, index in hashes.tolist():
                self._near.add(value, index)

    def _part(self) -> Path:
        return self.path / f".{_name(len(self.finished))}.part"


def _limit(shard_size: str) -> tuple[int, bool]:
    """The shard size as a number, and whether it counts bytes. ConfigError: it is neither."""
    match = re.fullmatch(r"(\d+)\s*(MB|GB)?", shard_size.strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise ConfigError(
            f"shard_size={shard_size} cannot be used: give a number of images (2000) or a size (500MB, 2GB)"
        )
    return int(match[1]) * _UNITS.get((match[2] or "").upper(), 1), bool(match[2])


def verify(path: str | Path) -> dict[str, Any]:
    """Compare every shard of a folder of `facessl pack` with its checksum.

    Returns `shards`, `images`, `bytes` and `complete` (whether pack ended). DataError: a shard is damaged, missing or
    not of this pack, or `pack.json` is missing or damaged.
    """
    folder = Path(path).expanduser()
    manifest = _read(folder)
    shards, damaged = manifest["shards"], []
    for shard in shards:
        try:
            with open_regular(folder / shard["name"], most=None) as file:
                intact = hashlib.file_digest(file, "sha256").hexdigest() == shard.get("sha256")  # type: ignore[arg-type]
        except OSError:
            intact = False
        damaged += [] if intact else [shard["name"]]
    damaged += sorted({file.name for file in folder.glob("*.tar")} - {shard["name"] for shard in shards})
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise DataError(
            f"{len(damaged)} shards of {path} are missing, damaged or not of its pack: {', '.join(damaged[:5])}{more}"
        )
    size, complete = sum(shard["bytes"] for shard in shards), manifest["next"] == manifest["settings"]["images"]
    return {"shards": len(shards), "images": manifest["packed"], "bytes": size, "complete": complete}


def _name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _read(folder: Path) -> dict[str, Any]:
    """Read and check the manifest."""
    file = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(read_regular(file))
        shards, tables, settings = manifest["shards"], manifest["tables"], manifest["settings"]
        numbers = [*(manifest[name] for name in _COUNTS), settings["images"], *tables.values()]
        numbers += [shard[key] for shard in shards for key in ("images", "bytes")]
        names = [_name(number) for number in range(len(shards))]
        valid = manifest["facessl_pack"] == _VERSION and tables.keys() == set(_table_names(settings))
        valid = valid and [shard["name"] for shard in shards] == names
        if not valid or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError
        return manifest
    except FileNotFoundError:
        raise DataError(f"{folder} has no {MANIFEST}: name a folder that `facessl pack` wrote") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{file} is not of `facessl pack`, or damaged: name a folder that it wrote") from None


def _table_names(settings: dict[str, Any]) -> tuple[str, ...]:
    return (SKIPPED, DUPLICATES) if settings["dedupe"] is None else (SKIPPED, DUPLICATES, HASHES)


def _manifest(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read the manifest of a folder, or write a new one. ConfigError: `settings` have changed."""
    if not (path / MANIFEST).is_file():
        tables, counts = dict.fromkeys(_table_names(settings), 0), dict.fromkeys(_COUNTS, 0)
        new = {"facessl_pack": _VERSION, "settings": settings, **counts, "tables": tables, "shards": []}
        write_atomic(path / MANIFEST, to_json(new, indent=1).encode())
        return new
    manifest = _read(path)
    for name, value in settings.items():
        before = manifest["settings"].get(name)
        if before != value:
            raise ConfigError(
                f"the files or labels of {settings['source']} have changed since {path} was begun: name another folder"
                if name in ("keys", "traits")
                else f"{path} was begun with {name}={before}, and now it is {name}={value}: use the same, or name "
                "another folder"
            )
    return manifest


def _keys(source: Source) -> str:
    checksum = hashlib.sha256()
    for index in range(len(source)):
        checksum.update(os.fsencode(source.key(index)) + b"\0")
    return checksum.hexdigest()
