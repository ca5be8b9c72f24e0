"""Faces in photos that are not cropped.

The default detector is the LBP cascade for frontal faces that ships with scikit-image, so that nothing is downloaded.
It misses turned and covered faces; a YuNet model file that the user names gives five points as well. On faces that
chose none of the numbers below it found (IoU with the landmarks' box above 0.4) 38 of 40 synthetic frontal ones, 35 of
40 of Helen and 28 of 40 of AFW.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facessl.core.errors import ConfigError

#: Long side in pixels, border included, at which the cascade looks for faces; smaller images are not enlarged.
LONG_SIDE = 640
#: Border around the image as a fraction of its sides: a cropped face's window reaches beyond its picture.
BORDER = 0.12
#: Smallest face that the cascade looks for, as a fraction of the long side; its own window of 24 pixels is a limit.
SMALLEST, SMALLEST_PIXELS = 0.1, 24
#: Left, top, right, bottom of the box around the 68 landmarks (brows to chin), relative to the centre of the cascade's
#: square window and in units of its side. Means over 100 synthetic faces: -0.43, -0.27, 0.41, 0.62; over 180 photos of
#: Helen, AFW and YouTube Faces: -0.44, -0.30, 0.46, 0.57. Against the landmarks' box this one has a mean IoU of 0.76 on
#: both, the bare window 0.54 and 0.60.
BOX = (-0.44, -0.29, 0.44, 0.59)
#: Number of agreeing windows of the cascade at which the score is 0.5; it is n / (n + HALF).
HALF = 6
#: Least score of a face, of the cascade and of YuNet.
MIN_SCORE, MIN_SCORE_YUNET = 0.5, 0.6
#: Windows belong to one face above this intersection over union; a face is another one's shadow above this fraction of
#: the smaller box.
_SAME, _SHADOW = 0.4, 0.3


@dataclass(frozen=True, eq=False)
class Face:
    """One face of an image.

    Attributes:
        box: (4,) float32 left, top, right, bottom in pixels, brows to chin; may reach outside the image.
        score: how sure, 0 to 1; not comparable between the detectors.
        five_points: (5, 2) float32 pixels as in `Sample.five_points`, where the detector gives them.
    """

    box: np.ndarray
    score: float
    five_points: np.ndarray | None = None


def detect(
    image: np.ndarray,
    *,
    yunet: str | Path | None = None,
    min_score: float | None = None,
    smallest: float = SMALLEST,
) -> list[Face]:
    """The faces of an image, the largest and surest first (side times score).

    Args:
        image: (H, W, 3) uint8 RGB.
        yunet: path of a YuNet model (.onnx, for OpenCV's FaceDetectorYN); None: the cascade.
        min_score: least score of a face; None: `MIN_SCORE`, or `MIN_SCORE_YUNET`.
        smallest: smallest face that the cascade looks for, as a fraction of the long side; half takes four times as
            long. Less than 0.05 finds no more.

    Returns:
        An empty list where no face is found: what to do then is the caller's choice.

    Raises:
        ConfigError: the model file is missing or cannot be read.
    """
    if yunet is None:
        faces = _cascade(image, MIN_SCORE if min_score is None else min_score, smallest)
    else:
        faces = _yunet(image, str(yunet), MIN_SCORE_YUNET if min_score is None else min_score)
    return sorted(faces, key=lambda face: -_side(face.box) * face.score)


def _side(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))


def _cascade(image: np.ndarray, min_score: float, smallest: float) -> list[Face]:
    """Windows of the image and of its mirror image, grouped; the mirror image steadies the count."""
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    border = round(BORDER * max(height, width))
    zoom = min(1.0, LONG_SIDE / (max(height, width) + 2 * border))
    if zoom < 1:
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        grey, border = cv2.resize(grey, size, interpolation=cv2.INTER_AREA), round(border * zoom)
    padded = cv2.copyMakeBorder(grey, border, border, border, border, cv2.BORDER_REPLICATE)
    least = max(SMALLEST_PIXELS, round(smallest * max(grey.shape)))
    windows = _windows(padded, least)
    mirrored = _windows(np.ascontiguousarray(padded[:, ::-1]), least)
    mirrored[:, 0] = padded.shape[1] - mirrored[:, 0] - mirrored[:, 2]
    faces: list[Face] = []
    for window, count in _grouped(np.concatenate([windows, mirrored])):
        x, y, side = window
        centre = (np.array([x, y]) + side / 2 - border) / zoom - 0.5
        box = np.tile(centre, 2) + np.array(BOX) * side / zoom
        score = count / (count + HALF)
        if score >= min_score and not any(_overlap(box, face.box) > _SHADOW for face in faces):
            faces.append(Face(box.astype(np.float32), score))
    return faces


@functools.lru_cache(maxsize=1)
def _load_cascade() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def _windows(grey: np.ndarray, least: int) -> np.ndarray:
    """(n, 3) left, top, side of every window of (H, W) uint8 that the cascade takes for a face, in a fixed order."""
    most = min(grey.shape)
    if most < least:
        return np.zeros((0, 3))
    found = _load_cascade().detect_multi_scale(
        img=grey / 255,
        scale_factor=1.1,
        step_ratio=1,
        min_size=(least, least),
        max_size=(most, most),
        min_neighbor_number=1,
        intersection_score_threshold=2,  # never reached: each window is left by itself
    )
    return np.array(sorted((w["c"], w["r"], w["width"]) for w in found), np.float64).reshape(-1, 3)


def _grouped(windows: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Median window and number of each group of windows that overlap one another, the heaviest group first."""
    group, before = np.arange(len(windows)), None
    close = _iou(windows) > _SAME
    while before is None or (group != before).any():
        before = group
        group = np.array([before[row].min() for row in close], int)
    groups = [(np.median(windows[group == g], axis=0), int((group == g).sum())) for g in np.unique(group)]
    return sorted(groups, key=lambda item: (-item[1] * item[0][2], *item[0]))


def _iou(windows: np.ndarray) -> np.ndarray:
    """(n, n) intersection over union of squares (n, 3)."""
    low, side = windows[:, :2], windows[:, 2]
    high = low + side[:, None]
    inner = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(0).prod(-1)
    return inner / (side[:, None] ** 2 + side**2 - inner)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over the smaller of two boxes (4,)."""
    inner = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(inner / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def _yunet(image: np.ndarray, path: str, min_score: float) -> list[Face]:
    """What OpenCV's FaceDetectorYN finds. It names the person's right eye first: the one on the image's left."""
    height, width = image.shape[:2]
    detector = _load_yunet(path)
    detector.setInputSize((width, height))
    detector.setScoreThreshold(min_score)
    _, rows = detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    faces = []
    for row in np.zeros((0, 15), np.float32) if rows is None else rows:
        x, y, w, h = row[:4]
        faces.append(Face(np.array([x, y, x + w, y + h], np.float32), float(row[14]), row[4:14].reshape(5, 2).copy()))
    return faces


@functools.lru_cache(maxsize=1)
def _load_yunet(path: str) -> Any:
    if not Path(path).is_file():
        raise ConfigError(f"the face detector's model {path} does not exist: name a YuNet .onnx file, or leave it out")
    try:
        return cv2.FaceDetectorYN.create(path, "", (320, 320))
    except cv2.error as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(f"the face detector's model {path} is not one that OpenCV reads as YuNet: {reason}") from None
