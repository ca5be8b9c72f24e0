"""A face of a photo as `facessl crop` stores it."""

from __future__ import annotations

import numpy as np
import simplejpeg

from facessl.data.crop_geometry import from_box
from facessl.data.detect import detect

#: What `facessl crop` does by default: side in pixels, side over the longer side of the face's box, JPEG quality.
SIZE, MARGIN, QUALITY = 256, 1.3, 95


def jpeg(crop: np.ndarray, quality: int = QUALITY) -> bytes:
    """An (H, W, 3) uint8 crop as a JPEG without chroma subsampling."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(crop), quality=quality, colorspace="RGB", colorsubsampling="444")


def face_crop(image: np.ndarray) -> bytes | None:
    """The largest face of an image (H, W, 3) uint8 as the JPEG that `facessl crop` writes; None without a face."""
    faces = detect(image)
    return jpeg(from_box(faces[0].box, SIZE, MARGIN).image(image, "reflect")) if faces else None
