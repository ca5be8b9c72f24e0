"""How the training images frame their faces, so that `predict` shows a model photos as it was trained on."""

import math
from typing import Any

import numpy as np

from facessl.data.decode import ImageError
from facessl.data.detect import detect
from facessl.data.loader import pixels
from facessl.data.source import Source

#: Images that are looked at, and faces below which their medians are not used.
IMAGES, FEWEST = 64, 5
#: Smallest face that is looked for, as a fraction of the long side: the images are of one face each.
_SMALLEST = 0.2


def measure(source: Source) -> dict[str, Any]:
    """Where the default detector finds the faces of images spread over a source: medians over those with a face.

    Margin and lift are 1.03 and 0.12 for RAF-DB's aligned images, 1.12 and 0.08 for UTKFace's, 1.67 and 0.24 for
    CelebAMask-HQ, 2.10 and 0.31 for CelebA's aligned ones (50 images each).

    Returns:
        `faces` and `images`, their numbers, and where there are `FEWEST` faces `margin`, the side of the image (that of
        a square of its area) over the longer side of the face's box, and `lift`, how far the middle of the image lies
        above that of the box, in longer sides of the box.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, min(IMAGES, len(source))).round().astype(int)).tolist()
    found = []
    for index in chosen:
        try:
            image = pixels(source[index])
        except ImageError:
            continue
        for face in detect(image, smallest=_SMALLEST)[:1]:
            (height, width), (left, top, right, bottom) = image.shape[:2], face.box.tolist()
            side = max(right - left, bottom - top)
            found.append((math.sqrt(width * height) / side, (top + bottom - (height - 1)) / (2 * side)))
    told: dict[str, Any] = {"faces": len(found), "images": len(chosen)}
    if len(found) >= FEWEST:
        told["margin"], told["lift"] = np.median(found, axis=0).round(3).tolist()
    return told


def sentence(framing: dict[str, Any]) -> str:
    """What `measure` found, for the terminal."""
    seen = f"faces found in {framing['faces']} of {framing['images']} training images"
    if "margin" not in framing:
        return f"{seen}: too few to measure how they are framed, so predict will use its own --margin and --lift"
    margin, lift = framing["margin"], framing["lift"]
    return (
        f"{seen}: an image is {margin:.2f} times as large as the face's box, its middle {lift:.2f} boxes above that of "
        f"the box; predict will crop alike (--margin {margin:.2f} --lift {lift:.2f})"
    )
