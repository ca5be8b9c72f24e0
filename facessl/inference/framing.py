"""Framing of the faces in the training images, so that `predict` crops photos alike."""

import math
from typing import Any

import numpy as np

from facessl.data.decode import pixels
from facessl.data.detect import detect
from facessl.data.skipped import ImageError
from facessl.data.source import Source

#: Images that are looked at, and faces below which their medians are not used.
IMAGES, FEWEST = 64, 5
#: Smallest face that is looked for, as a fraction of the long side: the images are of one face each.
_SMALLEST = 0.2


def measure(source: Source) -> dict[str, Any]:
    """Measure how images spread over a source frame their faces: medians over those in which one is detected.

    Margin and lift are 1.03 and 0.12 for RAF-DB's aligned images, 1.12 and 0.08 for UTKFace's, 1.67 and 0.24 for
    CelebAMask-HQ, 2.10 and 0.31 for CelebA's aligned ones (50 images each).

    Returns:
        `faces` and `images`, their numbers, and from `FEWEST` faces on `margin`, the side of the image (that of
        a square of its area) over the longer side of the face's box, and `lift`, how far the middle of the image lies
        above that of the box, in longer sides of the box.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, min(IMAGES, len(source))).round().astype(int)).tolist()
    measured = []
    for index in chosen:
        try:
            image = pixels(source[index])
        except ImageError:
            continue
        for face in detect(image, smallest=_SMALLEST)[:1]:
            (height, width), (left, top, right, bottom) = image.shape[:2], face.box.tolist()
            side = max(right - left, bottom - top)
            measured.append((math.sqrt(width * height) / side, (top + bottom - (height - 1)) / (2 * side)))
    framing: dict[str, Any] = {"faces": len(measured), "images": len(chosen)}
    if len(measured) >= FEWEST:
        framing["margin"], framing["lift"] = np.median(measured, axis=0).round(3).tolist()
    return framing


def sentence(framing: dict[str, Any]) -> str:
    """Return the result of `measure` as a sentence for the terminal."""
    seen = f"faces found in {framing['faces']} of {framing['images']} training images"
    if "margin" not in framing:
        return f"{seen}: too few to measure how they are framed, so predict will use its own --margin and --lift"
    margin, lift = framing["margin"], framing["lift"]
    return (
        f"{seen}: an image is {margin:.2f} times as large as the face's box, its middle {lift:.2f} boxes above that of "
        f"the box; predict will crop alike (--margin {margin:.2f} --lift {lift:.2f})"
    )
