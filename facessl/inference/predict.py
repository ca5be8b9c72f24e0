"""A trained task on photos: find the faces, cut them as in training, predict, bring the result back to the photo.

A face is cropped as the model's images were (`Augment.crop`): "box" is the detected box times `crop_scale`;
"five_points" are the detector's; a model of "whole" images gets a square around the detected box, as much larger than
the box and as much above it as in its training images (`facessl.inference.framing`). Without `crop` the picture is one
cropped face: all of it is shown, with black beside it if a model of boxes or five points needs a square.

Files, where `out` is given: `<out>/<name>.json`; `<name>.png`, the predictions on the photo; for masks
`<name>.mask.png`, class numbers with a palette (`<name>.mask-2.png` for the second face). The name is that of the
photo, below a folder with its sub-folders. Where it belongs to another photo or to a file that was not written for this
one, -2, -3, ... is added.

All coordinates are pixels of the upright photo (EXIF rotation applied), with the center of the top-left one at
(0, 0). The JSON file has `format`, `photo`, `task`, `width`, `height`, `note` and `faces`, each with `box`,
`score`, `five_points` if the detector has them, and the fields of `Task.describe`; `mask` is the name of its file.
"""

import contextlib
import functools
import glob
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facessl.core.distributed import gathered, own_part, rank
from facessl.core.errors import ConfigError, DataError
from facessl.core.escape import printable
from facessl.core.files import completed, inside, write_picture
from facessl.core.lock import only_writer
from facessl.core.types import Sample
from facessl.data.decode import decode, read_file
from facessl.data.detect import Face, detect, load_detector
from facessl.data.face_square import Frame, from_box
from facessl.data.skipped import ImageError, check_skipped
from facessl.data.sources.folder import Folder
from facessl.inference import prediction_pictures
from facessl.inference.trained_task import Trained, load_trained

FORMAT = "facessl-prediction-1"
#: Side of the square that a model of whole images sees, over the longer side of the face's box, if its training
#: images were not measured (`facessl.inference.framing`): that of `facessl crop`.
MARGIN = 1.3
NO_FACE = "no face found; a picture that is one cropped face needs --no-crop"
#: Photos whose faces wait for a batch are kept decoded; so many pixels of them are enough.
_MAX_WAITING = 50_000_000

Detector = Callable[[np.ndarray], Sequence[Face]]


@dataclass
class Prediction:
    """One photo.

    Attributes:
        photo: its absolute path.
        faces: as in the JSON file, in the detector's order; `mask` is the array (H, W) uint8 where no files are
            written.
        note: why there are none: not readable, or no face found.
        read: whether the photo could be read.
        files: what was written, the JSON file first.
    """

    photo: str
    faces: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    read: bool = True
    files: list[Path] = field(default_factory=list)


@dataclass
class _Photo:
    """A decoded photo whose faces wait for their batch."""

    prediction: Prediction
    name: str
    image: np.ndarray
    faces: Sequence[Face]
    frames: list[Frame]


def predict(
    run: str | Path | Trained,
    photos: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    crop: bool = True,
    margin: float | None = None,
    lift: float | None = None,
    detector: str | Detector = "mtcnn",
    detector_model: str | Path | None = None,
    batch_size: int = 32,
    precision: str = "fp32",
    max_bad: float = 0.05,
    draw: bool = True,
    overwrite: bool = False,
) -> list[Prediction]:
    """Predictions of every face of some photos; the module says how faces are cut, and how files are named.

    `facessl.predict("runs/landmarks", ["photo.jpg"])[0].faces[0]["landmarks"]`

    Args:
        run: run folder of `facessl finetune`, its model.safetensors, or what `load_trained` made of it; the views go
            to the device its weights are on.
        photos: one or several files, and folders whose images are taken at any depth; a photo counts once.
        out: folder to write to; None writes nothing.
        crop: find and cut the faces; False takes each picture as one cropped face.
        margin: of models of whole images: side of the square over the longer side of the face's box; None: as in the
            training images, or `MARGIN` if that was not measured.
        lift: of models of whole images: how far the square's center lies above the box's, in longer sides of the box;
            None: as in the training images, or 0.
        detector: name of a face detector (`facessl.data.detect.detect`), or image (H, W, 3) uint8 -> faces.
        detector_model: model file of a detector that needs one.
        batch_size: faces per forward pass.
        precision: fp32, bf16 or fp16.
        max_bad: fraction of unreadable photos above which it stops.
        draw: where `out` is given, also write the pictures.
        overwrite: take the photo's own name even if that replaces other files (never a photo).

    Returns:
        One per photo in their order, those that could not be read included; of several ranks each has its part.

    Raises:
        CheckpointError: no trained task there.
        DataError: no photo, or less than `max_bad` allows, could be read, or the model needs five points and the
            detector gives none.
        ConfigError: a margin or lift out of range; `out` is a folder that is searched for photos.
    """
    for name, value, low, high in (("margin", margin, 0.1, 10), ("lift", lift, -1, 1)):
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{name} = {value} is out of range: give a number from {low} to {high}")
    trained = run if isinstance(run, Trained) else load_trained(run)
    out = None if out is None else Path(out)
    predictions, names = _listed([photos] if isinstance(photos, str | Path) else photos, out, overwrite)
    total, own = len(predictions), own_part(len(predictions))
    predictions, names = predictions[own], names[own]
    find = detector if crop else None
    if isinstance(find, str):
        load_detector(find, None if detector_model is None else str(detector_model))  # fails before any photo is read
        find = functools.partial(detect, detector=find, model=detector_model)
    cut = functools.partial(frame_of_face, trained, margin=margin, lift=lift)
    with only_writer(out) if out is not None and rank() == 0 else contextlib.nullcontext():
        gathered(None)  # before it has the lock, and after it has left it, no rank writes
        for group in _groups(trained, predictions, names, find, cut, batch_size, max_bad, total):
            raw = _raw(trained, group, batch_size, precision)
            row = itertools.count()
            for photo in group:
                height, width = photo.image.shape[:2]
                described = [
                    _face(face) | trained.task.describe(raw, next(row), frame, height, width)
                    for face, frame in zip(photo.faces, photo.frames, strict=True)
                ]
                if out is None:
                    photo.prediction.faces += described
                else:
                    _write(photo, described, out, trained.name, draw=draw, framed=crop)
        parts = gathered([(photo.photo, photo.note) for photo in predictions if not photo.read])
    skipped = [photo for part in parts for photo in part]
    if skipped and len(skipped) == total:
        raise DataError(f"no photo could be read (the first: {skipped[0][1]})")
    if skipped:
        last, note = skipped[-1]
        check_skipped(len(skipped), total, max_bad, (last, note.removeprefix(str(ImageError(last, "")))))
    return predictions


def frame_of_face(
    trained: Trained, face: Face, height: int, width: int, *, margin: float | None = None, lift: float | None = None
) -> Frame:
    """Return the crop of a detected face of a photo of `height` times `width` pixels (see `predict`)."""
    augment = trained.augment
    if augment.crop == "whole":
        measured = trained.card.get("framing") or {}
        margin = measured.get("margin", MARGIN) if margin is None else margin
        lift = measured.get("lift", 0.0) if lift is None else lift
        box = np.asarray(face.box, np.float64)
        side = max(box[2] - box[0], box[3] - box[1])
        lifted = box - np.array([0, lift, 0, lift]) * side
        return replace(from_box(lifted, trained.image_size, margin * augment.crop_scale), warp=augment.warp)
    if augment.crop == "five_points" and face.five_points is None:
        raise DataError(
            "the model was trained on faces aligned by five points, and this detector finds none: "
            "use --detector mtcnn, or cut the faces yourself and use --no-crop"
        )
    five = None if face.five_points is None else np.asarray(face.five_points)
    sample = Sample(b"", "a face", box=np.asarray(face.box), five_points=five)
    return augment.frame(sample, (height, width, 3), trained.image_size)


# ---- photos and names --------------------------------------------------------------------------------------------


def _listed(photos: Sequence[str | Path], out: Path | None, overwrite: bool) -> tuple[list[Prediction], list[str]]:
    """Every photo once, and the name of its files; "" without `out`."""
    unreadable: list[Prediction] = []
    wished: dict[str, str] = {}
    for given in photos:
        path = Path(given).expanduser()
        if not path.is_dir():
            wished.setdefault(os.path.abspath(path), path.stem)
            continue
        if out is not None and path.resolve() == out.resolve():
            raise ConfigError(f"--out {out} is searched for photos and would fill with pictures: name another folder")
        try:
            folder = Folder(path, cache=False)
        except DataError as error:
            unreadable.append(Prediction(os.path.abspath(path), note=str(error), read=False))
            continue
        for key in (Path(folder.key(i)) for i in range(len(folder))):
            if out is None or out.resolve() not in key.resolve().parents:  # pictures of an earlier call
                wished.setdefault(os.path.abspath(key), key.relative_to(path).with_suffix("").as_posix())
    inputs = {os.path.realpath(photo) for photo in wished}
    names: list[str] = []
    taken: set[str] = set()  # without regard to case, as some file systems compare names
    for photo, name in wished.items():
        if out is None:
            names.append("")
            continue
        # "a.mask.png" is a's mask, and never the picture of a.mask.jpg.
        plain = re.sub(r"\.mask", "_mask", name, flags=re.IGNORECASE)
        candidates = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        names.append(next(n for n in candidates if _free(n, photo, out, taken, inputs, overwrite)))
        taken.add(names[-1].casefold())
    return unreadable + [Prediction(photo) for photo in wished], [""] * len(unreadable) + names


def _free(name: str, photo: str, out: Path, taken: set[str], inputs: set[str], overwrite: bool) -> bool:
    """Whether files of `name` neither meet those of another photo nor replace anything but this photo's own."""
    if name.casefold() in taken or os.path.realpath(out / f"{name}.png") in inputs:
        return False
    file = out / f"{name}.json"
    try:
        saved = json.loads(file.read_text())
    except (OSError, ValueError):
        saved = None
    own = {"format": FORMAT, "photo": printable(photo)}.items()
    if overwrite or (isinstance(saved, dict) and own <= saved.items()):
        return True
    masks = glob.glob(f"{glob.escape(str(out / name))}.mask*.png")
    return not (masks or os.path.lexists(file) or os.path.lexists(out / f"{name}.png"))


# ---- faces -------------------------------------------------------------------------------------------------------


def _groups(
    trained: Trained,
    predictions: Sequence[Prediction],
    names: Sequence[str],
    find: Detector | None,
    cut: Callable[..., Frame],
    batch_size: int,
    max_bad: float,
    total: int,
) -> Iterator[list[_Photo]]:
    """Readable photos, together until they fill a batch of faces; without any face a photo still comes along."""
    group: list[_Photo] = []
    for photo, name in zip(predictions, names, strict=True):
        if not photo.read:
            continue
        try:
            image = decode(read_file(photo.photo), key=photo.photo)
        except ImageError as error:
            photo.read, photo.note = False, str(error)
            bad = sum(not one.read for one in predictions)
            if bad < total:  # else the caller raises
                check_skipped(bad, total, max_bad, (error.key, error.reason))
            continue
        height, width = image.shape[:2]
        if find is None:
            faces: Sequence[Face] = [Face(np.array([-0.5, -0.5, width - 0.5, height - 0.5]), math.nan)]
            frames = [trained.augment.frame_of_picture(height, width, trained.image_size)]
        else:
            faces = find(image)
            frames = [cut(face, height, width) for face in faces]
        photo.note = "" if faces else NO_FACE
        group.append(_Photo(photo, name, image, faces, frames))
        pixels = sum(one.image.shape[0] * one.image.shape[1] for one in group)
        if sum(len(one.faces) for one in group) >= batch_size or pixels > _MAX_WAITING:
            yield group
            group = []
    if group:
        yield group


def _raw(trained: Trained, group: Sequence[_Photo], batch_size: int, precision: str) -> dict[str, np.ndarray]:
    pairs = [(photo.image, frame) for photo in group for frame in photo.frames]
    parts = []
    for start in range(0, len(pairs), batch_size):
        images, frames = zip(*pairs[start : start + batch_size], strict=True)
        parts.append(trained.predict(list(images), list(frames), precision=precision))
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _face(face: Face) -> dict[str, Any]:
    fields: dict[str, Any] = {"box": _rounded(face.box)}
    known = face.score is not None and math.isfinite(face.score)  # a detector of the user's may have none
    fields["score"] = round(float(face.score), 4) if known else None
    if face.five_points is not None:
        fields["five_points"] = [_rounded(point) for point in face.five_points]
    return fields


def _rounded(values: Any) -> list[float]:
    return [round(float(v), 2) for v in values]


# ---- files -------------------------------------------------------------------------------------------------------


def _write(
    photo: _Photo, described: Sequence[dict[str, Any]], out: Path, task: str, *, draw: bool, framed: bool
) -> None:
    """JSON, masks and picture of one photo; fills in its `Prediction`."""
    prediction = photo.prediction
    masks: dict[Path, Image.Image] = {}
    for number, face in enumerate(described, 1):
        prediction.faces.append(dict(face))
        if "mask" in face:
            file = out / f"{photo.name}.mask{f'-{number}' if number > 1 else ''}.png"
            masks[file] = Image.fromarray(face["mask"].astype(np.uint8))
            masks[file].putpalette(
                np.asarray(prediction_pictures.class_colors(len(face["classes"])), np.uint8).tobytes()
            )
            prediction.faces[-1]["mask"] = file.name
    content = {
        "format": FORMAT,
        "photo": printable(prediction.photo),
        "task": task,
        "width": photo.image.shape[1],
        "height": photo.image.shape[0],
        "note": prediction.note,
        "faces": prediction.faces,
    }
    head, picture = inside(out, f"{photo.name}.json"), out / f"{photo.name}.png"
    # First, so that after an interruption the other files are known to belong to this photo.
    with completed(head) as partial:
        partial.write_bytes(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    for file, mask in masks.items():
        with completed(file) as partial:
            mask.save(partial, format="PNG")
    prediction.files = [head, *masks]
    if draw:
        write_picture(
            picture, prediction_pictures.draw(photo.image, [{**face, "framed": framed} for face in described])
        )
        prediction.files.append(picture)
