"""Fields of a packed image beside its pixels, written by `facessl pack` and read back by the webdataset source.

One sample is the members `NAME.jpg`, `NAME.json`, and `NAME.cls` (label), `NAME.txt` (caption), `NAME.mask.png` (class
map) if it has them. `traits.json` beside the shards holds what belongs to the whole set: class names, the order of
the landmarks, subsets, pairs.
"""

import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facessl.core.errors import DataError
from facessl.core.escape import printable
from facessl.core.types import FIELDS, Sample
from facessl.data.layouts import layout
from facessl.data.source import Source

Size = tuple[int, int]
#: Key of the JSON that marks a packed sample, and its version.
MARK, VERSION = "facessl", 1
TRAITS = "traits.json"
#: Fields of `Sample` in the JSON: arrays by their type, and plain numbers. Label, text and mask have their own members.
ARRAYS = {
    **dict.fromkeys(("landmarks", "box", "five_points", "pose"), np.float32),
    **dict.fromkeys(("visible", "attributes"), np.uint8),
}
NUMBERS = ("identity", "group")
#: Arrays of pixel coordinates, which move when an image is resized.
_PIXELS = ("landmarks", "box", "five_points")
_NAMES = ("label_names", "attribute_names", "group_names", "mask_names")
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def has_pixels(source: Source) -> bool:
    """Whether a source gives anything that moves with the pixels of its images."""
    return bool(source.provides & {*_PIXELS, "mask"})


def members(sample: Sample, stored: Size, shape: Size, label_name: str | None) -> dict[str, bytes]:
    """The members beside the image, by ending, with everything moved from pixels of the `stored` height and width to
    those of the packed `shape`."""
    row: dict[str, Any] = {MARK: VERSION, "key": printable(sample.key), "stored": list(stored)}
    if label_name is not None:
        row["label_name"] = label_name
    for name in NUMBERS:
        if (number := getattr(sample, name)) is not None:
            row[name] = int(number)
    for name, kind in ARRAYS.items():
        if (value := getattr(sample, name)) is not None:
            if name in _PIXELS and stored != shape:
                value = _moved(value, stored, shape)
            array = np.asarray(value, kind)
            # Of float32 the shortest decimals that give the same float32 again.
            row[name] = (array.astype(str).astype(np.float64) if kind is np.float32 else array).tolist()
    out = {"json": _JSON.encode(row).encode()}
    if sample.label is not None:
        out["cls"] = str(int(sample.label)).encode()
    if sample.text is not None:
        out["txt"] = sample.text.encode("utf-8", "replace")
    if (mask := sample.mask) is not None:
        if stored != shape:
            mask = cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)
        out["mask.png"] = bytes(cv2.imencode(".png", mask)[1])
    return out


def _moved(xy: np.ndarray, stored: Size, shape: Size) -> np.ndarray:
    """Coordinates x, y, x, y, ... of any shape, moved as the centers of pixels move."""
    factor = np.array([shape[1] / stored[1], shape[0] / stored[0]])
    pairs = np.asarray(xy, np.float64).reshape(-1, 2)
    return ((pairs + 0.5) * factor - 0.5).reshape(np.shape(xy))


def header(name: bytes, size: int) -> bytes:
    """The 512 bytes in front of a member of a tar (POSIX ustar), without owner and time; ten times `tarfile`'s speed.

    The name has at most 100 bytes, and the size is below 8 GiB.
    """
    digits = b"%011o" % size
    total = _CONSTANT + sum(name) + sum(digits)
    return b"%b%b%b\0%011o\0%06o\0 %b" % (name.ljust(100, b"\0"), _MODE, digits, 0, total, _KIND)


#: Mode, owner and group in a header; kind (a file), name of a link, magic and zeros.
_MODE = b"0000644\0" + b"0000000\0" * 2
_KIND = (b"0" + bytes(100) + b"ustar\00000").ljust(_BLOCK - 156, b"\0")
#: Sum of the bytes of a header but name and size; its checksum counts as eight spaces.
_CONSTANT = sum(_MODE) + sum(_KIND) + 11 * ord("0") + 8 * ord(" ")


def archived(name: str, parts: dict[str, bytes]) -> list[bytes]:
    """The members `NAME.ENDING` of one sample as they stand in a tar, in pieces."""
    out = []
    for ending, data in parts.items():
        size = len(data)
        out += [header(f"{name}.{ending}".encode(), size), data, _ZEROS[: -size % _BLOCK]]
    return out


#: The end of a tar.
END = bytes(2 * _BLOCK)


def traits(source: Source) -> dict[str, Any]:
    """Attributes of a whole source as JSON values; positions are those in the source."""
    values: dict[str, Any] = {"provides": sorted(source.provides), "layout": source.layout}
    values |= {name: list(getattr(source, name)) for name in _NAMES}
    values["mask_flip"] = None if source.mask_flip is None else list(source.mask_flip)
    values["subsets"] = {name: at.tolist() for name, at in source.subsets.items()}
    for name in ("pairs", "same", "folds"):
        value = getattr(source, name)
        values[name] = None if value is None else value.tolist()
    return values


def read_traits(folder: Path, numbers: Callable[[], np.ndarray] | None) -> dict[str, Any]:
    """Attributes of a source that reads shards of `folder`; none if it has no `traits.json`. DataError: damaged.

    `numbers` gives the (n,) int64 positions that the shards' images had in the packed source: subsets and pairs are
    kept for images that are among them. None (a stream): without subsets and pairs.
    """
    file = folder / TRAITS
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        out: dict[str, Any] = {name: tuple(map(str, known[name])) for name in _NAMES}
        out["layout"] = None if known["layout"] is None else layout(known["layout"]).name
        out["mask_flip"] = None if known["mask_flip"] is None else tuple(known["mask_flip"])
        if numbers is not None and (known["subsets"] or known["pairs"] is not None):
            out |= _positions(known, numbers())
    except FileNotFoundError:
        return {}
    except Exception as error:  # any error of a file with another structure
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {error}): pack the set again") from None
    return {name: value for name, value in out.items() if value is not None and len(value)}


def _positions(known: dict[str, Any], numbers: np.ndarray) -> dict[str, Any]:
    """Subsets and pairs as positions in the shards."""
    place = np.argsort(numbers)
    ordered = numbers[place]

    def at(positions: Any) -> np.ndarray:
        """Positions in the shards, -1 for images that are not there."""
        requested = np.array(positions, np.int64)
        nearest = np.searchsorted(ordered, requested).clip(0, len(ordered) - 1)
        return np.where(ordered[nearest] == requested, place[nearest], -1)

    out: dict[str, Any] = {}
    if known["subsets"]:
        out["subsets"] = {name: (every := at(value))[every >= 0] for name, value in known["subsets"].items()}
    if known["pairs"] is not None:
        pairs = at(known["pairs"]).reshape(-1, 2)
        whole = (pairs >= 0).all(1)
        out["pairs"], out["same"] = pairs[whole], np.array(known["same"], bool)[whole]
        if known["folds"] is not None:
            out["folds"] = np.array(known["folds"], np.int64)[whole]
    return out


def object_in(data: bytes) -> dict[str, Any]:
    """Parse a JSON object; an empty one if `data` is something else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def parsed(data: bytes) -> dict[str, Any] | None:
    """The JSON of a packed sample; None for any other."""
    row = object_in(data)
    return row if MARK in row else None


def fields(row: dict[str, Any]) -> frozenset[str]:
    """Fields of `Sample` in the JSON of a packed sample."""
    return frozenset(row) & FIELDS & {*ARRAYS, *NUMBERS}


def restore(sample: Sample, row: dict[str, Any]) -> None:
    """Give `sample` the fields of its JSON. DataError if one is damaged."""
    try:
        for name in fields(row):
            value = row[name]
            setattr(sample, name, np.array(value, ARRAYS[name]) if name in ARRAYS else int(np.int64(value)))
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"the .json of {sample.key} has {name}={reprlib.repr(row[name])}: pack the set again") from None
