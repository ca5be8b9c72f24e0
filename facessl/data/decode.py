"""Encoded bytes -> uint8 RGB: the one place that knows JPEG, PNG, WebP, EXIF rotation, limits and corrupt files."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from facessl.core.errors import DataError

#: File name endings (lower case) that sources take for images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
#: Largest image that is decoded, in pixels (Pillow's own limit): the header decides, before memory is taken.
MAX_PIXELS = 178_956_970
#: By how much a JPEG can be reduced in decoding: libjpeg-turbo is fast for these, slower than no scaling for others.
FACTORS = (8, 4, 2)
#: Shortest side in pixels that is still an image of something.
MIN_SIDE = 8

# Only decoders that a face data set needs: Pillow knows formats that run other programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8")
_WHITE = (255, 255, 255)
# Frame headers that carry the size; C4, C8 and CC in the same range are tables.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class ImageError(DataError):
    """One image that cannot be used: skipped and counted by the loaders.

    Attributes:
        key: what a person finds the image by.
        reason: why, in a few words.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"cannot read the image {self.key}: {self.reason}"


#: Height and width of an upright image -> 1, 2, 4 or 8: by how much a JPEG of that size may be reduced in decoding.
Reduction = Callable[[int, int], int]


def decode(data: bytes, *, key: str, min_side: int | None = None, reduction: Reduction | None = None) -> np.ndarray:
    """Decode one image, upright.

    Args:
        data: content of a JPEG, PNG, WebP, BMP or GIF file (the first frame of an animation).
        key: name of the image, for the error.
        min_side: a JPEG may be decoded to 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps this
            many pixels, which is faster; None decodes at full size.
        reduction: the same, decided image by image from its size; it goes before `min_side`. A side of n pixels
            becomes one of n / factor, rounded up.

    Returns:
        (H, W, 3) uint8 RGB, contiguous. EXIF rotation is applied, transparency lies on white, 16-bit values
        are scaled to 8 bits.

    Raises:
        ImageError: not an image, truncated, shorter side below `MIN_SIDE`, more than `MAX_PIXELS`.
    """
    if not data:
        raise ImageError(key, "the file is empty")
    if reduction is None and min_side is not None:
        reduction = _to_min_side(min_side)
    image = _decode_jpeg(data, key, reduction) if data[:3] == b"\xff\xd8\xff" else None
    return _decode_pillow(data, key) if image is None else image


def decode_mask(data: bytes, *, key: str) -> np.ndarray:
    """Decode a class map: the stored numbers, a palette's too, and never its colours.

    Args:
        data: content of a PNG, BMP or GIF file: grey, palette, 1 bit, or RGB(A) whose three channels are equal.
        key: name of the mask, for the error.

    Returns:
        (H, W) uint8.

    Raises:
        ImageError: not such a file, a JPEG (its numbers are not those that were stored), colours, numbers above 255.
    """
    if not data:
        raise ImageError(key, "the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        raise ImageError(key, "a mask cannot be a JPEG, which changes class numbers: store it as PNG")
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "BMP", "GIF"))
        values = np.asarray(image)
    except Exception as error:  # as in _decode_pillow
        raise ImageError(key, f"no PNG of class numbers ({error})") from None
    if values.ndim == 3 and values.shape[2] >= 3:
        if (values[..., :3] != values[..., :1]).any():
            raise ImageError(key, "it holds colours, not class numbers: store it as a grey or palette PNG")
        values = values[..., 0]
    if values.ndim != 2:
        raise ImageError(key, f"mode {image.mode} holds no class numbers: store it as a grey or palette PNG")
    if values.max() > 255:
        raise ImageError(key, f"the class number {values.max()} does not fit into 8 bits")
    return np.ascontiguousarray(values, np.uint8)


def stored_size(data: bytes, *, key: str) -> tuple[int, int]:
    """Height and width that `decode` would give, from the header alone. Raises ImageError where there is none."""
    header = _jpeg_header(data) if data[:3] == b"\xff\xd8\xff" else None
    if header is None:
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height, orientation = *image.size, image.getexif().get(0x0112, 1)
        except Exception:  # as in _decode_pillow
            raise ImageError(key, "no readable header") from None
    else:
        height, width, orientation = header
    return (width, height) if orientation >= 5 else (height, width)


def to_rgb(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """A path, PIL image or array -> (H, W, 3) uint8 RGB, upright, as `decode` gives it.

    Args:
        image: path of an image file; PIL image of any mode; uint8 array (H, W), (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises:
        ImageError: a file that cannot be read or decoded, or an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise ImageError(
                f"array {image.shape} {image.dtype}", "an array must be uint8 (H, W), (H, W, 3) RGB or (H, W, 4) RGBA"
            )
        image = image if image.ndim == 3 and image.shape[2] == 3 else _to_array(Image.fromarray(image))
        _check_size(image.shape[1], image.shape[0], f"array {image.shape}")
        return np.ascontiguousarray(image)
    if isinstance(image, Image.Image):
        return _finish(image, getattr(image, "filename", "") or "of PIL")
    return decode(read_file(image), key=str(image))


def read_file(path: str | Path) -> bytes:
    """Content of an image file. ImageError where it is missing or cannot be opened."""
    try:
        with open(path, "rb", buffering=0) as file:  # a buffer costs a quarter of the time and is used for nothing
            return file.read()
    except OSError as error:
        raise ImageError(str(path), error.strerror or str(error)) from None


def _to_min_side(min_side: int) -> Reduction:
    return lambda height, width: next((f for f in FACTORS if min(height, width) >= f * min_side), 1)


def _decode_jpeg(data: bytes, key: str, reduction: Reduction | None) -> np.ndarray | None:
    """The fast path; None where Pillow has to look (CMYK, damaged, unusual)."""
    header = _jpeg_header(data)
    if header is None:
        return None
    height, width, orientation = header
    _check_size(width, height, key)
    upright = (width, height) if orientation >= 5 else (height, width)
    factor = 1 if reduction is None else reduction(*upright)
    try:
        # With min_factor libjpeg-turbo takes the largest reduction that keeps these sizes.
        image = simplejpeg.decode_jpeg(
            data, min_height=-(-height // factor), min_width=-(-width // factor), min_factor=factor
        )
    except ValueError:
        return None
    return image if orientation == 1 else _upright(image, orientation)


def _jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and EXIF orientation (1-8); None where Pillow has to look (CMYK, damaged, unusual)."""
    position, tagged = 2, False
    while data[position : position + 1] == b"\xff" and position + 9 < len(data):
        marker = data[position + 1]
        if marker in _START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            return (height, width, _orientation(data) if tagged else 1) if components in (1, 3) else None
        if marker == 0xDA:  # pixels begin before any frame header
            return None
        tagged |= marker == 0xE1  # EXIF or XMP
        position += 1 if marker == 0xFF else 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _orientation(data: bytes) -> int:
    """EXIF orientation (1-8) as Pillow finds it, which takes longer than decoding a small JPEG."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in _decode_pillow
        try:
            found = Image.open(io.BytesIO(data), formats=("JPEG",)).getexif().get(0x0112, 1)
        except Exception:
            found = 1
    return found if found in range(1, 9) else 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF orientation 1-8 of an (H, W, 3) image."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _decode_pillow(data: bytes, key: str) -> np.ndarray:
    # Pillow warns about damage and large images on stderr; here both are either accepted or an error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            found = re.search(r"\d+", str(error))
            pixels = f"{int(found[0]):,} pixels are" if found else "that is"
            raise ImageError(key, f"{pixels} more than {MAX_PIXELS:,}: scale it down first") from None
        except Exception:  # Pillow's parsers raise nearly any class on damaged bytes
            if data.startswith(_MAGIC):
                raise ImageError(key, "its header is damaged or cut off") from None
            raise ImageError(key, f"not a JPEG, PNG, WebP, BMP or GIF (begins with {data[:12]!r})") from None
        return _finish(image, key)


def _finish(image: Image.Image, key: str) -> np.ndarray:
    """Load a lazily opened PIL image and bring it to upright 8-bit RGB."""
    _check_size(*image.size, key)
    try:
        image.load()
        with contextlib.suppress(Exception):  # a damaged EXIF block: as it is stored
            image = ImageOps.exif_transpose(image)
        return _to_array(image)
    except Exception as error:  # as above: struct.error, SyntaxError, zlib.error, IndexError, ...
        raise ImageError(key, f"damaged ({error})") from None


def _to_array(image: Image.Image) -> np.ndarray:
    """PIL image of any mode -> (H, W, 3) uint8 RGB."""
    if image.mode.startswith("I;16"):
        # convert("RGB") would clip 16-bit grey at 255.
        grey = ((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)  # (H, W) -> (H, W, 3)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, _WHITE)
        image.paste(layer, mask=layer.getchannel("A"))
    return np.array(image.convert("RGB"))


def _check_size(width: int, height: int, key: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(key, f"{width}x{height} is more than {MAX_PIXELS:,} pixels: scale it down first")
    if min(width, height) < MIN_SIDE:
        raise ImageError(key, f"{width}x{height} is too small: the shorter side must be {MIN_SIDE} pixels or more")
