"""Photos -> a folder of face crops, with a table that leads back to the photos."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

import cv2
import numpy as np

from facessl.core.distributed import launched
from facessl.core.errors import ConfigError
from facessl.core.files import inside, open_new, open_own, open_regular, read_regular, write_atomic
from facessl.core.tables import csv_row, from_csv
from facessl.core.values import between, check_values
from facessl.data.crop_geometry import Frame, Template, from_box, from_eyes, from_five_points
from facessl.data.decode import ImageError
from facessl.data.detect import SMALLEST, Face, detect, load_detector
from facessl.data.face_crop import MARGIN, QUALITY, SIZE, jpeg
from facessl.data.loader import check_skipped, pixels
from facessl.data.source import Source
from facessl.tools.jobs import in_order, open_with_positions, output_folder
from facessl.tools.ranks import Record, over_ranks

FACES, SKIPPED, SETTINGS = "faces.csv", "skipped.csv", "crop.json"
#: faces.csv: the crop, its photo, the detector's box and score, the box's longer side in the photo's pixels, the
#: sharpness (`sharpness`), and the two rows of the map from the photo's pixels to the crop's
#: (`facessl.data.crop_geometry.Frame.matrix`).
COLUMNS = (
    *("image", "original", "left", "top", "right", "bottom", "score", "size", "sharpness"),
    *("m00", "m01", "m02", "m10", "m11", "m12"),
)
_SKIPPED_COLUMNS = ("key", "reason")
NO_FACE, LEFT_OUT = "no face found", "too small or blurred"
Align = Literal["none", "eyes", "five-points"]
#: Side of the square around a face's box in which its sharpness is measured.
_SHARPNESS_SIDE = 128


@dataclass
class CropSummary:
    """What `crop` did.

    Attributes:
        photos, before: numbers of photos in the source, and of those that an earlier call had finished.
        faces: number of crops in the folder, those of an earlier call included.
        small, blurred: numbers of faces that were left out for that, of this call.
        without_face: photos without a face, of this call.
        skipped: (photo, reason) of the unreadable ones, of this call.
    """

    photos: int
    faces: int = 0
    before: int = 0
    small: int = 0
    blurred: int = 0
    without_face: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Settings:
    size: int
    margin: float
    align: Align
    template: Template
    all_faces: bool
    detector: str
    detector_model: str | None
    min_score: float | None
    smallest: float
    min_size: float
    min_sharpness: float
    format: Literal["jpg", "png"]
    quality: int

    def __post_init__(self) -> None:
        rules = {"size": between(8, 4096), "margin": between(0.1, 10), "quality": between(1, 100)}
        check_values(self, rules | {"smallest": between(0.01, 1)}, prefix="crop's ")
        load_detector(self.detector, self.detector_model)  # a missing model is told before any photo


def crop(
    source: str | Path | Source,
    out: str | Path,
    *,
    size: int = SIZE,
    margin: float | None = None,
    align: Align = "none",
    template: Template = "farl",
    all_faces: bool = False,
    detector: str = "mtcnn",
    detector_model: str | Path | None = None,
    min_score: float | None = None,
    smallest: float = SMALLEST,
    min_size: float = 0,
    min_sharpness: float = 0,
    format: Literal["jpg", "png"] = "jpg",
    quality: int = QUALITY,
    workers: int = 0,
    max_bad: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
) -> CropSummary:
    """Find the faces of every photo, cut squares around them, and write them below `out` in the source's sub-folders.

    `facessl.crop("photos/", "faces/", align="eyes").faces`

    `out` also gets faces.csv (`COLUMNS`; itself a source, `imagelist:OUT/faces.csv`), skipped.csv (photos that cannot
    be read or have no face, and why) and crop.json (these settings). Called again, it goes on where it was stopped.
    Under torchrun or srun the ranks share the work; the one that ends last has the numbers of all, the others none.

    Args:
        source: photos, `NAME:PATH?option=value` or a folder.
        out: a folder that is new, empty, or from an earlier call with the same settings.
        size: side of the crops in pixels. The photo is mirrored where a crop reaches beyond it.
        margin: side of the crop relative to the longer side of the face's box (brows to chin), 1.3 where not given;
            with the alignment "five-points" how much is shown relative to the template, 1 where not given.
        align: "none": upright in the photo; "eyes": turned until the eyes are level; "five-points": turned, scaled and
            shifted until eyes, nose and mouth are nearest to their places in `template`.
        template: "farl", "celeba" or "arcface" (`facessl.data.crop_geometry.TEMPLATES`).
        all_faces: every face of a photo; else the first of `detect`, which is the largest and surest.
        detector, detector_model, min_score, smallest: as detector, model, ... in `facessl.data.detect.detect`.
        min_size: faces whose box is smaller are left out; pixels of the photo, along the longer side.
        min_sharpness: faces that are less sharp (`sharpness`) are left out.
        format: "jpg" or "png".
        quality: of JPEGs, 1 to 100.
        workers: processes; 0 works in this one.
        max_bad: fraction of unreadable photos above which it stops.
        progress: called with the numbers of photos done and in total, first with those of earlier calls.

    Raises:
        ConfigError: a stream, settings that cannot work, or an `out` that is in use or has something else in it.
        DataError: the source or more than `max_bad` of its photos cannot be read, `out` cannot be written, or a process
            died.
    """
    if margin is None:
        margin = 1.0 if align == "five-points" else MARGIN
    settings = _Settings(
        size=size,
        margin=margin,
        align=align,
        template=template,
        all_faces=all_faces,
        detector=detector,
        detector_model=None if detector_model is None else str(detector_model),
        min_score=min_score,
        smallest=smallest,
        min_size=min_size,
        min_sharpness=min_sharpness,
        format=format,
        quality=quality,
    )
    opened = open_with_positions(source)
    cropper, told = _Cropper(opened, settings), progress or (lambda done, total: None)
    if launched()[1] == 1:
        with output_folder(out, opened, SETTINGS, "crop") as path:
            return _run(opened, cropper, _Folder(path, settings), workers, max_bad, told)
    written = over_ranks(
        functools.partial(output_folder, out, opened, SETTINGS, "crop", wait=True),
        json.dumps({"crop": vars(settings), "images": opened.fingerprint()}),
        lambda path: _left(opened, _Folder(path, settings)),
        cropper.record,
        lambda path, found: _run(
            opened, lambda i: _Found.read(opened.key(i), *found(i)), _Folder(path, settings), 0, max_bad, told
        ),
        workers=workers,
        progress=told,
    )
    return written or CropSummary(len(opened))


def sharpness(image: np.ndarray, box: np.ndarray) -> float:
    """Variance of the Laplacian of the face in `box` (4,) of an image (H, W, 3) uint8, resized to 128 pixels.

    Medians of 40 faces: 370 of CelebAMask-HQ at 256 pixels, 65 of UTKFace at 112; 4 of either after a Gaussian blur
    with a sigma of 4 pixels.
    """
    face = from_box(box, _SHARPNESS_SIDE).image(image, "reflect")
    return float(cv2.Laplacian(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


@dataclass
class _Found:
    """The crops of one photo, each with the numbers of its row; why there are none; faces that were left out."""

    key: str
    crops: list[tuple[bytes, list[float]]] = field(default_factory=list)
    reason: str = ""
    small: int = 0
    blurred: int = 0

    @classmethod
    def read(cls, key: str, values: dict[str, Any], data: Sequence[bytes]) -> _Found:
        """From what `_Cropper.record` makes of it."""
        crops = list(zip(data, values.pop("numbers"), strict=True))
        return cls(key, crops, **values)


class _Cropper:
    """One photo -> its crops. Runs in any process."""

    def __init__(self, source: Source, settings: _Settings) -> None:
        self.source, self.settings = source, settings

    def __call__(self, index: int) -> _Found:
        s, found = self.settings, _Found(self.source.key(index))
        try:
            image = pixels(self.source[index])
        except ImageError as error:
            found.reason = error.reason
            return found
        faces = detect(image, detector=s.detector, model=s.detector_model, min_score=s.min_score, smallest=s.smallest)
        for face in faces if s.all_faces else faces[:1]:
            size, sharp = float(max(face.box[2:] - face.box[:2])), sharpness(image, face.box)
            if size < s.min_size:
                found.small += 1
            elif sharp < s.min_sharpness:
                found.blurred += 1
            else:
                found.crops.append(self._crop(image, face, size, sharp))
        if not found.crops:
            found.reason = LEFT_OUT if faces else NO_FACE
        return found

    def record(self, index: int) -> Record:
        """The same as plain values and bytes."""
        found = self(index)
        values = {"reason": found.reason, "small": found.small, "blurred": found.blurred}
        return values | {"numbers": [numbers for _, numbers in found.crops]}, [data for data, _ in found.crops]

    def _frame(self, face: Face) -> Frame:
        s, points = self.settings, face.five_points
        if s.align == "none":
            return from_box(face.box, s.size, s.margin)
        if points is None:
            raise ConfigError(
                f"align={s.align} needs five points, which the detector {s.detector} does not give: use none"
            )
        if s.align == "eyes":
            return from_eyes(face.box, points, s.size, s.margin)
        return from_five_points(points, s.size, s.template, s.margin)

    def _crop(self, image: np.ndarray, face: Face, size: float, sharp: float) -> tuple[bytes, list[float]]:
        s, frame = self.settings, self._frame(face)
        crop = frame.image(image, "reflect")
        if s.format == "jpg":
            data = jpeg(crop, s.quality)
        else:
            data = cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))[1].tobytes()
        return data, [*face.box.tolist(), face.score, size, sharp, *frame.matrix[:2].ravel().tolist()]


class _Folder:
    """The folder of crops and its tables; `done` are the keys of the photos that it has finished."""

    def __init__(self, path: Path, settings: _Settings) -> None:
        self.path, self.format = path, settings.format
        text = json.dumps(vars(settings), indent=1) + "\n"
        if (path / SETTINGS).is_file():
            known = read_regular(path / SETTINGS).decode(errors="replace")
            if known != text:
                raise ConfigError(
                    f"{path} has crops of other settings ({' '.join(known.split())}): use those, or name another folder"
                )
        else:
            write_atomic(path / SETTINGS, text.encode())
        rows = self._rows(FACES, COLUMNS)
        # The photo that was being written when the last call stopped may lack some of its faces.
        torn = {row[1] for row in rows if not (path / row[0]).is_file()}
        rows = [row for row in rows if row[1] not in torn]
        skipped = self._rows(SKIPPED, _SKIPPED_COLUMNS)
        self.unreadable = sum(row[1] != NO_FACE for row in skipped)
        for name, columns, kept in ((FACES, COLUMNS, rows), (SKIPPED, _SKIPPED_COLUMNS, skipped)):
            write_atomic(path / name, b"".join(csv_row(*row) for row in (columns, *kept)))
        self.faces = len(rows)
        self.done = {row[1] for row in rows} | {row[0] for row in skipped}
        self._taken = {row[0] for row in rows}

    def _rows(self, name: str, columns: tuple[str, ...]) -> list[list[str]]:
        """Whole rows of a table of an earlier call."""
        if not (self.path / name).is_file():
            return []
        with open_regular(self.path / name, "r", newline="", encoding="utf-8", errors="replace") as file:
            rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(columns) and row[-1]]
        return [[*map(from_csv, row)] for row in rows]

    def append(self, name: str, rows: list[list[Any]]) -> None:
        """All rows of a photo in one write, so that a stop leaves all or none of them."""
        with open_own(self.path / name, "ab") as file:
            file.write(b"".join(csv_row(*row) for row in rows))

    def add(self, key: str, name: str, crops: list[tuple[bytes, list[float]]]) -> None:
        """Write a photo's crops: NAME.jpg, NAME-2.jpg, ...; crops first, so that the table never promises too much."""
        stem = os.path.splitext(name)[0]
        for number in itertools.count(1):
            files = [f"{stem}{f'-{n}' if n else ''}.{self.format}" for n in (0, *range(2, len(crops) + 1))]
            if self._taken.isdisjoint(files):
                break
            stem = name if number == 1 else f"{name}_{number}"  # a.jpg beside a.png
        self._taken.update(files)
        rows = []
        for file, (data, numbers) in zip(files, crops, strict=True):
            path = inside(self.path, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_new(path) as crop:
                crop.write(data)
            rows.append([file, key, *(f"{value:.12g}" for value in numbers)])
        self.append(FACES, rows)
        self.faces += len(rows)


def _left(source: Source, folder: _Folder) -> list[int]:
    """Positions of the photos that are not finished."""
    return [i for i in range(len(source)) if source.key(i) not in folder.done]


def _run(
    source: Source,
    crops_of: Callable[[int], _Found],
    folder: _Folder,
    workers: int,
    max_bad: float,
    told: Callable[[int, int], None],
) -> CropSummary:
    keys = [source.key(i) for i in range(len(source))]
    base, todo = _base(source, keys), _left(source, folder)
    summary = CropSummary(len(keys), before=len(keys) - len(todo))
    told(summary.before, len(keys))
    for done, found in enumerate(in_order(crops_of, todo, workers), summary.before + 1):
        summary.small += found.small
        summary.blurred += found.blurred
        if found.crops:
            folder.add(found.key, _relative(found.key, base), found.crops)
        else:
            folder.append(SKIPPED, [[found.key, found.reason]])
            if found.reason == NO_FACE:
                summary.without_face.append(found.key)
            elif found.reason != LEFT_OUT:
                summary.skipped.append((found.key, found.reason))
                check_skipped(folder.unreadable + len(summary.skipped), len(keys), max_bad, summary.skipped[-1])
        told(done, len(keys))
    summary.faces = folder.faces
    return summary


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
    path = PurePath(os.path.relpath(key, base) if base else key)
    return os.path.join("", *(part for part in path.parts if part not in ("..", ".", path.anchor))) or "photo"
