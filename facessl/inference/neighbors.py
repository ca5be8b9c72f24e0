"""Similar faces: exact search among embeddings, by matrix product."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data.sources.folder import Folder
from facessl.inference.embedding_formats import Embeddings, rows_of

if TYPE_CHECKING:
    from facessl.inference.trained_task import Embedder
    from facessl.models.backbone import Backbone


@dataclass(frozen=True)
class Neighbors:
    """The nearest images of a photo, nearest first.

    Attributes:
        paths: of the k images.
        distances: (k,) float32, one minus the cosine of the embeddings: 0 the same direction, 2 the opposite one.
        rows: (k,) int64, their positions among the embeddings.
    """

    paths: list[str]
    distances: np.ndarray
    rows: np.ndarray


def search(
    run: str | os.PathLike[str] | Backbone | Embedder,
    photo: str | Path,
    among: str | os.PathLike[str] | Embeddings,
    *,
    k: int = 12,
    crop: bool = False,
) -> Neighbors:
    """The images that are most similar to a photo of one face.

    `facessl.search("runs/mine", "photo.jpg", "embeddings.parquet").paths`

    Args:
        run: what made the embeddings: run folder, checkpoint or exported backbone, or the loaded network.
        photo: one image, which is embedded as they were; without `crop` it must be framed as they are.
        among: from `facessl.embeddings`, or the file that `facessl embed` or `facessl.write_embeddings` wrote.
        k: how many; all if there are fewer.
        crop: find the largest face of the photo and cut it out as `facessl.crop` does by default, for embeddings of
            such crops.

    Raises:
        ConfigError: `k` is below 1, or another network made the embeddings.
        CheckpointError, DataError: no network, embeddings or readable photo there, or no face to crop.
    """
    from facessl.inference.embed import embeddings, network_id, network_of  # torch and timm, seconds

    if k < 1:
        raise ConfigError(f"k = {k} is out of range: give a number from 1")
    check_photo(photo)
    file = "the file of embeddings" if isinstance(among, Embeddings) else str(among)
    rows = rows_of(among)
    network = network_of(run)
    precision, _, made_by = rows.network.partition(":")
    if not made_by:
        raise ConfigError(f"{file} does not name the network that computed it: write it again with `facessl embed`")
    if network_id(network, precision) != rows.network:
        raise ConfigError(
            f"{file} was made with another network: name the run that made it, or write it again with `facessl embed`"
        )
    source = (_Face if crop else Folder)(photo, cache=False)
    query = embeddings(network, source, precision=precision)
    distances, chosen = nearest(l2_normalize(query.array), l2_normalize(rows.array), k)
    return Neighbors([rows.keys[i] for i in chosen[0]], distances[0], chosen[0])


def check_photo(photo: str | Path) -> None:
    """Raise DataError unless a file is there."""
    path = Path(photo).expanduser()
    if not path.is_file():
        reason = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{photo} {reason}: name one photo to search for")


class _Face(Folder):
    """The largest face of one photo."""

    def __getitem__(self, index: int) -> Sample:
        from facessl.data.decode import pixels
        from facessl.data.detect import largest_face

        sample = super().__getitem__(index)
        crop = largest_face(pixels(sample))
        if crop is None:
            raise DataError(f"no face found in {sample.key}: name a photo of one, or search without crop")
        return replace(sample, image=crop)


def l2_normalize(array: np.ndarray) -> np.ndarray:
    """Rows (N, C) scaled to length 1, float32; rows of zeros stay zeros."""
    array = np.asarray(array, np.float32)
    largest = np.maximum(np.abs(array).max(1, keepdims=True, initial=0), np.finfo(np.float32).tiny)
    array = array / largest  # so that no square overflows or vanishes
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def nearest(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact nearest rows by cosine; of equally near ones the first.

    Args:
        queries: (Q, C) of unit length (`l2_normalize`).
        rows: (N, C) of unit length.

    Returns:
        Distances 1 - cosine, (Q, k) float32, ascending, and positions (Q, k) int64; k is N if it is larger.
    """
    k = min(k, len(rows))
    distances, chosen = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for i, query in enumerate(queries):
        away = np.clip(1 - rows @ query, 0, 2)  # (N,)
        near = np.flatnonzero(away <= np.partition(away, k - 1)[k - 1])
        chosen[i] = near[np.argsort(away[near], kind="stable")[:k]]
        distances[i] = away[chosen[i]]
    return distances, chosen
