"""The faces that the page shows: their embeddings, computed once, and their thumbnails, made once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image, ImageOps

from facessl.core import environment, files
from facessl.core.errors import ConfigError, DataError
from facessl.core.lock import only_writer
from facessl.core.progress import ProgressLine
from facessl.core.tables import printable
from facessl.data.decode import decode
from facessl.data.source import Source, open_source
from facessl.inference import contact_sheet
from facessl.inference.embed import Embeddings, network_id
from facessl.inference.embed_file import embed_to_file
from facessl.inference.embedding_files import read_embeddings
from facessl.inference.neighbors import l2_normalize
from facessl.inference.trained_task import Embedder
from facessl.models.backbone import Backbone

#: Pixels of a thumbnail, its JPEG quality, and how many are made at a time.
SIDE, QUALITY, PART = 128, 75, 1024
#: Bytes of a thumbnail, at most, with room for headers: it takes less than its pixels.
_MAX_BYTES = 3 * SIDE * SIDE + 4096
#: Files of embeddings; others are sources.
ENDINGS = (".parquet", ".npy")
_GRAY = (200, 202, 206)
_MARK = b"facessl.thumbnails"


@dataclass
class Faces:
    """The N faces of a page.

    Attributes:
        rows: their embeddings.
        jpegs: their thumbnails, encoded; (N,) strings of bytes.
        folder: of the files that the page writes.
        stem: what the names of those files begin with.
        source: the images, where the page was opened with a source.
    """

    rows: Embeddings
    jpegs: pa.Array
    folder: Path
    stem: str
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def file(self, ending: str) -> Path:
        """A file of the page about these faces."""
        return self.folder / f"{self.stem}.{ending}"

    def thumbnail(self, row: int) -> Image.Image:
        """The thumbnail of a face, `SIDE` pixels square."""
        return Image.fromarray(simplejpeg.decode_jpeg(self.jpegs[row].as_py()))

    def jpeg(self, row: int) -> bytes:
        """The thumbnail of a face as a JPEG."""
        data: bytes = self.jpegs[row].as_py()
        return data

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
        rows = self.rows
        if rows.labels is None:
            return [""] * len(rows)
        names = rows.label_names or tuple(map(str, range(int(rows.labels.max(initial=-1)) + 1)))
        return [names[i] if i >= 0 else "" for i in rows.labels.tolist()]


def open_faces(given: str, network: Callable[[], Backbone | Embedder], folder: Path, **options: Any) -> Faces:
    """The faces of a source or of a file of embeddings.

    Args:
        given: a source as on the command line, or a file that `facessl embed` wrote (.parquet, .npy).
        network: gives what embeds a source.
        folder: of the embeddings of a source and of its thumbnails; those of a file lie beside the file.
        options: batch_size and workers, as for `facessl.embed`.

    Raises:
        ConfigError: the folder may not be written to.
        DataError: the source or the file cannot be read.
    """
    path = Path(given).expanduser()
    if path.suffix in ENDINGS:
        rows = read_embeddings(path)
        _check_folder(path.parent)
        return Faces(
            rows, _thumbnails(path.parent / f"{path.stem}.thumbnails.parquet", rows, None), path.parent, path.stem
        )
    source = open_source(given)
    if source.streaming:
        raise ConfigError(
            f"{given} is a stream, whose images cannot be shown again: name shards on a disk, or a folder"
        )
    _check_folder(folder)
    backbone = network()
    mark = hashlib.blake2b(f"{source.fingerprint()} {network_id(backbone, 'fp32')}".encode(), digest_size=6).hexdigest()
    stem = f"faces-{mark}"
    file = folder / f"{stem}.parquet"
    if not file.is_file():
        _embed(file, backbone, source, options)
    rows = read_embeddings(file)
    thumbnails = _thumbnails(folder / f"{stem}.thumbnails.parquet", rows, source)
    return Faces(rows, thumbnails, folder, stem, source)


def _check_folder(folder: Path) -> None:
    """ConfigError where the files of the page cannot be written."""
    try:
        files.check_output(folder, folder=True)
    except ConfigError as error:
        reason = str(error).partition(", as ")[2].partition(":")[0]
        raise ConfigError(
            f"the page keeps thumbnails in {folder}, which cannot be made{reason and f', as {reason}'}: copy the "
            "embeddings to a folder where you may write, or name a folder for a source with --cache"
        ) from None


def _embed(file: Path, backbone: Backbone | Embedder, source: Source, options: dict[str, Any]) -> None:
    """Embed a source; what a stopped call has done is taken."""
    with ProgressLine("face") as progress:
        embed_to_file(file, backbone, source, progress=progress, **options)


# ---- thumbnails --------------------------------------------------------------------------------------------------


def _thumbnails(file: Path, rows: Embeddings, source: Source | None) -> pa.Array:
    """The thumbnails of the rows (N,) as JPEGs, from their file where it is there and of these rows."""
    mark = hashlib.blake2b(np.ascontiguousarray(rows.array).data, digest_size=16)
    mark.update("\0".join(rows.keys).encode("utf-8", "surrogateescape"))
    digits = mark.hexdigest().encode()
    schema = pa.schema([("jpeg", pa.large_binary())], metadata={_MARK: digits})
    kept = _kept(file, len(rows), schema)
    if kept is not None:
        return kept
    with (
        ProgressLine("thumbnail") as progress,
        only_writer(file, folder=False),
        files.completed(file) as partial,
        pq.ParquetWriter(partial, schema, compression="none", use_dictionary=False) as writer,
    ):
        for done, part in _made(rows, source):
            writer.write_table(pa.table([pa.array(part, pa.large_binary())], schema=schema))
            progress(done, len(rows))
    return pq.read_table(file)["jpeg"].combine_chunks()


def _kept(file: Path, count: int, schema: pa.Schema) -> pa.Array | None:
    """The `count` thumbnails in a file; None where it is not one that was written here, as others may write there."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, pa.ArrowException),
        files.open_regular(file, most=count * _MAX_BYTES + (1 << 20)) as raw,
    ):
        table = pq.ParquetFile(raw)
        groups = [table.metadata.row_group(i).column(0) for i in range(table.metadata.num_row_groups)]
        plain = all(g.compression == "UNCOMPRESSED" and not g.has_dictionary_page for g in groups)
        if plain and table.metadata.num_rows == count and table.schema_arrow.equals(schema, check_metadata=True):
            jpegs = table.read()["jpeg"].combine_chunks()
            if not jpegs.null_count and all(map(_is_thumbnail, jpegs)):
                return jpegs
    return None


def _is_thumbnail(jpeg: pa.LargeBinaryScalar) -> bool:
    """Whether a JPEG has the size of a thumbnail. ValueError: it is not a JPEG."""
    data = jpeg.as_py()
    return len(data) <= _MAX_BYTES and simplejpeg.decode_jpeg_header(data)[:2] == (SIDE, SIDE)


def _made(rows: Embeddings, source: Source | None) -> Iterator[tuple[int, list[bytes]]]:
    """How many thumbnails are made, and the JPEGs of the last ones."""
    places = {} if source is None else {source.key(i): i for i in range(len(source))}
    for start in range(0, len(rows), PART):
        keys = rows.keys[start : start + PART]
        if source is None:
            pictures = contact_sheet.thumbnails(keys, SIDE)
        else:
            with ThreadPoolExecutor(environment.cores()) as pool:
                pictures = list(pool.map(lambda key: _thumbnail(source, places.get(key)), keys))
        yield start + len(keys), [_jpeg(picture) for picture in pictures]


def _thumbnail(source: Source, index: int | None) -> Image.Image:
    """A square with the whole image in its middle; gray where it can no longer be read."""
    with contextlib.suppress(DataError, OSError):
        if index is not None:
            sample = source[index]
            image = sample.image
            array = image if isinstance(image, np.ndarray) else decode(image, key=sample.key, min_side=SIDE)
            return ImageOps.pad(Image.fromarray(array), (SIDE, SIDE), color=_GRAY)
    return Image.new("RGB", (SIDE, SIDE), _GRAY)


def _jpeg(picture: Image.Image) -> bytes:
    array = np.ascontiguousarray(picture)
    return simplejpeg.encode_jpeg(array, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
