"""Every kind of image a person may have, good and bad."""

import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from facessl.core.errors import DataError
from facessl.data import decode as module
from facessl.data.decode import decode, decode_mask, read_file, stored_size, to_rgb
from facessl.data.skipped import MAX_PIXELS, ImageError
from facessl.data.sources.imagelist import ImageList

#: 48 x 32 pixels with another color in each quarter: a wrong rotation or channel order shows.
SCENE = np.zeros((32, 48, 3), np.uint8)
SCENE[:16, :24], SCENE[:16, 24:], SCENE[16:, :24], SCENE[16:, 24:] = (220, 40, 40), (40, 200, 60), (50, 60, 210), 180


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture() -> Image.Image:
    return Image.fromarray(SCENE)


def png(width: int, height: int, *, depth: int, rows: bytes) -> bytes:
    """An RGB PNG made by hand: Pillow writes neither 16-bit color nor a size that its pixels do not have."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def with_orientation(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def close(a: np.ndarray, b: np.ndarray, *, to: float = 3) -> bool:
    return a.shape == b.shape and a.dtype == np.uint8 and float(np.abs(a.astype(int) - b).mean()) < to


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ],
)
def test_formats(kind: str, options: dict[str, object]) -> None:
    assert close(decode(encoded(picture(), kind, **options), key="a"), SCENE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind: str, orientation: int) -> None:
    data = with_orientation(orientation, kind)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert close(decode(data, key="a"), expected)
    assert stored_size(data, key="a") == expected.shape[:2]


def test_rotation_in_xmp_is_applied() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    plain = encoded(picture(), quality=95)
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + plain[2:]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape == (48, 32, 3)
    assert close(decode(data, key="a"), expected)


def test_rotation_of_a_file_with_a_damaged_exif_block_is_ignored() -> None:
    data = with_orientation(6, "JPEG")
    assert close(decode(data.replace(b"Exif\0\0MM", b"Exif\0\0\xff\xff"), key="a"), SCENE)


def test_cmyk_becomes_rgb() -> None:
    assert close(decode(encoded(picture().convert("CMYK"), quality=95), key="a"), SCENE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_gray_gets_three_channels(kind: str) -> None:
    gray = picture().convert("L")
    expected = np.repeat(np.asarray(gray)[..., None], 3, axis=2)
    assert close(decode(encoded(gray, kind), key="a"), expected)


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    wide = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    image = decode(encoded(Image.fromarray(wide), "PNG"), key="a")
    np.testing.assert_array_equal(image[..., 0], np.round(wide / 257).astype(np.uint8))


def test_16_bit_color_is_scaled() -> None:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in SCENE)
    assert close(decode(png(48, 32, depth=16, rows=rows), key="a"), SCENE, to=1)


def test_transparency_lies_on_white() -> None:
    layer = picture().convert("RGBA")
    layer.putalpha(Image.fromarray(np.where(np.arange(48) < 24, 255, 0)[None].repeat(32, 0).astype(np.uint8)))
    expected = SCENE.copy()
    expected[:, 24:] = 255
    assert close(decode(encoded(layer, "PNG"), key="a"), expected)


def test_palette_with_a_transparent_color() -> None:
    image = Image.new("P", (48, 32), 1)
    image.putpalette([0, 0, 0, 200, 30, 30])
    image.paste(0, (0, 0, 24, 32))
    expected = np.full((32, 48, 3), 255, np.uint8)
    expected[:, 24:] = (200, 30, 30)
    assert close(decode(encoded(image, "PNG", transparency=0), key="a"), expected)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (48, 32), (10, 10, 10))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(picture(), kind, save_all=True, append_images=frames, **options)
    assert close(decode(data, key="a"), SCENE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a text\n" * 10, "not a JPEG"),
        (encoded(picture())[:-40], "truncated"),
        (encoded(picture())[:30], "header is damaged or cut off"),
        (encoded(picture(), "PNG")[:100], "damaged"),
        (encoded(Image.new("RGB", (1, 1))), "1x1 is too small"),
        (png(20000, 20000, depth=8, rows=b""), "400,000,000 pixels are more"),
        pytest.param(
            png(13300, 13300, depth=8, rows=b""),
            r"decoding its 13300x13300 pixels takes 1\.6 GiB of memory, more than the 1 GiB allowed",
            marks=pytest.mark.fault(
                "E12", "a PNG of 21 kB took 2 GB", now="an image may take 1 GiB while it is decoded"
            ),
        ),
    ],
    ids=["zero bytes", "text", "truncated", "header only", "truncated png", "1x1", "20000x20000", "13300x13300"],
)
def test_unusable_images_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode(data, key="photos/x.jpg")
    assert caught.value.key == "photos/x.jpg"
    assert "photos/x.jpg" in str(caught.value)


@pytest.mark.fault("E13", "half a JPEG with an end mark was used, 40 gray levels off")
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_damaged_jpeg_is_used_only_if_asked_for(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged JPEG counts as unreadable; FACESSL_DAMAGED=use takes it."""
    whole = encoded(picture().resize((480, 320)).convert(mode))
    damaged = whole[: len(whole) // 2] + b"\xff\xd9"
    assert decode(whole, key="a").shape == (320, 480, 3)
    with pytest.raises(ImageError, match=r"damaged or truncated \(.*premature end"):
        decode(damaged, key="a")
    monkeypatch.setattr(module, "DAMAGED", "use")
    assert decode(damaged, key="a").shape == (320, 480, 3)


@pytest.mark.fault("A10", "class 3 of a mask of 2 or 4 bits was read as 255 or 51")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_their_numbers(bits: int) -> None:
    numbers = np.tile(np.arange(2**bits, dtype=np.uint8), (8, 1))
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(numbers), "PNG", bits=bits), key="m"), numbers)


@pytest.mark.fault("A6", "an image that could not be opened for want of descriptors was skipped")
@pytest.mark.parametrize(
    ("code", "skipped", "cure"),
    [
        (errno.ENOENT, True, "No such file"),
        (errno.EACCES, True, "Permission denied"),
        (errno.EMFILE, False, r"Too many open files, which is an error of the system.*ulimit -n"),
        (errno.ENOMEM, False, "use fewer --workers"),
        (errno.EIO, False, "check the disk"),
        (errno.ESTALE, False, "check the disk"),
    ],
)
def test_only_what_is_wrong_with_the_file_is_skipped(
    code: int, skipped: bool, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the system ends the work; only a file that cannot be read is skipped."""

    def refuse(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=cure) as caught:
        read_file("a.jpg")
    assert isinstance(caught.value, ImageError) == skipped


def test_too_little_memory_is_not_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "_to_array", refuse)
    with pytest.raises(DataError, match=r"not enough memory to decode a\.png") as caught:
        decode(encoded(picture(), "PNG"), key="a.png")
    assert not isinstance(caught.value, ImageError)


@pytest.mark.fault("E11", "a pipe hung, and a sparse file or a NUL byte ended in a traceback")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("sparse", r"40,000,000,000 bytes are more than the [\d,]+ that are read"),
        ("a\0b", "NUL byte"),
        (".", "Is a directory"),
    ],
)
def test_only_regular_files_of_a_plausible_size_are_read(name: str, reason: str, tmp_path: Path) -> None:
    """Images and lists are regular files of a plausible size; anything else is one sentence at once."""
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(40_000_000_000)
    with pytest.raises(ImageError, match=reason):
        read_file(tmp_path / name)
    with pytest.raises(DataError, match=reason):
        ImageList(tmp_path / name)


def test_size_of_a_huge_jpeg_is_refused_from_its_header() -> None:
    data = bytearray(encoded(picture()))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 20000, 20000)  # height, width
    with pytest.raises(ImageError, match=f"20000x20000 is more than {MAX_PIXELS:,} pixels"):
        decode(bytes(data), key="a")


def test_reduced_decoding_never_goes_below_min_side() -> None:
    data = encoded(Image.fromarray(np.kron(SCENE, np.ones((13, 13, 1), np.uint8))))  # 624 x 416
    assert decode(data, key="a", min_side=104).shape == (104, 156, 3)
    assert decode(data, key="a", min_side=105).shape == (208, 312, 3)
    assert decode(data, key="a", min_side=209).shape == (416, 624, 3)


def test_reduction_is_decided_from_the_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.kron(SCENE, np.ones((2, 2, 1), np.uint8))), exif=exif)  # 96 x 64, stands upright
    seen = []

    def halve(height: int, width: int) -> int:
        seen.append((height, width))
        return 2

    assert decode(data, key="a", reduction=halve).shape == (48, 32, 3)
    assert seen == [(96, 64)]


def test_nothing_is_said_on_the_side(recwarn: pytest.WarningsRecorder) -> None:
    for kind in ("PNG", "JPEG"):
        decode(encoded(picture(), kind, exif=b"Exif\0\0nonsense"), key="a")
    with pytest.raises(ImageError):
        decode(png(10000, 10000, depth=8, rows=b""), key="a")  # Pillow warns from 89 million pixels on
    assert not recwarn.list


def test_to_rgb_takes_what_people_hold(tmp_path: object) -> None:
    file = f"{tmp_path}/a.png"
    picture().save(file)
    for image in (file, picture(), SCENE, np.dstack([SCENE, np.full((32, 48), 255, np.uint8)])):
        np.testing.assert_array_equal(to_rgb(image), SCENE)
    with pytest.raises(ImageError, match="No such file"):
        to_rgb(f"{tmp_path}/missing.png")
    with pytest.raises(ImageError, match="uint8"):
        to_rgb(SCENE.astype(np.float32))
