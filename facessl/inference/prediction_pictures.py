"""Predictions on a photo: points joined along the parts of a face, tinted classes, a label with its bar, lists."""

import colorsys
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from facessl.data import layouts

Color = tuple[int, int, int]

#: Photos whose shorter side is below this are enlarged by a whole number, so that points and words can be told apart.
READABLE = 320
_DARK, _LIGHT, _LINE, _POINT = (20, 20, 24), (255, 255, 255), (66, 212, 244), (255, 238, 120)
#: A quiet color for skin, which is mostly the first class, then neighbors that differ.
_COLORS = (
    "fabed4 911eb4 42d4f4 f58231 3cb44b ffe119 4363d8 e6194b f032e6 9a6324 469990 bfef45 dcbeff 800000 aaffc3 808000 "
    "ffd8b1 000075"
)
_FRACTION = 4  # bits behind the point in OpenCV's drawing coordinates


def draw(image: np.ndarray, faces: Sequence[Mapping[str, Any]], *, panel: bool = True) -> np.ndarray:
    """A photo with what was predicted on each of its faces.

    Args:
        image: (H, W, 3) uint8 RGB.
        faces: one mapping per face, in pixels of the image; what is not there is not drawn. `box` (4,) and `framed`
            (whether the box is shown); `landmarks` [[x, y], ...] and `layout`, the name of their order or None;
            `mask` (H, W) uint8 and `classes`, names by class; `label` and `probabilities`, name -> probability;
            `attributes`, name -> probability, of which those above 0.5 are listed.

    Returns:
        (H', W', 3) uint8 RGB: the photo, enlarged by a whole number below `READABLE` pixels, and with `panel` what
        `with_panel` adds.
    """
    factor = min(math.ceil(READABLE / min(image.shape[:2])), 16)
    canvas = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    for face in faces:
        if "mask" in face:
            mask = face["mask"].repeat(factor, 0).repeat(factor, 1)
            canvas = overlay(canvas, mask, class_colors(len(face["classes"])), where=mask > 0)
    for face in faces:
        if face.get("framed") and "box" in face:
            (left, top), (right, bottom) = _moved(face["box"], factor)
            corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
            _lines(canvas, [corners], max(1, round((right - left) / 150)), closed=True)
        if "landmarks" in face:
            _points(canvas, _moved(face["landmarks"], factor), face.get("layout"))
    picture = Image.fromarray(canvas)
    for number, face in enumerate(faces, 1):
        _tag(picture, face, _moved(face["box"], factor), str(number) if len(faces) > 1 else "")
    return with_panel(np.asarray(picture), faces) if panel else np.asarray(picture)


def with_panel(picture: np.ndarray, faces: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(H, W', 3) uint8 RGB: a picture (H, W, 3) of faces, which are as in `draw`, and to its right a panel with the
    colors of their classes or their attributes; the picture itself if they have neither."""
    rows, image = _panel_rows(faces), Image.fromarray(picture)
    if not rows:
        return picture
    letters = font(round(_letter(image)))
    line, pad = round(letters.size * 1.4), round(letters.size * 0.6)
    indent = round(letters.size * 1.3) if any(color for color, _ in rows) else 0
    wide = pad + indent + math.ceil(max(letters.getlength(text) for _, text in rows))
    deep = max(1, (image.height - 2 * pad) // line)  # READABLE leaves room for a dozen
    columns = math.ceil(len(rows) / deep)
    canvas = Image.new("RGB", (image.width + columns * wide + pad, image.height), "white")
    canvas.paste(image, (0, 0))
    brush = ImageDraw.Draw(canvas)
    side = round(letters.size * 0.9)
    for place, (color, text) in enumerate(rows):
        x, y = image.width + pad + place // deep * wide, pad + place % deep * line
        if color is not None:
            brush.rectangle((x, y + 2, x + side, y + 2 + side), fill=color, outline=(90, 90, 90))
        brush.text((x + indent, y), text, fill=_DARK, font=letters)
    return np.asarray(canvas)


def palette(count: int) -> list[Color]:
    """`count` RGB colors, 0..255, that can be told apart."""
    colors = [tuple(bytes.fromhex(code)) for code in _COLORS.split()[:count]]
    for i in range(len(colors), count):
        # The golden angle puts each new hue far from the earlier ones.
        hue, light = (0.05 + i * 0.618034) % 1, (0.42, 0.62, 0.78)[i % 3]
        colors.append(tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.75)))
    return colors  # type: ignore[return-value]


def legend(classes: Sequence[str]) -> tuple[list[str], np.ndarray, list[str]]:
    """Legend of points of several classes; "" is no class.

    Returns:
        Names, those of the 20 largest classes, others and none; the place of each point in them, (N,) int64; and their
        colors as #rrggbb.
    """
    names = [name for name, _ in Counter(name for name in classes if name).most_common(20)]
    places = {name: i for i, name in enumerate(names)} | {"": len(names) + 1}
    numbers = np.array([places.get(name, len(names)) for name in classes], np.int64)
    colors = ["#" + bytes(color).hex() for color in palette(len(names))]
    return [*names, "others", "none"], numbers, [*colors, "#a8adb5", "#c9ccd1"]


def class_colors(count: int) -> list[Color]:
    """RGB by class: black for class 0, the background, and `palette` for the others."""
    return [(0, 0, 0), *palette(count - 1)]


def overlay(
    image: np.ndarray, classes: np.ndarray, colors: Sequence[Color], *, where: np.ndarray | None = None
) -> np.ndarray:
    """(H, W, 3) uint8: the image tinted by the class (H, W) of each pixel, with light borders between classes.

    `where` (H, W) bool: the pixels that are tinted; None: all.
    """
    tinted = (0.5 * image + 0.5 * np.asarray(colors, np.float32)[classes]).round()
    out = tinted if where is None else np.where(where[..., None], tinted, image)
    border = np.zeros(classes.shape, bool)
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    border[1:] |= classes[1:] != classes[:-1]
    out[border] = 0.4 * out[border] + 0.6 * 255
    return out.round().astype(np.uint8)


def _moved(pixels: Any, factor: int) -> np.ndarray:
    return (np.asarray(pixels, np.float64).reshape(-1, 2) + 0.5) * factor - 0.5


def _fixed(points: np.ndarray) -> np.ndarray:
    """OpenCV's fixed-point coordinates of a line."""
    far = 2**30 / 2**_FRACTION
    return np.rint(points.clip(-far, far) * 2**_FRACTION).astype(np.int32)


def _lines(canvas: np.ndarray, lines: Sequence[np.ndarray], thickness: int, *, closed: bool = False) -> None:
    fixed = [_fixed(line) for line in lines]
    for color, width in ((_DARK, thickness + min(thickness, 2)), (_LINE, thickness)):
        cv2.polylines(canvas, fixed, closed, color, width, cv2.LINE_AA, _FRACTION)


def _points(canvas: np.ndarray, points: np.ndarray, order: str | None) -> None:
    """Landmarks (K, 2), joined along the parts of the face if their order is known; in place."""
    side = float(np.ptp(points, axis=0).max())
    layout = layouts.layout(order) if order in layouts.names() else None
    edges = layout.edges if layout and layout.points == len(points) else ()
    _lines(canvas, [points[list(edge)] for edge in edges], max(1, round(side / 300)))
    radius = min(max(side / 110, 1.5), 12.0)
    for color, size in ((_DARK, radius + 0.8), (_POINT, radius)):
        for x, y in _fixed(points).tolist():
            cv2.circle(canvas, (x, y), round(size * 2**_FRACTION), color, -1, cv2.LINE_AA, _FRACTION)


# ---- text --------------------------------------------------------------------------------------------------------


def _tag(picture: Image.Image, face: Mapping[str, Any], box: np.ndarray, number: str) -> None:
    """Label, probability and its bar above the face, or inside its box if there is no room; in place."""
    probability = None
    text = number if "attributes" in face else ""
    if "label" in face:
        probability = float(face["probabilities"][face["label"]])
        text = f"{face['label']} {probability:.2f}"
    if not text:
        return
    (left, top), (right, _) = box
    letters = font(round(min(max((right - left) / 11, 12), _letter(picture))))
    pad = max(3, round(letters.size / 4))
    bar = 0 if probability is None else max(3, round(letters.size / 5))
    wide = round(letters.getlength(text)) + 2 * pad
    high = round(letters.size * 1.25) + pad + (bar + pad if bar else 0)
    x = round(min(max(left, 0), max(picture.width - wide, 0)))
    y = round(top - high if top >= high else max(top, 0))
    brush = ImageDraw.Draw(picture)
    brush.rectangle((x, y, x + wide, y + high), fill=_DARK)
    brush.text((x + pad, y + pad // 2), text, fill=_LIGHT, font=letters)
    if probability is not None:
        base = y + high - pad - bar
        brush.rectangle((x + pad, base, x + wide - pad, base + bar), fill=(80, 80, 88))
        brush.rectangle((x + pad, base, x + pad + round(probability * (wide - 2 * pad)), base + bar), fill=_LINE)


def _letter(picture: Image.Image) -> float:
    return max(13.0, min(picture.size) / 24)


def _panel_rows(faces: Sequence[Mapping[str, Any]]) -> list[tuple[Color | None, str]]:
    """(color of a swatch or None, text) of each line."""
    rows: list[tuple[Color | None, str]] = []
    masked = [face for face in faces if "mask" in face]
    if masked:
        names = masked[0]["classes"]
        shown = sorted({int(c) for face in masked for c in np.unique(face["mask"]) if c})
        rows += [(class_colors(len(names))[c], str(names[c]).replace("_", " ")) for c in shown]
    for number, face in enumerate(faces, 1):
        if "attributes" not in face:
            continue
        likely = sorted(((p, name) for name, p in face["attributes"].items() if p > 0.5), reverse=True)
        rows += [(None, f"face {number}")] * (len(faces) > 1)
        rows += [(None, f"{name.replace('_', ' ')} {p:.2f}") for p, name in likely] or [(None, "none above 0.5")]
    return rows


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along, with letters of `size` pixels."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
