"""The faces that the page shows and their embeddings, computed once; `thumbnails` has their pictures."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facessl.app.thumbnails import Thumbnails
from facessl.core import files
from facessl.core.errors import ConfigError
from facessl.core.escape import printable
from facessl.core.progress import ProgressLine
from facessl.data.source import Source, open_source
from facessl.inference.embedding_formats import Embeddings, read_embeddings
from facessl.inference.neighbors import l2_normalize

if TYPE_CHECKING:
    from facessl.inference.trained_task import Embedder
    from facessl.models.backbone import Backbone

#: Files of embeddings; others are sources.
ENDINGS = (".parquet", ".npy")


@dataclass
class Faces:
    """The N faces of a page.

    Attributes:
        rows: their embeddings.
        thumbnails: their pictures.
        folder: of the files that the page writes.
        stem: what the names of those files begin with.
        source: the images, if the page was opened with a source.
    """

    rows: Embeddings
    thumbnails: Thumbnails
    folder: Path
    stem: str
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def file(self, ending: str) -> Path:
        """A file of the page about these faces."""
        return self.folder / f"{self.stem}.{ending}"

    def path(self, row: int) -> str:
        """The path of a face, as text."""
        return printable(self.rows.keys[row])

    def name(self, row: int) -> str:
        """The last part of it."""
        return printable(Path(self.rows.keys[row]).name)

    @functools.cached_property
    def unit(self) -> np.ndarray:
        """(N, C) float32, the embeddings scaled to length 1."""
        return l2_normalize(self.rows.array)

    @functools.cached_property
    def classes(self) -> list[str]:
        """The label of each face; "" without one."""
        return self.rows.classes


def open_faces(given: str, network: Callable[[], Backbone | Embedder], folder: Path, **options: Any) -> Faces:
    """The faces of a source or of a file of embeddings.

    Args:
        given: a source as on the command line, or a file that `facessl embed` wrote (.parquet, .npy).
        network: gives what embeds a source.
        folder: of the embeddings of a source and of its thumbnails; those of a file lie beside the file. The
            thumbnails are not made yet.
        options: batch_size and workers, as for `facessl.embed`.

    Raises:
        ConfigError: the folder may not be written to.
        DataError: the source or the file cannot be read.
    """
    path = Path(given).expanduser()
    if path.suffix in ENDINGS:
        rows = read_embeddings(path)
        _check_folder(path.parent)
        return _faces(path.parent, path.stem, rows)
    source = open_source(given)
    if source.streaming:
        raise ConfigError(
            f"{given} is a stream, whose images cannot be shown again: name shards on a disk, or a folder"
        )
    _check_folder(folder)
    from facessl.inference.embed import network_id  # torch, which a file of embeddings does not need

    backbone = network()
    mark = hashlib.blake2b(f"{source.fingerprint()} {network_id(backbone, 'fp32')}".encode(), digest_size=6).hexdigest()
    stem = f"faces-{mark}"
    file = folder / f"{stem}.parquet"
    if not file.is_file():
        from facessl.core.launch import loader_workers
        from facessl.inference.embed_file import embed_to_file  # continues a stopped call

        options |= {"workers": loader_workers(options.pop("workers", 0))}
        with files.writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ProgressLine("face") as progress:
            embed_to_file(file, backbone, source, private=True, progress=progress, **options)
    return _faces(folder, stem, read_embeddings(file), source)


def _faces(folder: Path, stem: str, rows: Embeddings, source: Source | None = None) -> Faces:
    return Faces(rows, Thumbnails(folder / f"{stem}.thumbnails.parquet", rows, source), folder, stem, source)


def _check_folder(folder: Path) -> None:
    """Raise ConfigError if the files of the page cannot be written."""
    try:
        files.check_output(folder, folder=True)
    except ConfigError as error:
        reason = str(error).partition(", as ")[2].partition(":")[0]
        raise ConfigError(
            f"the page keeps thumbnails in {folder}, which cannot be made{reason and f', as {reason}'}: copy the "
            "embeddings to a folder where you may write, or name a folder for a source with --cache"
        ) from None
