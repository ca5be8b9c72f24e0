"""Small pictures of many images: thumbnails, and sheets of them with words below."""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from facessl.core import environment
from facessl.core.errors import DataError
from facessl.core.escape import printable
from facessl.core.files import open_regular
from facessl.data.decode import decode, read_file
from facessl.data.sources._tar import Member, check_size, members
from facessl.inference.prediction_pictures import font

_GRAY, _INK, _SOFT, _MARK = (200, 202, 206), (28, 30, 33), (90, 94, 100), (37, 99, 235)
_LETTER, _GAP = 12, 10


class Cell(NamedTuple):
    """One image of a sheet: its file, the lines of text below it, and whether it has a frame."""

    path: str
    lines: Sequence[str]
    framed: bool = False


def thumbnails(paths: Sequence[str], side: int) -> list[Image.Image]:
    """Squares of `side` pixels, each with the whole image in its middle; gray with a word if it cannot be read.

    `paths` name image files, or a tar followed by the name of a member.
    """
    packed = _packed(paths)
    with ThreadPoolExecutor(environment.cores()) as pool:
        return list(pool.map(lambda path: _thumbnail(path, side, packed.get(path)), paths))


def _packed(paths: Sequence[str]) -> dict[str, tuple[str, Member]]:
    """Shard and member of each path that names an image in a shard."""
    wanted: dict[str, set[str]] = {}
    for path in paths:
        shard = os.path.dirname(path)
        while not os.path.exists(shard) and shard != os.path.dirname(shard):
            shard = os.path.dirname(shard)
        if os.path.isfile(shard):
            wanted.setdefault(shard, set()).add(path)
    packed = {}
    for shard, inside in wanted.items():
        with contextlib.suppress(DataError, OSError):  # not a tar, or damaged from here on
            for member in members(Path(shard)):
                if (path := f"{shard}/{os.fsdecode(member.name)}") in inside:
                    packed[path] = shard, member
    return packed


def _encoded(path: str, packed: tuple[str, Member] | None) -> bytes:
    if packed is None:
        return read_file(path)
    shard, member = packed
    check_size(shard, path, member.size, "image")
    with open_regular(shard, most=None) as file:
        file.seek(member.offset)
        return bytes(file.read(member.size))


def _thumbnail(path: str, side: int, packed: tuple[str, Member] | None) -> Image.Image:
    square = Image.new("RGB", (side, side), _GRAY)
    try:
        image = Image.fromarray(decode(_encoded(path, packed), key=path, min_side=side))
    except (DataError, OSError):
        word = "unreadable" if packed or os.path.exists(path) else "missing"
        letters = font(max(6, min(_LETTER, side // 6)))
        ImageDraw.Draw(square).text((side / 2, side / 2), word, _INK, letters, anchor="mm")
        return square
    image = ImageOps.contain(image, (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def sheet(cells: Sequence[Cell], *, title: str = "", columns: int = 8) -> np.ndarray:
    """(H, W, 3) uint8: the cells' images, 128 pixels each, in rows on white, with their lines below and a title."""
    letters, line, side = font(_LETTER), round(1.4 * _LETTER), 128
    columns = min(columns, len(cells))
    head = 2 * line if title else 0
    pitch = side + _GAP, side + _GAP + line * max(len(cell.lines) for cell in cells)
    wide = columns * pitch[0] + _GAP
    canvas = Image.new("RGB", (wide, head + -(-len(cells) // columns) * pitch[1] + _GAP), "white")
    brush = ImageDraw.Draw(canvas)
    brush.text((_GAP, _GAP), _fitting(title, wide - 2 * _GAP), _INK, letters)
    for place, (cell, image) in enumerate(zip(cells, thumbnails([cell.path for cell in cells], side), strict=True)):
        x, y = _GAP + place % columns * pitch[0], head + _GAP + place // columns * pitch[1]
        canvas.paste(image, (x, y))
        if cell.framed:
            brush.rectangle((x - 3, y - 3, x + side + 2, y + side + 2), outline=_MARK, width=3)
        for number, text in enumerate(cell.lines):
            at = (x, y + side + 2 + number * line)
            brush.text(at, _fitting(text, side), _SOFT if number else _INK, letters)
    return np.asarray(canvas)


def _fitting(text: str, width: int) -> str:
    """Text with as much of its middle left out as does not fit into `width` pixels."""
    text = "".join(letter if letter.isprintable() else "?" for letter in printable(text))
    letters, count = font(_LETTER), len(text)
    text = text if count <= width else text[: width // 2] + text[-(width // 2) :]  # a letter is wider than a pixel
    shown = text
    while letters.getlength(shown) > width and count > 2:
        count = min(count, len(text)) - 1
        shown = f"{text[: (count + 1) // 2]}…{text[len(text) - count // 2 :]}"
    return shown
