"""Images in tar shards, grouped as the WebDataset library groups them: `000.jpg`, `000.txt`, `000.cls` are one."""

from __future__ import annotations

import functools
import glob
import hashlib
import itertools
import os
import random
import re
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from facessl.core.errors import ConfigError, DataError, DataWarning
from facessl.core.files import descriptor_of, most_open_files, read_at
from facessl.core.types import FIELDS, Sample
from facessl.data import records
from facessl.data.decode import EXTENSIONS, decode_mask
from facessl.data.location import redacted
from facessl.data.skipped import ImageError, unreadable
from facessl.data.source import Source, short
from facessl.data.sources._tar import PARTS, check_size, grouped, known_ending, library_name, shard_index

_MAX_OPEN = 256
_MAX_SHARDS = 1_000_000
#: Label of an image that has none.
_UNKNOWN = -1


class WebDataset(Source):
    """Tar shards on a disk by position, or a stream of shards from a pipe or a URL.

    By position: an index of member offsets is built from the tar headers on first use and kept in the user's
    cache; shards of which the size or time changed are read again. Captions come from `.txt`, else from
    "caption" in `.json`; labels from `.cls`. Shards of `facessl pack` also give back every other field that the packed
    source had (`facessl.data.records`), and with `traits.json` beside them its class names, layout, subsets and pairs.

    As a stream: the shards are shuffled and divided among ranks and workers, and the samples pass through the
    WebDataset library's shuffle buffer. There the members of a sample must follow one another.

    Attributes:
        provides: "text" where every image has it, "label" where any has (-1: the others); of a stream what its first
            image has, and of packed shards too.
    """

    def __init__(
        self, path: str | Path, *, streaming: bool | None = None, shuffle: int = 1000, cache: bool = True
    ) -> None:
        """
        Args:
            path: a tar, several as `{000..012}` or `*`, a folder of tars, `pipe:COMMAND`, or a URL.
            streaming: read in order instead of by position; None: only what cannot be read otherwise.
            shuffle: samples in the shuffle buffer of a stream; 0 keeps the order.
        """
        remote = str(path).startswith("pipe:") or "://" in str(path)
        if remote and streaming is False:
            raise ConfigError(
                f"{redacted(str(path))} is a stream and cannot be read by position: leave streaming=false away"
            )
        if shuffle < 0:
            raise ConfigError(f"the shuffle buffer has {shuffle} samples, but it must have 0 or more")
        self._paths, self._shuffle = _expand(str(path), remote), shuffle
        if not (remote or streaming):
            self._index([os.path.basename(shard) for shard in self._paths], cache)
            return
        self.streaming, self.shards = True, len(self._paths)
        first = next(self.stream(seed=None, epoch=0, rank=0, world_size=1), None)
        if first is None:
            raise DataError(f"no image in {redacted(str(path))} (looked for members ending in {', '.join(EXTENSIONS)})")
        self.provides = frozenset(f for f in FIELDS if getattr(first, f) is not None)
        if not remote:
            vars(self).update(records.read_traits(Path(self._paths[0]).parent, None))

    def _index(self, names: list[str], cache: bool) -> None:
        """Index the members of `_paths`, which are called `names` in every location."""
        self._names = names
        self._open: dict[int, int] = {}
        self._table = shard_index([Path(p).absolute() for p in self._paths], cache)
        lacking = {part: self._lacking(part) for part in PARTS[1:]}
        every = {part for part, count in lacking.items() if not count}
        first_json = self._read("json", 0) if "json" in every else b""
        packed = records.parsed(first_json)
        field_of = {"txt": "text", "cls": "label"} | ({"mask.png": "mask"} if packed else {})
        available = every | ({"cls"} if lacking["cls"] < len(self) else set())
        self._members = ["image", *(part for part in field_of if part in available)]
        self.provides = frozenset(field_of[part] for part in self._members[1:])
        if packed:
            self.provides |= records.fields(packed)
        elif "txt" not in every and _caption(first_json) is not None:
            self.provides |= {"text"}
        if self.provides - set(field_of.values()) or ("text" in self.provides and "txt" not in every):
            self._members.append("json")
        self.columns = self.provides & {"label", *records.NUMBERS}
        if 0 < lacking["txt"] < len(self):
            first = self.name(int((self._table["txt"][:, 0] < 0).argmax()))
            warnings.warn(
                f"{first} has no .txt ({lacking['txt']} of {len(self)} images have none), so captions are not used: "
                "pack it with one, or leave it out",
                DataWarning,
                stacklevel=3,
            )
        if packed:
            vars(self).update(records.read_traits(Path(self._paths[0]).parent, self._numbers))

    def _lacking(self, part: str) -> int:
        return int((self._table[part][:, 0] < 0).sum()) if part in self._table.columns else len(self)

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError("a stream has no length")
        return int(self._table["first"][-1])

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes. Raises ImageError if the shard can no longer be read."""
        key, shard = self.key(index), self._shard(index)
        parts = [part for part in self._members if self._table[part][index, 0] >= 0]
        sample = _sample({part: self._read(part, index, shard) for part in parts}, key)
        if "cls" in self._members and sample.label is None:
            sample.label = _UNKNOWN
        return sample

    def name(self, index: int) -> str:
        """`SHARD/member` of image `index`, with the path of its shard."""
        return f"{self._paths[self._shard(index)]}/{os.fsdecode(self._table.text('key', index))}"

    def inner_name(self, index: int) -> str:
        return f"{self._names[self._shard(index)]}/{os.fsdecode(self._table.text('key', index))}"

    def image(self, index: int) -> bytes:
        self.key(index)
        return self._read("image", index)

    def size(self, index: int) -> int:
        return int(self._table["image"][index, 1])

    def values(self, field: str) -> np.ndarray:
        def value(index: int) -> int:
            if field == "label":
                has_label = self._table["cls"][index, 0] >= 0
                return _label(self._read("cls", index), self.name(index)) if has_label else _UNKNOWN
            sample = Sample(b"", key=self.name(index))
            records.restore(sample, records.parsed(self._read("json", index)) or {})
            number = getattr(sample, field)
            return _UNKNOWN if number is None else number

        return np.array([value(i) for i in range(len(self))], np.int64)

    def fingerprint(self) -> str:
        """As in `Source`, with every member beside the images; a stream's depends on the names of its shards."""
        if self.streaming:
            return hashlib.blake2b(
                "\n".join(short(redacted(path)) for path in self._paths).encode(), digest_size=16
            ).hexdigest()
        digest = hashlib.blake2b(super().fingerprint().encode(), digest_size=16)
        for part in PARTS[1:]:
            for i in range(len(self)) if not self._lacking(part) else ():
                digest.update(self._read(part, i))
        return digest.hexdigest()

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._table["first"], index, side="right")) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def stream(self, *, seed: int | None, epoch: int, rank: int, world_size: int) -> Iterator[Sample]:
        """As `Source.stream`. Raises DataError if a shard cannot be read."""
        mixing = None if seed is None else seed * 1_000_003 + epoch
        buffer = self._shuffle if seed is not None else 0
        stages = [
            wds.SimpleShardList(self._paths, seed=mixing),
            # wds.split_by_node asks the environment, which says nothing under SLURM in a spawned worker.
            lambda shards: itertools.islice(shards, rank, None, world_size),
            wds.split_by_worker,
            _grouped_members,
        ]
        if buffer:
            stages.append(wds.shuffle(buffer, rng=random.Random(mixing)))
        label = functools.cache(self._display_name)
        try:
            for raw in wds.DataPipeline(*stages):
                if not records.parsed(raw.get("json", b"")):
                    raw.pop("mask.png", None)  # other people's masks may mean anything
                yield _sample(raw, f"{os.path.basename(label(raw['__url__']))}/{raw['__key__']}")
        except DataError:
            raise
        except Exception as error:  # tarfile, OSError, subprocess: any error of a stream
            shard = next((a for a in error.args if isinstance(a, str) and a in self._paths), self._paths[0])
            raise DataError(f"cannot read the shard {label(shard)}: {_reason(error).replace(shard, 'it')}") from None

    def _display_name(self, shard: str) -> str:
        """Name of a shard of a stream in keys and errors: a command by its position, a URL without credentials."""
        if shard.startswith("pipe:"):
            return f"pipe:... ({self._paths.index(shard) + 1} of {len(self._paths)})"
        return redacted(shard)

    def _numbers(self) -> np.ndarray:
        """(N,) int64 positions that packed images had in their source, which are their names."""
        return np.array([int(self._table.text("key", i).partition(b".")[0]) for i in range(len(self))], np.int64)

    def _read(self, part: str, index: int, shard: int | None = None) -> bytes:
        """One member of image `index`, which lies in `shard`."""
        offset, size = self._table[part][index].tolist()
        shard = self._shard(index) if shard is None else shard
        descriptor = self._open.get(shard)
        try:
            if descriptor is not None:
                data = read_at(descriptor, size, offset)
            else:
                descriptor = descriptor_of(self._paths[shard])
                data = read_at(descriptor, size, offset)
                if len(self._open) < min(_MAX_OPEN, most_open_files() // 4):
                    self._open[shard] = descriptor
                else:
                    os.close(descriptor)
        except OSError as error:
            raise unreadable(self.name(index), error) from None
        if len(data) != size:
            raise ImageError(self.name(index), "its shard became shorter while it was in use")
        return data


def _reason(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    status = re.search(r"exit (\d+)", text)
    if status:
        return f"the command that reads it ended with status {status[1]}"
    return "nothing came from it" if text == "empty file" else text


def _expand(path: str, remote: bool) -> list[str]:
    """The shards that `path` names, in order."""
    full = path if remote else os.path.expanduser(path)
    if not remote and os.path.isfile(full):
        return [os.path.abspath(full)]
    if not remote and os.path.isdir(full):
        full = os.path.join(glob.escape(full), "*.tar")
    shown = redacted(path)
    if (count := _count_expanded(full)) > _MAX_SHARDS:
        raise DataError(f"{shown} names {count:,} shards, more than {_MAX_SHARDS:,}: name those that there are")
    try:
        names = wds.shardlists.expand_urls(full)
    except (ValueError, AssertionError):  # the library's: unbalanced braces, ${NAME} without a value
        raise DataError(f"cannot expand {shown}: write several shards for example as shard-{{000..012}}.tar") from None
    if not path.startswith("pipe:") and any(name.strip().lower().startswith("pipe:") for name in names):
        raise DataError(f"{shown} expands to a command: begin it with pipe: if one is to be run")
    if remote:
        return names
    shards: list[str] = []
    for name in names:
        files = sorted(glob.glob(name)) if glob.has_magic(name) else [name] if os.path.exists(name) else []
        if not files:
            raise DataError(f"no such shard: {name}")
        shards += files
    if odd := next((shard for shard in shards if not os.path.isfile(shard)), None):
        raise DataError(f"the shard {odd} is not a regular file: name tar files alone")
    # Absolute: the library takes a file called "pipe:..." for a command to run.
    return [os.path.abspath(shard) for shard in shards]


def _count_expanded(path: str) -> int:
    """Number of names that the braces of a path make, or more."""
    count = 1
    while match := re.search(r"\{([^{}]*)\}", path):
        ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(\.\..*)?", match[1])
        count *= abs(int(ends[2]) - int(ends[1])) + 1 if ends else match[1].count(",") + 1
        path = path[: match.start()] + path[match.end() :]
    return count


class _StrictInfo(tarfile.TarInfo):
    """A header; one that is damaged is an error, where tarfile takes it for the end of the archive, or believes it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            check_size("the stream", info.name, info.size, "txt")
        elif info.size < 0:
            raise tarfile.InvalidHeaderError("negative size")  # type: ignore[attr-defined]
        return info

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictInfo:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"it is truncated or damaged at byte {tarfile_.offset} ({error})") from None


def _grouped_members(shards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The members of each sample that has an image, by ending; `__key__` and `__url__` are its name and shard."""
    for source in wds.tariterators.url_opener(shards):
        url, current = source["url"], b""
        parts: dict[bytes, bytes] = {}
        try:
            with tarfile.open(fileobj=source["stream"], mode="r|*", tarinfo=_StrictInfo) as archive:
                for info in archive:
                    if not info.isreg():
                        continue
                    name = os.fsencode(info.name)
                    base, ending = library_name(name)[0], known_ending(name)
                    if base != current:
                        yield from _raw_samples(parts, url)
                        current, parts = base, {}
                    if ending:
                        check_size(redacted(url), info.name, info.size, ending)
                        member = archive.extractfile(info)
                        parts[name] = member.read() if member else b""
        except DataError:
            raise
        except Exception as error:  # any error of a stream
            error.args = (*error.args, url)
            raise
        yield from _raw_samples(parts, url)


def _raw_samples(members: dict[bytes, bytes], url: str) -> Iterator[dict[str, Any]]:
    for name, parts in grouped(members):
        contents: dict[str, Any] = {part: members[member] for part, member in parts.items()}
        yield {**contents, "__key__": os.fsdecode(name), "__url__": url}


def _sample(parts: Mapping[str, bytes], key: str) -> Sample:
    """A sample of its image and those of the other `PARTS` that are to be used."""
    sample = Sample(parts["image"], key=key, label=_label(parts["cls"], key) if "cls" in parts else None)
    packed = records.parsed(parts["json"]) if "json" in parts else None
    if packed:
        records.restore(sample, packed)
    if "mask.png" in parts:
        sample.mask = decode_mask(parts["mask.png"], key=key)
    if "txt" in parts:
        sample.text = parts["txt"].decode("utf-8", "replace").strip()
    elif "json" in parts and not packed:
        sample.text = _caption(parts["json"]) or ""
    return sample


def _caption(data: bytes) -> str | None:
    """The caption in a `.json` member, "" if it is empty or no text; None if there is no such key."""
    value = records.object_in(data)
    if "caption" not in value:
        return None
    return value["caption"].strip() if isinstance(value["caption"], str) else ""


def _label(data: bytes, key: str) -> int:
    try:
        label = int(data)
    except ValueError:
        label = _UNKNOWN - 1
    if not _UNKNOWN <= label < 2**31:
        raise DataError(f"the .cls of {key} holds {data[:20]!r}, not a class number")
    return label
