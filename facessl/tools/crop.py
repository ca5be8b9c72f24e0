"""Photos -> a folder of face crops, with a table that leads back to the photos."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg

from facessl.core.errors import ConfigError, DataError
from facessl.data.decode import ImageError
from facessl.data.detect import SMALLEST, Face, detect
from facessl.data.frame import from_box
from facessl.data.loader import pixels
from facessl.data.source import Source, open_source

FACES, SKIPPED, SETTINGS = "faces.csv", "skipped.csv", "crop.json"
#: faces.csv: the crop, its photo, the detector's box and score, and the two rows of the map from the photo's pixels to
#: the crop's (`facessl.data.frame.Frame.matrix`).
COLUMNS = (
    *("image", "original", "left", "top", "right", "bottom", "score"),
    *("m00", "m01", "m02", "m10", "m11", "m12"),
)
NO_FACE = "no face found"


@dataclass
class CropSummary:
    """What `crop_photos` did.

    Attributes:
        photos: number of photos in the source.
        faces: number of crops in the folder, those of an earlier call included.
        before: number of photos that an earlier call had finished.
        without_face: photos without a face, of this call.
        skipped: (photo, reason) of the unreadable ones, of this call.
    """

    photos: int
    faces: int = 0
    before: int = 0
    without_face: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Settings:
    size: int
    margin: float
    format: Literal["jpg", "png"]
    quality: int
    all_faces: bool
    yunet: str | None
    min_score: float | None
    smallest: float


def crop_photos(
    source: str | Source,
    out: str | Path,
    *,
    size: int = 256,
    margin: float = 1.3,
    all_faces: bool = False,
    yunet: str | Path | None = None,
    min_score: float | None = None,
    smallest: float = SMALLEST,
    format: Literal["jpg", "png"] = "jpg",
    quality: int = 95,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CropSummary:
    """Find the faces of every photo, cut squares around them, and write them below `out` in the source's sub-folders.

    `out` also gets faces.csv (`COLUMNS`; itself a source, `imagelist:OUT/faces.csv`), skipped.csv (photos that cannot
    be read or have no face, and why) and crop.json (these settings). Called again, it goes on where it was stopped.

    Args:
        source: photos, `NAME:PATH?option=value` or a folder.
        out: a folder that is new, empty, or from an earlier call with the same settings.
        size: side of the crops in pixels. The image's edge is repeated where a crop reaches beyond it.
        margin: side of the crop relative to the longer side of the face's box (brows to chin).
        all_faces: every face of a photo; else the first of `detect`, which is the largest and surest.
        yunet, min_score, smallest: as in `facessl.data.detect.detect`.
        format: "jpg" or "png".
        quality: of JPEGs, 1 to 100.
        workers: processes; 0 works in this one.
        progress: called with the numbers of photos done and in total.

    Raises:
        ConfigError: a stream, settings that cannot work, or an `out` with something else in it.
        DataError: the source cannot be read, or `out` cannot be written.
    """
    settings = _Settings(size, margin, format, quality, all_faces, str(yunet) if yunet else None, min_score, smallest)
    _check(settings)
    opened = open_source(source)
    if opened.streaming:
        raise ConfigError(
            "a stream of photos cannot be cropped, because it has no names to go on from: use files on a disk"
        )
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder for the crops")
    root = getattr(opened, "root", None)
    if root is not None and folder.resolve().is_relative_to(Path(root).resolve()):
        raise ConfigError(f"the crops cannot lie inside the photos ({folder} is in {root}): name a folder outside")
    try:
        return _run(_Cropper(opened, settings), _Folder(folder, settings), workers, progress)
    except OSError as error:
        raise DataError(f"cannot write crops to {folder}: {error.strerror or error}") from None


def _check(settings: _Settings) -> None:
    for name, low, high in (("size", 8, 4096), ("margin", 0.1, 10), ("quality", 1, 100), ("smallest", 0.01, 1)):
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ConfigError(f"crop has {name}={value}, but it must be from {low} to {high}")
    if settings.format not in ("jpg", "png"):
        raise ConfigError(f"crop has format={settings.format!r}, but it must be jpg or png")
    if settings.yunet:
        detect(np.zeros((32, 32, 3), np.uint8), yunet=settings.yunet)  # a missing model is told before any photo


class _Cropper:
    """One photo -> (key, its crops with the rest of their rows, or why there are none). Runs in any process."""

    def __init__(self, source: Source, settings: _Settings) -> None:
        self.source, self.settings = source, settings

    def __call__(self, index: int) -> tuple[str, list[tuple[bytes, list[float]]], str]:
        s, key = self.settings, self.source.key(index)
        try:
            image = pixels(self.source[index])
        except ImageError as error:
            return key, [], error.reason
        faces = detect(image, yunet=s.yunet, min_score=s.min_score, smallest=s.smallest)
        crops = [self._crop(image, face) for face in (faces if s.all_faces else faces[:1])]
        return key, crops, "" if crops else NO_FACE

    def _crop(self, image: np.ndarray, face: Face) -> tuple[bytes, list[float]]:
        s = self.settings
        frame = from_box(face.box, s.size, s.margin)
        crop = np.ascontiguousarray(frame.image(image, "edge"))
        if s.format == "jpg":
            data = simplejpeg.encode_jpeg(crop, quality=s.quality, colorspace="RGB", colorsubsampling="444")
        else:
            data = cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))[1].tobytes()
        return data, [*face.box.tolist(), face.score, *frame.matrix[:2].ravel().tolist()]


class _Folder:
    """The folder of crops and its tables.

    Attributes:
        done: keys of the photos that it has finished.
        faces: number of crops.
    """

    def __init__(self, path: Path, settings: _Settings) -> None:
        self.path, self.settings = path, settings
        text = json.dumps(vars(settings), indent=1) + "\n"
        known = path / SETTINGS
        if known.is_file():
            if known.read_text() != text:
                raise ConfigError(
                    f"{path} has crops of other settings ({' '.join(known.read_text().split())}): use those, or name "
                    "another folder"
                )
        elif path.is_dir() and any(path.iterdir()):
            raise ConfigError(f"{path} is not empty, and its files are not of an earlier crop: name another folder")
        else:
            path.mkdir(parents=True, exist_ok=True)
            _write(known, text.encode())
        rows = self._recover(FACES, COLUMNS)
        # The photo that was being written when the last call stopped may lack some of its faces.
        torn = {row[1] for row in rows if not (path / row[0]).is_file()}
        rows = [row for row in rows if row[1] not in torn]
        self._rewrite(FACES, COLUMNS, rows)
        skipped = self._recover(SKIPPED, ("key", "reason"))
        self._rewrite(SKIPPED, ("key", "reason"), skipped)
        self.faces = len(rows)
        self.done = {row[1] for row in rows} | {row[0] for row in skipped}
        self._taken = {row[0] for row in rows}

    def _recover(self, name: str, columns: tuple[str, ...]) -> list[list[str]]:
        """Whole rows of a table."""
        if not (self.path / name).is_file():
            return []
        with open(self.path / name, newline="", encoding="utf-8") as file:
            return [row for row in list(csv.reader(file))[1:] if len(row) == len(columns) and row[-1]]

    def _rewrite(self, name: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
        part = self.path / f"{name}.part"
        with open(part, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        os.replace(part, self.path / name)

    def _append(self, name: str, rows: list[list[Any]]) -> None:
        """All rows of a photo in one write, so that a stop leaves all or none of them."""
        with open(self.path / name, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def skip(self, key: str, reason: str) -> None:
        self._append(SKIPPED, [[key, reason]])

    def add(self, key: str, name: str, crops: list[tuple[bytes, list[float]]]) -> None:
        """Write a photo's crops: NAME.jpg, NAME-2.jpg, ...; crops first, so that the table never promises too much."""
        rows: list[list[Any]] = []
        stem = os.path.splitext(name)[0]
        for count, (data, numbers) in enumerate(crops, 1):
            number = "" if count == 1 else f"-{count}"
            file = f"{stem}{number}.{self.settings.format}"
            if file in self._taken:  # a.jpg beside a.png
                file = f"{name}{number}.{self.settings.format}"
            self._taken.add(file)
            (self.path / file).parent.mkdir(parents=True, exist_ok=True)
            _write(self.path / file, data)
            rows.append([file, key, *(f"{value:.12g}" for value in numbers)])
        self._append(FACES, rows)
        self.faces += len(rows)


def _run(cropper: _Cropper, folder: _Folder, workers: int, progress: Callable[[int, int], None] | None) -> CropSummary:
    source = cropper.source
    keys = [source.key(i) for i in range(len(source))]
    base = _base(source, keys)
    todo = [i for i, key in enumerate(keys) if key not in folder.done]
    summary = CropSummary(len(keys), before=len(keys) - len(todo))
    for count, (key, crops, reason) in enumerate(_results(cropper, todo, workers), 1):
        if crops:
            folder.add(key, _relative(key, base), crops)
        else:
            folder.skip(key, reason)
            if reason == NO_FACE:
                summary.without_face.append(key)
            else:
                summary.skipped.append((key, reason))
        if progress is not None:
            progress(summary.before + count, len(keys))
    summary.faces = folder.faces
    return summary


def _results(cropper: _Cropper, todo: list[int], workers: int) -> Iterator[Any]:
    if not workers or len(todo) < 2:
        yield from map(cropper, todo)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        yield from pool.imap(cropper, todo, chunksize=4)


def _one_thread() -> None:
    cv2.setNumThreads(0)


def _base(source: Source, keys: list[str]) -> str:
    """The folder that the crops' sub-folders are relative to."""
    if getattr(source, "root", None) is not None:
        return str(source.root)  # type: ignore[attr-defined]
    try:
        return os.path.commonpath([os.path.dirname(key) for key in keys])
    except ValueError:  # absolute and relative names, or several drives
        return ""


def _relative(key: str, base: str) -> str:
    """Name of a photo below `base`, never one that leaves it."""
    name = os.path.relpath(key, base) if base else key
    parts = [part for part in PurePath(name).parts if part not in ("..", ".") and part != PurePath(name).anchor]
    return os.path.join(*parts)


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
