"""Groups of similar faces, such as those of one identity: HDBSCAN, a contact sheet of each, and a table."""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from facessl.core import escape, files
from facessl.core.errors import ConfigError
from facessl.inference.contact_sheet import Cell, sheet
from facessl.inference.embedding_formats import Embeddings, rows_of
from facessl.inference.neighbors import l2_normalize

Metric = Literal["cosine", "euclidean"]
#: Most rows whose distances are all held at once (4 GB); a tree, which takes longer, finds the nearest of more.
_ALL_PAIRS = 16_000
#: Largest min(N, C) of (N, C) embeddings for principal components, whose matrix of inner products then has 2 GB.
_WIDEST = 16_384
_TABLE, _SHEET = "groups.csv", re.compile(r"group-\d+\.jpg")


@dataclass(frozen=True)
class Groups:
    """The group of each of N images.

    Attributes:
        paths: of the images.
        labels: (N,) int64, 0 the largest group; -1 in no group.
        probabilities: (N,) float64, the cluster membership probability, 0 to 1.
    """

    paths: list[str]
    labels: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        return int(self.labels.max(initial=-1)) + 1


def group(
    embeddings: str | os.PathLike[str] | Embeddings,
    *,
    metric: Metric = "cosine",
    min_cluster_size: int = 5,
    pca_components: int | None = None,
) -> Groups:
    """Groups of images whose embeddings lie close together, by HDBSCAN (Campello et al., 2013); nothing is random.

    `facessl.group("embeddings.parquet").labels`

    Args:
        embeddings: from `facessl.embeddings`, or the file that `facessl embed` or `facessl.write_embeddings` wrote.
        metric: distance of embeddings: cosine compares their directions (the Euclidean distance of those of unit
            length, which has the order of the cosine); euclidean also their lengths.
        min_cluster_size: images of the smallest group.
        pca_components: compare so many principal components instead of all dimensions.

    Raises:
        ConfigError: a number out of range, or an array, which does not name its images.
        DataError: no embeddings there.
    """
    from sklearn.cluster import HDBSCAN  # takes a second, which `principal_components` does not need

    if min_cluster_size < 2:
        raise ConfigError(f"min_cluster_size = {min_cluster_size} is out of range: give a number from 2")
    if pca_components is not None and pca_components < 1:
        raise ConfigError(f"pca_components = {pca_components} is out of range: give a number from 1")
    rows = rows_of(embeddings)
    array = l2_normalize(rows.array) if metric == "cosine" else rows.array
    if pca_components is not None:
        array = principal_components(array, pca_components)[0]
    if len(rows) < 2 * min_cluster_size:  # a single group says nothing
        return Groups(rows.keys, np.full(len(rows), -1, np.int64), np.zeros(len(rows)))
    algorithm = "brute" if len(rows) <= _ALL_PAIRS else "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows that are equal
        clusters = HDBSCAN(min_cluster_size=min_cluster_size, algorithm=algorithm, copy=True).fit(array)
    return Groups(rows.keys, _by_size(clusters.labels_), np.asarray(clusters.probabilities_, np.float64))


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Labels numbered anew: 0 the largest group, of equally large ones that of the first image; -1 stays."""
    _, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -counts))
    order = order[labels[first[order]] >= 0]
    number = np.full(len(first), -1, np.int64)
    number[order] = np.arange(len(order))
    return number[inverse]


def principal_components(array: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Centered rows (N, C) in the `count` directions of the largest variance. ConfigError: N and C are too large.

    Returns:
        (N, count) float32, the largest first, each with its largest entry of a direction positive; zeros beyond the
        C-th; and the fraction of the variance that they hold.
    """
    if min(array.shape) > _WIDEST:
        raise ConfigError(
            f"{array.shape[0]:,} embeddings of {array.shape[1]:,} numbers are too large for principal components: "
            f"one of both may be {_WIDEST:,} at most"
        )
    centered = array - array.mean(0, dtype=np.float64).astype(np.float32)
    wide = centered.shape[1] > len(centered)
    products = centered @ centered.T if wide else centered.T @ centered
    values, directions = np.linalg.eigh(products.astype(np.float64))
    values, directions = np.maximum(values[::-1][:count], 0), directions[:, ::-1][:, :count]
    if wide:  # from coordinates of the images to directions of the embeddings; those of no variance are zeros
        held = values > np.finfo(np.float32).eps * values[0]
        directions = centered.T @ (directions * held / np.sqrt(np.where(held, values, 1)))
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    components = np.zeros((len(array), count), np.float32)
    components[:, : directions.shape[1]] = centered @ directions.astype(np.float32)
    total = float((centered.astype(np.float64) ** 2).sum())
    return components, float(values.sum()) / total if total else 1.0


def check_folder(out: Path, faces: int = 0) -> None:
    """Raise ConfigError unless `out` is new, empty, or a folder that `write_groups` filled before."""
    if faces < 0:
        raise ConfigError(f"faces = {faces} is out of range: give a number from 0")
    files.check_output(out, folder=True)
    if out.is_dir() and any(out.iterdir()) and not (out / _TABLE).is_file():
        raise ConfigError(f"--out {out} has other files in it: name a new folder")


def write_groups(out: str | Path, groups: Groups, *, faces: int = 48) -> int:
    """Write `groups.csv` (path, group, probability) and a sheet of each group, `group-000.jpg` and so on, to `out`.

    Args:
        faces: images of a sheet at most, those with the highest membership probability; 0 writes no sheets.

    Returns:
        How many files of an earlier call were replaced or removed.

    Raises:
        ConfigError: other files are in the folder, or a negative number of faces.
        DataError: a file cannot be written.
    """
    out = Path(out)
    check_folder(out, faces)
    columns = groups.paths, groups.labels.tolist(), groups.probabilities.round(4).tolist()
    lines = [escape.csv_row(*row) for row in zip(*columns, strict=True)]
    replaced = sum(1 for old in out.glob("*") if old.name == _TABLE or _SHEET.fullmatch(old.name))
    files.write_atomic(out / _TABLE, b"".join([escape.csv_row("path", "group", "probability"), *lines]))
    for old in out.iterdir():
        if _SHEET.fullmatch(old.name):
            old.unlink()
    members = np.argsort(groups.labels, kind="stable")
    starts = np.searchsorted(groups.labels[members], np.arange(len(groups) + 1))
    for number in range(len(groups) if faces else 0):
        own = members[starts[number] : starts[number + 1]]
        shown = own[np.argsort(-groups.probabilities[own], kind="stable")[:faces]]
        cells = [Cell(groups.paths[i], [Path(groups.paths[i]).name]) for i in shown]
        title = f"group {number}: {len(own):,} images"
        title += f", {len(shown)} of them shown" if len(shown) < len(own) else ""
        files.write_picture(out / f"group-{number:03d}.jpg", sheet(cells, title=title))
    return replaced
