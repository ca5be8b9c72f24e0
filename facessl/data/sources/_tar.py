"""Offsets of images and captions in tar shards, read from the headers alone."""

import os
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facessl.core.errors import DataError
from facessl.core.files import open_regular, read_at
from facessl.data.decode import EXTENSIONS
from facessl.data.index import Table, cache_file, load, texts

#: Parts of a sample that are used, by their column in the index.
PARTS = ("image", "txt", "json", "cls", "mask.png")
IMAGE_SUFFIXES = tuple(extension[1:] for extension in EXTENSIONS)
NOWHERE = (-1, 0)
_MOST, _MOST_TEXT = 2**28, 2**20

_ENDINGS = (*PARTS[:0:-1], *IMAGE_SUFFIXES)  # mask.png before png
_LAYOUT = 3
_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Member(NamedTuple):
    """A regular file inside a tar: bytes `offset` to `offset + size` of the archive."""

    name: bytes
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """Regular files of an uncompressed tar (ustar, GNU or PAX), in order.

    Reading only what an offset needs takes a seventh of the time of Python's `tarfile`, to which
    `tests/data/test_webdataset.py` compares it. DataError: not a tar, or compressed, truncated or damaged.
    """
    with open_regular(path, most=sys.maxsize, buffering=0) as file:
        descriptor, end = file.fileno(), os.fstat(file.fileno()).st_size
        position, name, size = 0, b"", b""
        while position < end:
            header = read_at(descriptor, _BLOCK, position)
            if not any(header):
                return  # a block of zeros closes the archive
            length = _checked_size(header, position, path)
            start, kind = position + _BLOCK, header[156:157]
            length = int(size) if size.isdigit() else length
            if kind in (b"L", b"x"):
                check_size(path, os.fsdecode(_name(header)), length, "txt")
            if start + length > end:
                shown = os.fsdecode(name or _name(header))
                raise DataError(f"{path} is truncated: {shown} should end at byte {start + length} of {end}")
            if kind == b"L":  # GNU: the next member's long name
                name = read_at(descriptor, length, start).rstrip(b"\0")
            elif kind == b"x":  # PAX: the next member's attributes
                attributes = _pax(read_at(descriptor, length, start))
                name, size = attributes.get(b"path", name), attributes.get(b"size", size)
            else:
                if kind in _REGULAR:
                    yield Member(name or _name(header), start, length)
                name = size = b""
            position = start + -(-length // _BLOCK) * _BLOCK
        if position == 0:
            raise DataError(f"{path} is empty, not a tar file")


def _checked_size(header: bytes, position: int, path: Path) -> int:
    """The size in a header whose checksum is right."""
    try:
        # The checksum counts its own eight bytes as spaces. The low half of Adler-32 is the sum of the bytes plus
        # one, modulo 65521, at a twentieth of the time of sum().
        stored = header[148:156]
        total = int(stored.strip(b" \0"), 8) + sum(stored) - 8 * 32 + 1
        if len(header) == _BLOCK and zlib.adler32(header) & 0xFFFF == total % 65521:
            if header[124] & 0x80:  # GNU: sizes from 8 GiB on are binary
                return int.from_bytes(header[125:136], "big")
            digits = header[124:136].strip(b" \0") or b"0"
            if digits.isdigit():
                return int(digits, 8)
    except (ValueError, IndexError):
        pass
    if position:
        raise DataError(f"{path} is truncated or damaged at byte {position}: pack it again")
    packed = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), None)
    if packed:
        raise DataError(f"{path} is compressed with {packed}: unpack it, or read it in order with ?streaming=true")
    raise DataError(f"{path} is not a tar file (begins with {header[:12]!r})")


def check_size(shard: str | Path, name: str, size: int, part: str) -> None:
    """DataError if a member that is one of `PARTS` is larger than any image, or text beside one, can be."""
    most = _MOST_TEXT if part in ("txt", "json", "cls") else _MOST
    if not 0 <= size <= most:
        raise DataError(f"{shard} has a member {name} of {size:,} bytes, more than {most:,}: pack it without that one")


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # Only POSIX tars have a prefix there; GNU's "ustar  " keeps times in these bytes.
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(block: bytes) -> dict[bytes, bytes]:
    """`LENGTH KEY=VALUE\\n` records."""
    records, position = {}, 0
    while position < len(block):
        digits, space, _ = block[position : position + 24].partition(b" ")
        if not space or not digits.isdigit() or int(digits) == 0:
            break
        key, _, value = block[position + len(digits) + 1 : position + int(digits) - 1].partition(b"=")
        records[key] = value
        position += int(digits)
    return records


def shard_index(paths: list[Path], cache: bool) -> Table:
    """Index every image of some shards (absolute `paths`).

    With `cache` the table is kept in the user's cache folder, and shards that did not change are taken from there.

    Returns:
        A table of n images with columns `key` (texts: name of the image's member), `first` (shards + 1: first
        image of each shard), `image` (n, 2) and, where any image has them, the other `PARTS` (n, 2): offset
        and size in bytes, offset -1 if that image has none.

    DataError: a shard that is not a tar, truncated, or without images.
    """
    state = [[str(path), (status := path.stat()).st_size, status.st_mtime_ns] for path in paths]
    file = cache_file("webdataset", str(_LAYOUT), *(str(path) for path in paths))
    known = load(file) if cache else None
    if known is not None and known.note["shards"] == state:
        return known
    parts = []
    for shard, path in enumerate(paths):
        if known is not None and known.note["shards"][shard] == state[shard]:
            parts.append(_cut(known, shard))
        else:
            parts.append(_scan(path))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in PARTS}
    keys = [part["key"] for part in parts]
    lengths = np.concatenate([part["key.lengths"] for part in parts])
    columns["first"] = np.cumsum([0] + [len(part["image"]) for part in parts], dtype=np.int64)
    columns["key"] = np.concatenate(keys)
    columns["key.ends"] = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    for name in PARTS[1:]:
        if (columns[name][:, 0] < 0).all():
            del columns[name]
    table = Table(columns, {"shards": state})
    return table.saved(file) if cache else table


def _scan(path: Path) -> dict[str, np.ndarray]:
    """Offsets of one shard: (n, 2) offset and size of each part, -1 if a sample lacks it."""
    places = {part: array("q") for part in PARTS}
    keys: list[bytes] = []
    members_by_name: dict[bytes, Member] = {}
    for member in members(path):
        if member.name in members_by_name:
            raise DataError(f"{path} holds {os.fsdecode(member.name)} twice: pack it again")
        members_by_name[member.name] = member
    try:
        for key, parts in grouped(members_by_name):
            keys.append(key)
            for part, name in parts.items():
                check_size(path, os.fsdecode(name), members_by_name[name].size, part)
            for part in PARTS:
                places[part].extend(members_by_name[parts[part]][1:] if part in parts else NOWHERE)
    except ValueError as error:
        raise DataError(f"{path} holds {error} twice: pack it again") from None
    if not keys:
        raise DataError(f"no image in the shard {path}: no member is named KEY{' or KEY'.join(EXTENSIONS)}")
    named = texts("key", keys)
    columns = {part: np.frombuffer(place, np.int64).reshape(-1, 2) for part, place in places.items()}
    return {**columns, "key": named["key"], "key.lengths": np.diff(named["key.ends"])}


def library_name(name: bytes) -> tuple[bytes, str]:
    """Name of the sample and ending of a member as the WebDataset library has them: all after a name's first dot."""
    dot = name.find(b".", name.rfind(b"/") + 1)
    return name[: max(dot, 0)], os.fsdecode(name[dot + 1 :].lower())


def known_ending(name: bytes) -> str:
    """The part or image suffix that a member's name ends in; "" if it is none."""
    return next((ending for ending in _ENDINGS if name.lower().endswith(b"." + ending.encode())), "")


def grouped(members: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    """Samples that have an image: the name of its member, and the members of its `PARTS`.

    Members belong together as the library says (`library_name`). Where that finds no image, dots may be part of names
    (`George_W._Bush_0001.jpg`), and what stands before the known endings is the sample's name.

    ValueError with the name of a member that is the same part of a sample as another.
    """
    groups: dict[bytes, dict[str, bytes]] = {}
    for name in members:
        base, ending = library_name(name)
        if not base or base.endswith(b"/") or base.startswith(b"__"):
            continue
        if groups.setdefault(base, {}).setdefault(ending, name) is not name:
            raise ValueError(os.fsdecode(name))
    for group in groups.values():
        if not group.keys().isdisjoint(IMAGE_SUFFIXES):
            yield _parts(group)
            continue
        dotted: dict[bytes, dict[str, bytes]] = {}
        for name in group.values():
            if known := known_ending(name):
                dotted.setdefault(name[: -len(known) - 1], {})[known] = name
        yield from (_parts(inner) for inner in dotted.values() if not inner.keys().isdisjoint(IMAGE_SUFFIXES))


def _parts(group: dict[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
    image = next(group[ending] for ending in IMAGE_SUFFIXES if ending in group)
    return image, {"image": image, **{part: group[part] for part in PARTS[1:] if part in group}}


def _cut(table: Table, shard: int) -> dict[str, np.ndarray]:
    """Columns of one shard of a table, as from `_scan`."""
    start, stop = table["first"][shard : shard + 2].tolist()
    missing = np.tile(np.array(NOWHERE, np.int64), (stop - start, 1))
    columns = {part: table[part][start:stop] if part in table.columns else missing for part in PARTS}
    ends = table["key.ends"][start : stop + 1]
    return {**columns, "key": table["key"][ends[0] : ends[-1]], "key.lengths": np.diff(ends)}
