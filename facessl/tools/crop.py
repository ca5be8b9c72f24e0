"""Photos -> a folder of face crops, with a table that names the photo of each. The square: `data/face_square`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypedDict

import cv2
import numpy as np
from PIL import Image

from facessl.core.distributed import ranks
from facessl.core.errors import ConfigError, DataError
from facessl.core.schema import misfit
from facessl.data.decode import pixels, to_rgb
from facessl.data.detect import Face, detect, jpeg, load_detector
from facessl.data.face_square import Frame, from_box, from_eyes, from_five_points
from facessl.data.index import cache_file
from facessl.data.location import absolute
from facessl.data.skipped import ImageError, check_skipped
from facessl.data.source import Source
from facessl.tools.crop_output import COLUMNS, LEFT_OUT, NO_FACE, SETTINGS, Crop, CropFolder
from facessl.tools.jobs import in_order, open_with_positions
from facessl.tools.options import OF_ONE_FACE, CropOptions, output_settings, read_options
from facessl.tools.phash import phash
from facessl.tools.ranks import Result, over_ranks, wait_for_others

#: Side of the square around a face's box in which its sharpness is measured.
_SHARPNESS_SIDE = 128


@dataclass
class CropSummary:
    """Result of `crop`.

    Attributes:
        photos: number of photos in the source.
        new_photos: number of photos that this call processed.
        faces: number of crops in the folder.
        new_faces: number of crops that this call added.
        duplicates: number of faces left out as near-duplicates, by all calls.
        small: number of faces that this call left out for their size.
        blurred: number of faces that this call left out for their sharpness.
        without_face: photos in which this call found no face.
        skipped: (photo, reason) of unreadable photos of this call.
        finished: False on a rank that is done before others.
    """

    photos: int
    new_photos: int = 0
    faces: int = 0
    new_faces: int = 0
    duplicates: int = 0
    small: int = 0
    blurred: int = 0
    without_face: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    finished: bool = True


def crop(
    source: str | os.PathLike[str] | Source,
    out: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> CropSummary:
    """Find the faces of every photo, cut squares around them, and write them below `out` in the source's sub-folders.

    `facessl.crop("photos/", "faces/", align="eyes").faces`

    `out` also gets faces.csv (`facessl.tools.crop_output.COLUMNS`; itself a source, `imagelist:OUT/faces.csv`),
    skipped.csv (photos without a crop, and why), with `dedupe` duplicates.csv (photo, the crop that its face repeats,
    distance) and crop.json (these settings). Called again, it continues after a stop. A photo is mirrored where
    a crop reaches beyond it.
    Under torchrun or srun the ranks share the work; the one that ends last has the numbers of all, the others none.

    Args:
        source: photos, `NAME:PATH?option=value` or a folder.
        out: a folder that is new, empty, or from an earlier call with the same settings.
        progress: called with the numbers of photos done and in total, first with those of earlier calls.
        options: fields of `facessl.tools.options.CropOptions`.

    Raises:
        UnknownName: no such option; the nearest is given.
        ConfigError: a stream, settings that cannot work, or an `out` that is in use or has something else in it.
        DataError: the source or more than `max_bad` of its photos cannot be read, `out` cannot be written, or a process
            died.
    """
    resolved = read_options(CropOptions, "crop", options).resolved()
    load_detector(resolved.detector, resolved.detector_model)  # a missing model is reported before any photo
    settings, opened = output_settings(resolved), open_with_positions(source)
    cropper, report = _Cropper(opened, resolved), progress or (lambda done, total: None)

    def write(path: Path, crops_of: Callable[[int], Result], workers: int) -> CropSummary:
        return _run(opened, crops_of, CropFolder(path, settings), workers, resolved.max_bad, report)

    written = over_ranks(
        out,
        opened,
        SETTINGS,
        "crop",
        settings,
        lambda path: _left(opened, CropFolder(path, settings)),
        cropper,
        write,
        valid=_is_record,
        failed=lambda values: values["reason"] not in ("", NO_FACE, LEFT_OUT),
        workers=resolved.workers,
        progress=report,
    )
    return written or CropSummary(len(opened), finished=False)


def crop_face(image: str | Path | Image.Image | np.ndarray, **options: Any) -> np.ndarray | None:
    """The face that `facessl.crop` cuts out of a photo, the largest and surest one, without JPEG compression.

    `backbone.preprocess(facessl.crop_face("photo.jpg"))`

    Args:
        image: path, PIL image or (H, W, 3) uint8 RGB array.
        options: size, margin, align, template, detector, detector_model, min_score and smallest, as fields of
            `facessl.tools.options.CropOptions`; give those that the training images were cropped with.

    Returns:
        (size, size, 3) uint8 RGB, 256 pixels by default; None where no face is found.

    Raises:
        UnknownName: no such option; the nearest is given.
        ConfigError: settings that cannot work.
        DataError: the image cannot be read.
    """
    resolved = read_options(CropOptions, "crop_face", options, OF_ONE_FACE).resolved()
    photo = to_rgb(image)
    faces = _faces(photo, resolved)
    return _frame(faces[0], resolved).image(photo, "reflect") if faces else None


def cached_crops(
    spec: str, *, workers: int = 0, max_bad: float = 0.05, progress: Callable[[int, int], None] | None = None
) -> tuple[str, CropSummary | None]:
    """Crop a source's photos with the default options into the user's cache folder, unless they are there.

    A source that has changed gets other crops. Ranks of one machine share the work, and each returns when all of it is
    done.

    Returns the source of the crops and a summary; `spec` itself and None for a folder that `crop` wrote.
    ConfigError: as `crop`, or ranks on several machines. DataError: as `crop`, or no photo has a face.
    """
    spec = absolute(spec)
    opened = open_with_positions(spec)
    root = getattr(opened, "root", None)
    if root is not None and (Path(root) / SETTINGS).is_file():
        return spec, None
    world, local = ranks()
    if world > local:
        raise ConfigError(
            "photos cannot be cropped by ranks on several machines, which may not see the same cache folder: run "
            "`facessl crop` into a folder that all of them see, and name that"
        )
    out = cache_file("crops", spec, opened.fingerprint(), repr(CropOptions())).with_suffix("")
    out.parent.mkdir(parents=True, exist_ok=True)
    while not (summary := crop(opened, out, workers=workers, max_bad=max_bad, progress=progress)).finished:
        wait_for_others(out)
    if not summary.faces:
        raise DataError(f"no face was found in the {summary.photos} photos of {spec}: name photos of people")
    return str(out), summary


def sharpness(image: np.ndarray, box: np.ndarray) -> float:
    """Variance of the Laplacian of the face in `box` (4,) of an image (H, W, 3) uint8, resized to 128 pixels.

    Medians of 40 faces: 370 in CelebAMask-HQ, 65 in UTKFace; 4 in both after a Gaussian blur with a sigma of 4.
    """
    face = from_box(box, _SHARPNESS_SIDE).image(image, "reflect")
    return float(cv2.Laplacian(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


class _Record(TypedDict):
    """Crops of a photo as plain values."""

    reason: str  # why it has no crop
    small: int  # faces left out
    blurred: int
    rows: list[tuple[Any, list[float]]]  # hash and numbers of each crop


def _is_record(values: Any, images: int) -> bool:
    """Whether `values` are a `_Record` of `images` crops."""
    if misfit(values, _Record) or values.keys() != _Record.__annotations__.keys() or len(values["rows"]) != images:
        return False
    return all(
        type(value) is int and 0 <= value < 1 << 64 and len(numbers) == len(COLUMNS) - 3
        for value, numbers in values["rows"]
    )


class _Cropper:
    """One photo -> its crops, as `_Record` and the encoded images. Runs in any process."""

    def __init__(self, source: Source, options: CropOptions) -> None:
        self.source, self.options = source, options

    def __call__(self, index: int) -> Result:
        s, crops, small, blurred = self.options, [], 0, 0
        try:
            image = pixels(self.source[index])
        except ImageError as error:
            return {"reason": error.reason, "small": 0, "blurred": 0, "rows": []}, []
        faces = _faces(image, s)
        for face in faces if s.all_faces else faces[:1]:
            size, sharp = float(max(face.box[2:] - face.box[:2])), sharpness(image, face.box)
            if size < s.min_size:
                small += 1
            elif sharp < s.min_sharpness:
                blurred += 1
            else:
                crops.append(self._crop(image, face, size, sharp))
        reason = "" if crops else LEFT_OUT if faces else NO_FACE
        values = {"reason": reason, "small": small, "blurred": blurred, "rows": [crop[1:] for crop in crops]}
        return values, [crop.data for crop in crops]

    def _crop(self, image: np.ndarray, face: Face, size: float, sharp: float) -> Crop:
        s, frame = self.options, _frame(face, self.options)
        crop = frame.image(image, "reflect")
        if s.format == "jpg":
            data = jpeg(crop, s.quality)
        else:
            data = cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))[1].tobytes()
        numbers = [*face.box.tolist(), face.score, size, sharp, *frame.matrix[:2].ravel().tolist()]
        return Crop(data, phash(crop), numbers)


def _faces(image: np.ndarray, s: CropOptions) -> list[Face]:
    """The faces of a photo (H, W, 3) uint8, the largest and surest first."""
    return detect(image, detector=s.detector, model=s.detector_model, min_score=s.min_score, smallest=s.smallest)


def _frame(face: Face, s: CropOptions) -> Frame:
    """The square of a face, as resolved options say."""
    points = face.five_points
    assert s.margin is not None
    if s.align == "none":
        return from_box(face.box, s.size, s.margin)
    if points is None:
        raise ConfigError(f"align={s.align} needs five points, which the detector {s.detector} does not give: use none")
    if s.align == "eyes":
        return from_eyes(face.box, points, s.size, s.margin)
    return from_five_points(points, s.size, s.template, s.margin)


def _left(source: Source, folder: CropFolder) -> list[int]:
    """Positions of the photos that are not finished."""
    return [i for i in range(len(source)) if source.key(i) not in folder.done]


def _run(
    source: Source,
    crops_of: Callable[[int], Result],
    folder: CropFolder,
    workers: int,
    max_bad: float,
    report: Callable[[int, int], None],
) -> CropSummary:
    keys = [source.key(i) for i in range(len(source))]
    base, todo, before = _base(source, keys), _left(source, folder), folder.faces
    summary = CropSummary(len(keys), new_photos=len(todo))
    report(len(keys) - len(todo), len(keys))
    for number, (record, images) in enumerate(in_order(crops_of, todo, workers)):
        key, reason = keys[todo[number]], record["reason"]
        summary.small += record["small"]
        summary.blurred += record["blurred"]
        if images:
            crops = [Crop(image, *row) for image, row in zip(images, record["rows"], strict=True)]
            folder.add(key, _relative(key, base), crops)
        else:
            if reason == NO_FACE:
                summary.without_face.append(key)
            elif reason != LEFT_OUT:
                summary.skipped.append((key, reason))
                check_skipped(len(summary.skipped), len(keys), max_bad, summary.skipped[-1])
            folder.skip(key, reason)
        report(len(keys) - len(todo) + number + 1, len(keys))
    summary.faces, summary.new_faces, summary.duplicates = folder.faces, folder.faces - before, folder.duplicates
    return summary


def _base(source: Source, keys: list[str]) -> str:
    """Folder to which the crops' sub-folders are relative."""
    if getattr(source, "root", None) is not None:
        return str(source.root)  # type: ignore[attr-defined]
    try:
        return os.path.commonpath([os.path.dirname(key) for key in keys])
    except ValueError:  # absolute and relative names, or several drives
        return ""


def _relative(key: str, base: str) -> str:
    """Path of a photo relative to `base`, never outside it."""
    path = PurePath(os.path.relpath(key, base) if base else key)
    return "/".join(part for part in path.parts if part not in ("..", ".", path.anchor)) or "photo"
