"""Encoded bytes -> uint8 RGB: the one place that knows JPEG, PNG, WebP, EXIF rotation, limits and corrupt files."""

import contextlib
import io
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, features

from facessl.core.errors import DataError, PluginError
from facessl.core.files import read_regular
from facessl.core.types import Sample
from facessl.data.skipped import MAX_FILE, MAX_PIXELS, ImageError, check_size, unreadable

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
    _HEIF = True
except ImportError:
    _HEIF = False
_AVIF = features.check("avif")

#: File name endings (lower case) that sources take for images.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".jfif", ".jpe", ".gif", ".tif", ".tiff"),
    *((".avif",) if _AVIF else ()),
    *((".heic", ".heif") if _HEIF else ()),
)
#: Endings of other pictures, which a folder says that it leaves out.
OTHER_EXTENSIONS = tuple(
    {
        *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jxr", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
        *(".orf", ".raf", ".rw2", ".pef", ".srw", ".raw", ".tga", ".ppm", ".pgm", ".pnm", ".exr", ".svg", ".ico"),
    }.difference(EXTENSIONS)
)
#: "use" takes the decodable part of a damaged JPEG; otherwise it counts as unreadable.
DAMAGED = os.environ.get("FACESSL_DAMAGED", "refuse")
#: By how much a JPEG can be reduced in decoding: libjpeg-turbo is fast for these, slower than no scaling for others.
FACTORS = (8, 4, 2)

# Only decoders that a face data set needs: Pillow knows formats that run other programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if _AVIF else []), *(["HEIF"] if _HEIF else []))
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")
_HEIC = re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL)
# Of these Pillow holds the pixels alone, of others also what their decoder needs, in bytes per pixel.
_STREAMED, _DECODER = ("PNG", "BMP", "GIF", "TIFF"), 12
# Pixels that are brought to RGB at a time.
_STRIP = 1 << 22
_WHITE = (255, 255, 255)
# Frame headers that carry the size; C4, C8 and CC in the same range are tables.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)

#: Height and width of an upright image -> allowed reduction of a JPEG in decoding: 1, 2, 4 or 8.
Reduction = Callable[[int, int], int]


def decode(data: bytes, *, key: str, min_side: int | None = None, reduction: Reduction | None = None) -> np.ndarray:
    """Decode one image, upright.

    Args:
        data: content of an image file (the first frame of an animation).
        key: name of the image, for the error.
        min_side: a JPEG may be decoded to 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps this
            many pixels, which is faster; None decodes at full size.
        reduction: the reduction by the image's size, instead of `min_side`. A side of n pixels becomes n / factor,
            rounded up.

    Returns:
        (H, W, 3) uint8 RGB, contiguous. EXIF rotation is applied, transparency lies on white, 16-bit values
        are scaled to 8 bits.

    Raises:
        ImageError: not an image, truncated, shorter side below `MIN_SIDE`, more than `MAX_PIXELS` or `MAX_BYTES`.
        DataError: there is not enough memory.
    """
    if not data:
        raise ImageError(key, "the file is empty")
    if reduction is None and min_side is not None:
        reduction = _to_min_side(min_side)
    try:
        image = _decode_jpeg(data, key, reduction) if data[:3] == b"\xff\xd8\xff" else None
        return _decode_pillow(data, key) if image is None else image
    except MemoryError:
        raise _no_memory(key) from None


def pixels(sample: Sample, min_side: int | None = None, reduction: Reduction | None = None) -> np.ndarray:
    """The image of a sample, (H, W, 3) uint8 RGB; `min_side`, `reduction` and errors as in `decode`.

    PluginError: the source gives something else.
    """
    image = sample.image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise PluginError(
                f"the source's image {sample.key} is {image.shape} {image.dtype}: it must be (H, W, 3) uint8 RGB, or "
                "encoded bytes"
            )
        return image
    return decode(image, key=sample.key, min_side=min_side, reduction=reduction)


def decode_mask(data: bytes, *, key: str) -> np.ndarray:
    """Decode a class map, (H, W) uint8: the stored numbers, a palette's too, and never its colors.

    `data` is a PNG, BMP or GIF file: gray, palette, 1 bit, or RGB(A) whose three channels are equal. ImageError, with
    the name `key`: another file, a JPEG (which changes the numbers), colors, numbers above 255.
    """
    if not data:
        raise ImageError(key, "the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        raise ImageError(key, "a mask cannot be a JPEG, which changes class numbers: store it as PNG")
    with _parsing(key, "no PNG of class numbers", tell=True):
        image = Image.open(io.BytesIO(data), formats=("PNG", "BMP", "GIF"))
        stored = image.tile[0][3] if image.tile else ""
        check_size(*image.size, key, 10, least=1)
        values = np.asarray(image)
    if stored in ("L;2", "L;4"):  # Pillow stretches gray of few bits to 0..255
        values = values // (85 if stored == "L;2" else 17)
    if values.ndim == 3 and values.shape[2] >= 3:
        if (values[..., :3] != values[..., :1]).any():
            raise ImageError(key, "it holds colors, not class numbers: store it as a gray or palette PNG")
        values = values[..., 0]
    if values.ndim != 2:
        raise ImageError(key, f"mode {image.mode} holds no class numbers: store it as a gray or palette PNG")
    if values.max() > 255:
        raise ImageError(key, f"the class number {values.max()} does not fit into 8 bits")
    return np.ascontiguousarray(values, np.uint8)


def stored_size(data: bytes, *, key: str) -> tuple[int, int]:
    """Height and width that `decode` would give, from the header alone. Raises ImageError if there is none."""
    header = _jpeg_header(data) if data[:3] == b"\xff\xd8\xff" else None
    if header is not None:
        return header.upright
    with _parsing(key, "no readable header"), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.format == "TIFF":  # whose size is upright in some versions of Pillow
            image.load()
        return _Header(image.height, image.width, _orientation(image)).upright


def to_rgb(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """A path, PIL image or uint8 array (H, W), (H, W, 3) RGB or (H, W, 4) RGBA -> (H, W, 3) uint8 RGB, upright.

    Raises ImageError as `decode`, and for an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
            reason = "an array must be uint8 (H, W), (H, W, 3) RGB or (H, W, 4) RGBA"
            raise ImageError(f"array {image.shape} {image.dtype}", reason)
        image = image if image.shape[2:] == (3,) else _to_array(Image.fromarray(image))
        check_size(image.shape[1], image.shape[0], f"array {image.shape}")
        return np.ascontiguousarray(image)
    if isinstance(image, Image.Image):
        return _finish(image, getattr(image, "filename", "") or "of PIL")
    return decode(read_file(image), key=str(image))


def read_file(path: str | Path) -> bytes:
    """Content of an image file. ImageError if it is missing or cannot be used; DataError if the system fails."""
    try:
        return read_regular(path, most=MAX_FILE)
    except OSError as error:
        raise unreadable(str(path), error) from None


def _no_memory(key: str) -> DataError:
    return DataError(f"not enough memory to decode {key}: use fewer --workers, or scale it down")


def _to_min_side(min_side: int) -> Reduction:
    return lambda height, width: next((f for f in FACTORS if min(height, width) >= f * min_side), 1)


class _Header(NamedTuple):
    """An image's header; `orientation` is EXIF's, 1 to 8."""

    height: int
    width: int
    orientation: int
    components: int = 3
    progressive: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the decoded image."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def _decode_jpeg(data: bytes, key: str, reduction: Reduction | None) -> np.ndarray | None:
    """The fast path; None if Pillow has to look (CMYK, unusual)."""
    header = _jpeg_header(data)
    if header is None:
        return None
    height, width, orientation, components, progressive = header
    factor = 1 if reduction is None or components == 4 else reduction(*header.upright)
    check_size(width, height, key, 2 * components * progressive + -(-6 // factor**2))
    # With min_factor libjpeg-turbo takes the largest reduction that keeps these sizes.
    options = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
    space = "CMYK" if components == 4 else "RGB"
    try:
        image = simplejpeg.decode_jpeg(data, space, **options)
    except ValueError as error:
        if "nsufficient memory" in str(error):
            raise MemoryError from None
        try:
            image = simplejpeg.decode_jpeg(data, space, strict=False, **options)
        except ValueError:
            return None
        if DAMAGED != "use":
            raise ImageError(key, f"damaged or truncated ({error})") from None
    if components == 4:  # only looked at for damage, which Pillow does not tell
        return None
    return image if orientation == 1 else _upright(image, orientation)


def _jpeg_header(data: bytes) -> _Header | None:
    """None if Pillow has to look (damaged, unusual)."""
    position, tagged = 2, False
    while data[position : position + 1] == b"\xff" and position + 9 < len(data):
        marker = data[position + 1]
        if marker in _START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            if components not in (1, 3, 4):
                return None
            orientation = 1
            if tagged:  # Pillow's answer takes longer than decoding a small JPEG
                with contextlib.suppress(ImageError), _parsing("", ""):
                    orientation = _orientation(Image.open(io.BytesIO(data), formats=("JPEG",)))
            return _Header(height, width, orientation, components, marker in _PROGRESSIVE)
        if marker == 0xDA:  # pixels begin before any frame header
            return None
        tagged |= marker == 0xE1  # EXIF or XMP
        position += 1 if marker == 0xFF else 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation (1-8) as Pillow finds it; 1 if the EXIF block is damaged."""
    with contextlib.suppress(ImageError), _parsing("", ""):
        orientation = image.getexif().get(0x0112, 1)
        return orientation if orientation in range(1, 9) else 1
    return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF orientation 1-8 of an (H, W, 3) image."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


@contextlib.contextmanager
def _parsing(key: str, reason: str, *, tell: bool = False) -> Iterator[None]:
    """Accept damage and large images, of which Pillow warns, or raise ImageError; `tell` adds Pillow's words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except DataError:
            raise
        except MemoryError:
            raise _no_memory(key) from None
        except Image.DecompressionBombError as error:
            number = re.search(r"\d+", str(error))
            pixels = f"{int(number[0]):,} pixels are" if number else "that is"
            raise ImageError(key, f"{pixels} more than {MAX_PIXELS:,}: scale it down first") from None
        except Exception as error:  # Pillow's parsers raise nearly any class on damaged bytes
            raise ImageError(key, f"{reason} ({error})" if tell else reason) from None


def _decode_pillow(data: bytes, key: str) -> np.ndarray:
    if data.startswith(_MAGIC):
        reason = "its header is damaged or cut off"
    elif _HEIC.match(data) and not _HEIF:
        reason = "a HEIC image, which the package pillow-heif decodes (pip install pillow-heif)"
    else:
        kinds = ", ".join(_FORMATS).replace("WEBP", "WebP")
        reason = f"not a {kinds} image (begins with {data[:12]!r})"
    with _parsing(key, reason):
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    return _finish(image, key)


def _finish(image: Image.Image, key: str) -> np.ndarray:
    held = 1 if image.mode in ("1", "L", "P") else 4
    check_size(*image.size, key, held + 6 + (0 if image.format in _STREAMED else _DECODER))
    with _parsing(key, "damaged", tell=True):
        image.load()
        return _upright(_to_array(image), _orientation(image))


def _to_array(image: Image.Image) -> np.ndarray:
    """PIL image of any mode -> (H, W, 3) uint8 RGB."""
    width, height = image.size
    rows = max(1, _STRIP // width)
    if rows >= height:
        return _strip_to_array(image)
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):  # the whole image in several modes at once is gigabytes
        out[top : top + rows] = _strip_to_array(image.crop((0, top, width, min(top + rows, height))))
    return out


def _strip_to_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        # convert("RGB") would clip 16-bit gray at 255.
        gray = ((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)  # (H, W) -> (H, W, 3)
    if image.mode == "F":
        raise ValueError("its pixels are fractions, whose range is not known")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, _WHITE)
        image.paste(layer, mask=layer.getchannel("A"))
    return np.array(image.convert("RGB"))
