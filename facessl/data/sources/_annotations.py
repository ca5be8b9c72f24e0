"""Helpers for readers of landmark and mask sets: rows of coordinates, HRNet's tables, boxes, class maps."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import IGNORE_INDEX, Sample
from facessl.data.decode import EXTENSIONS, decode_mask, read_file, stored_size
from facessl.data.layouts import layout as landmark_layout
from facessl.data.layouts import swapped
from facessl.data.skipped import ImageError
from facessl.data.sources._lists import check_width, csv_rows, lines, names_by_stem, real

_HRNET_HEAD = ["image_name", "scale", "center_w", "center_h"]


def numbers(cells: Sequence[str], where: str, what: str) -> np.ndarray:
    """(n,) float64 of n texts. DataError with the place and `what` they are where one is not a finite number."""
    try:
        values = np.array(cells, np.float64)
        if np.isfinite(values).all():
            return values
    except ValueError:
        pass
    return np.array([real(cell, where, what) for cell in cells])  # names the bad one


def hrnet_table(file: Path, points: int, layout: str, shift: float = 0.0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """One of the tables that HRNet published and FaRL reads: image_name, scale, center_w, center_h, x, y, x, y, ...

    `shift` pixels are subtracted from all coordinates and centers. DataError: of another form.

    Returns:
        N image names; landmarks (N, K, 2); boxes (N, 4), the square of side 200 scale around the center.
    """
    rows = csv_rows(file, layout)
    where, header = next(rows, (str(file), []))
    if header[:4] != _HRNET_HEAD:
        raise DataError(f"{file} begins with {', '.join(header[:4])!r} where {', '.join(_HRNET_HEAD)!r} is expected")
    names, values = [], []
    for where, cells in rows:
        check_width(where, len(cells), 4 + 2 * points)
        names.append(cells[0])
        values.append(numbers(cells[1:], where, "coordinate"))
    table = np.array(values).reshape(-1, 3 + 2 * points)
    half, centers = 100 * table[:, :1], table[:, 1:3] - shift
    boxes = np.concatenate([centers - half, centers + half], 1)
    return names, table[:, 3:].reshape(-1, points, 2) - shift, boxes


def pts_faces(folder: Path, layout: str, start: int, points: int | None) -> tuple[list[str], np.ndarray]:
    """The images of a folder, not below it, that have a .pts file of K `points` (None: as many as the first one has).

    `start` is the coordinate of the center of the top-left pixel in the files.

    Returns N file names and landmarks (N, K, 2) in pixels from 0. DataError: a file without its image, of another
    form, or with another number of points.
    """
    names, marks = [], []
    images = names_by_stem(folder, EXTENSIONS)
    for stem, name in names_by_stem(folder, (".pts",)).items():
        file = folder / name
        if stem not in images:
            raise DataError(f"{file} has no image: {stem}.jpg or .png beside it ({layout})")
        rows = list(lines(file, layout))
        count = re.fullmatch(r"n_points:\s*(\d{1,6})", rows[1][1]) if len(rows) > 4 else None
        if not count or len(rows) != int(count[1]) + 4 or rows[2][1] != "{" or rows[-1][1] != "}":
            raise DataError(f"{file} is not a .pts file: 'version:', 'n_points: K', '{{', K points, '}}'")
        points = points or len(rows) - 4
        if len(rows) - 4 != points:
            raise DataError(f"{file} has {len(rows) - 4} points where {points} are expected")
        for where, line in rows[3:-1]:
            check_width(where, len(cells := line.split()), 2)
            marks.append(numbers(cells, where, "coordinate"))
        names.append(images[stem])
    return names, np.array(marks).reshape(len(names), -1 if names else 0, 2) - start


def check_layout(file: Path, points: int, name: str | None) -> None:
    """ConfigError if landmarks of a file are not as many as the layout `name` has; UnknownName for no layout."""
    if name is not None and (expected := landmark_layout(name).points) != points:
        raise ConfigError(f"{file} has {points} landmarks, but the layout {name} has {expected}")


def square_around(points: np.ndarray) -> np.ndarray:
    """Points (..., K, 2) -> (..., 4), the square with the center and the longer side of their bounding box."""
    low, high = points.min(-2), points.max(-2)
    center, half = (low + high) / 2, (high - low).max(-1, keepdims=True) / 2
    return np.concatenate([center - half, center + half], -1)


def read_mask(file: str) -> np.ndarray:
    """(H, W) uint8 class map of a file. ImageError as `decode_mask` and `read_file`."""
    return decode_mask(read_file(file), key=file)


def fitted(mask: np.ndarray, image: bytes, key: str, file: str) -> np.ndarray:
    """The mask at its image's size, enlarged by a whole number if at all. ImageError if the sizes do not fit."""
    height, width = stored_size(image, key=key)
    (down, rest_y), (across, rest_x) = divmod(height, mask.shape[0]), divmod(width, mask.shape[1])
    if rest_y or rest_x or down != across:
        raise ImageError(key, f"it has {width}x{height} pixels, but its mask {file} {mask.shape[1]}x{mask.shape[0]}")
    return mask if down == 1 else mask.repeat(down, 0).repeat(down, 1)


def give_mask(sample: Sample, file: str, classes: int, where: str) -> None:
    """Give a sample, with an encoded image, the mask in a file. ImageError as `read_mask` and `fitted`.

    DataError if the mask has a number that is neither one of the `classes` that `where` names, nor 255.
    """
    assert isinstance(sample.image, bytes)
    mask = read_mask(file)
    used = mask[mask != IGNORE_INDEX]
    if used.size and used.max() >= classes:
        raise DataError(f"{file} has the class {used.max()}, but {where} names {classes} (0 to {classes - 1})")
    sample.mask = fitted(mask, sample.image, sample.key, file)


def side_pairs(names: Sequence[str]) -> tuple[int, ...] | None:
    """The class that each class becomes in a mirrored image, from names that differ in a side only.

    Sides are `left` and `right` anywhere in a name, `l_` and `r_` in front, and a number behind that is the class's
    own (`eye_4` and `eye_5`), if exactly two names are the same otherwise. None if no two names are a pair.
    """
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        plain = re.sub(r"left|right", "*", name.lower())
        plain = re.sub(r"^[lr]_", "*_", plain)
        plain = re.sub(rf"[_-]0*{index}$", "_*", plain)
        if "*" in plain:
            groups.setdefault(plain, []).append(index)
    pairs = [group for group in groups.values() if len(group) == 2]
    return swapped(len(names), pairs) if pairs else None
