"""Faces in photos that are not cropped: one question to any of the detectors in `data/detectors`.

A detector is a class named like its file. It is made from a model file (None if the user names none) and a device,
has `MIN_SCORE`, and is called as `MTCNN` is.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from facessl.core import plugins

#: Smallest face that is looked for, as a fraction of the long side.
SMALLEST = 0.04
#: A face as `facessl crop` stores it by default: side in pixels, side over the longer side of its box, JPEG quality.
CROP_SIZE, CROP_MARGIN, CROP_QUALITY = 256, 1.3, 95


@dataclass(frozen=True, eq=False)
class Face:
    """One face of an image."""

    box: np.ndarray  # (4,) float32 left, top, right, bottom in pixels, brows to chin; may reach outside the image
    score: float  # how sure, 0 to 1; not comparable between the detectors
    five_points: np.ndarray | None = None  # (5, 2) float32 pixels as in `Sample.five_points`


def detect(image: np.ndarray, **options: Any) -> list[Face]:
    """The faces of one image; see `detect_all`."""
    return detect_all([image], **options)[0]


def detect_all(
    images: Sequence[np.ndarray],
    *,
    detector: str = "mtcnn",
    model: str | Path | None = None,
    min_score: float | None = None,
    smallest: float = SMALLEST,
    device: str = "cpu",
) -> list[list[Face]]:
    """The faces of several images at once; an image in which none is found is tried on its sides and upside down, too.

    Args:
        images: (H, W, 3) uint8 RGB each, of any sizes.
        detector: name of a file in `data/detectors`.
        model: path of the detector's model file, where it needs one.
        min_score: least score of a face; None: the detector's `MIN_SCORE`.
        smallest: smallest face that MTCNN looks for, as a fraction of the long side; half takes four times as long.
        device: where MTCNN runs.

    Returns:
        The faces of each image, the largest and surest first (side times score).

    Raises:
        UnknownName: there is no such detector.
        ConfigError: the model file is missing, cannot be read, or belongs to another detector.
    """
    find = load_detector(detector, None if model is None else str(model), device)
    ask = functools.partial(find, min_score=find.MIN_SCORE if min_score is None else min_score, smallest=smallest)
    rows = ask(images)
    for turns in (1, 3, 2):  # counter-clockwise
        if missed := [index for index, faces in enumerate(rows) if not len(faces)]:
            turned = ask([np.ascontiguousarray(np.rot90(images[index], turns)) for index in missed])
            for index, faces in zip(missed, turned, strict=True):
                rows[index] = _turned_back(faces, turns, images[index].shape[:2])
    return [
        [
            Face(row[:4].astype(np.float32), float(row[4]), row[5:].reshape(5, 2).astype(np.float32))
            for row in sorted(faces, key=lambda row: -max(row[2] - row[0], row[3] - row[1]) * row[4])
        ]
        for faces in rows
    ]


def largest_face(image: np.ndarray) -> bytes | None:
    """The largest face of an image (H, W, 3) uint8 as the JPEG that `facessl crop` writes; None without a face."""
    from facessl.data.face_square import from_box  # imports torch

    faces = detect(image)
    return jpeg(from_box(faces[0].box, CROP_SIZE, CROP_MARGIN).image(image, "reflect")) if faces else None


def jpeg(crop: np.ndarray, quality: int = CROP_QUALITY) -> bytes:
    """An (H, W, 3) uint8 crop as a JPEG without chroma subsampling."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(crop), quality=quality, colorspace="RGB", colorsubsampling="444")


@functools.lru_cache(maxsize=2)
def load_detector(name: str, model: str | None, device: str = "cpu") -> Any:
    """The detector that `detect_all` uses; see there."""
    return plugins.find("data.detectors", name)(model, device)


def _turned_back(rows: np.ndarray, turns: int, shape: tuple[int, int]) -> np.ndarray:
    """Rows (n, 15) of an image that was turned by quarters, in pixels of the image (height, width) before."""
    points = np.concatenate([rows[:, :4], rows[:, 5:]], 1).reshape(len(rows), 7, 2)
    height, width = shape
    x, y = points[..., 0], points[..., 1]
    points = np.stack(
        {1: (width - 1 - y, x), 2: (width - 1 - x, height - 1 - y), 3: (y, height - 1 - x)}[turns], axis=-1
    )
    low, high = points[:, :2].min(1), points[:, :2].max(1)
    return np.concatenate([low, high, rows[:, 4:5], points[:, 2:].reshape(len(rows), 10)], 1).astype(np.float32)
