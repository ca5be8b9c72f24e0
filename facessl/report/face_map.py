"""The map of all faces: one page that places similar faces near each other and shows each under the pointer."""

import base64
import csv
import io
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from facessl.core import escape, files
from facessl.core.errors import ConfigError, DataError, DataWarning
from facessl.inference.contact_sheet import thumbnails
from facessl.inference.embedding_formats import Embeddings, rows_of
from facessl.inference.groups import principal_components
from facessl.inference.neighbors import l2_normalize
from facessl.inference.prediction_pictures import legend, palette
from facessl.report.page import render

Projection = Literal["pca", "umap"]
#: Pixels of a thumbnail; thumbnails per row and column of one JPEG.
_SIDE, _ACROSS = 56, 24
#: Images of a map with thumbnails, at most: of synthetic faces 50,000 of them are 42 MB.
PICTURES = 50_000
#: Columns of a table that can give the colors, the first that is there.
_COLUMNS = ("group", "label_name", "label")


def write_map(
    path: str | Path,
    embeddings: str | Path | Embeddings,
    *,
    projection: Projection = "pca",
    color: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the map of embeddings as one HTML page that fetches nothing; up to 50,000 thumbnails are inside.

    Of more images it has no thumbnails, which the page and a warning say.

    Args:
        path: .html file.
        embeddings: embeddings, or the file that `facessl embed` wrote.
        projection: pca, the first two principal components of the embeddings at unit length; or umap, which keeps
            neighborhoods by cosine distance (extra `umap`).
        color: a table of classes, which give the colors: `path` and `group`, `label_name` or `label`, such as the
            `groups.csv` of `facessl group`; None: the labels of the embeddings, if they have any.
        seed: of umap.

    Returns:
        `images`, `classes`, and with pca `variance`, the fraction of the variance that the map shows.

    Raises:
        ConfigError: another ending, an unknown projection, or umap is not installed.
        DataError: no embeddings or table there, or the page cannot be written.
    """
    path = Path(path)
    files.check_ending(path, "map", [".html"])
    _check_projection(projection)
    rows = rows_of(embeddings)
    classes = rows.classes if color is None else _classes_in(Path(color), rows.keys)
    points, variance = _projected(rows.array, projection, seed)
    names, numbers, colors = legend(classes)
    result: dict[str, Any] = {"images": len(rows), "classes": len(set(classes) - {""})}
    if not result["classes"]:  # nothing but points in gray otherwise
        colors = ["#" + bytes(palette(2)[1]).hex()] * 2
    method = "UMAP by cosine distance"
    if variance is not None:
        method = f"Two principal components, {100 * variance:.0f} % of the variance"
        result["variance"] = round(variance, 4)
    pictures = len(rows) <= PICTURES
    if not pictures:
        lack = f"The map has no pictures, as there are more than {PICTURES:,} images"
        warnings.warn(f"{lack}: embed fewer of them for a map with pictures", DataWarning, stacklevel=2)
        method = f"{method}. {lack}"
    page = render(
        "map.html",
        title=f"Map of {len(rows):,} faces",
        method=method,
        data={
            "points": _base64(_scaled(points)),
            "classes": _base64(numbers.astype("<u2")),
            "names": names,
            "colors": colors,
            "counts": np.bincount(numbers, minlength=len(names)).tolist(),
            "paths": [escape.printable(key) for key in rows.keys],
            "own": classes,
            "side": _SIDE,
            "across": _ACROSS,
            "sheets": _sheets(rows.keys) if pictures else [],
        },
    )
    files.write_atomic(path, page.encode())
    return result


def _check_projection(projection: str) -> None:
    if projection not in get_args(Projection):
        raise ConfigError(f"{projection!r} is not a valid projection: use pca or umap")
    if projection == "umap":
        try:
            import umap  # noqa: F401
        except ImportError:
            raise ConfigError(
                "projection umap needs umap-learn: pip install 'facessl[umap]', or use --projection pca"
            ) from None


def _projected(array: np.ndarray, projection: str, seed: int) -> tuple[np.ndarray, float | None]:
    """Places (N, 2), and of pca the fraction of the variance."""
    if projection == "pca":
        return principal_components(l2_normalize(array), 2)
    import umap

    if len(array) < 4:
        raise ConfigError(f"umap needs 4 images or more, and there are {len(array)}: use --projection pca")
    neighbors = min(15, len(array) - 1)
    start = "random" if len(array) < 20 else "spectral"
    kind = umap.UMAP(n_neighbors=neighbors, metric="cosine", random_state=seed, init=start, n_jobs=1)
    return np.asarray(kind.fit_transform(array), np.float32), None


def _scaled(points: np.ndarray) -> np.ndarray:
    """(N, 2) little-endian uint16 on one scale for both axes; the second one points up."""
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, max(float((high - low).max()), 1e-12) / 2
    return np.rint((1 + (points - middle) / half * (1, -1)) * 32767).clip(0, 65534).astype("<u2")


def _classes_in(table: Path, keys: list[str]) -> list[str]:
    """The class that a table names for each image; "" if it names none."""
    try:
        with files.open_regular(table, "r", newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            head = lines.fieldnames or []
            column = next((name for name in _COLUMNS if name in head), None)
            if "path" not in head or column is None:
                raise DataError(f"{table} needs the columns path and {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}")
            known = {escape.from_csv(line["path"] or ""): escape.from_csv(line[column] or "") for line in lines}
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the table {table}: {reason}") from None
    if known.keys().isdisjoint(keys):
        raise DataError(f"{table} names none of the images of the embeddings: give the table that was made from them")
    classes = [known.get(key, "") for key in keys]
    return (
        ["" if name == "-1" else f"group {name}" if name else "" for name in classes] if column == "group" else classes
    )


def _sheets(keys: list[str]) -> list[str]:
    """The thumbnails, as base64 of JPEGs of `_ACROSS` times `_ACROSS` each."""
    sheets = []
    for start in range(0, len(keys), _ACROSS**2):
        part = thumbnails(keys[start : start + _ACROSS**2], _SIDE)
        sprite = Image.new("RGB", (_ACROSS * _SIDE, -(-len(part) // _ACROSS) * _SIDE))
        for place, image in enumerate(part):
            sprite.paste(image, (place % _ACROSS * _SIDE, place // _ACROSS * _SIDE))
        buffer = io.BytesIO()
        sprite.save(buffer, format="JPEG", quality=75)
        sheets.append(base64.b64encode(buffer.getvalue()).decode())
    return sheets


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
