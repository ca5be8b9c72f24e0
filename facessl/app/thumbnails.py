"""The thumbnails of the faces: made once, while the page is already open, and kept in a file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image, ImageOps

from facessl.core import environment, files
from facessl.core.errors import DataError
from facessl.core.lock import only_writer
from facessl.core.progress import ProgressLine
from facessl.data.decode import decode
from facessl.data.source import Source
from facessl.inference import contact_sheet
from facessl.inference.embedding_formats import Embeddings

#: Pixels of a thumbnail, its JPEG quality, and how many are made at a time.
SIDE, QUALITY, PART = 128, 75, 512
#: Bytes of a thumbnail, at most, with room for headers: it takes less than its pixels.
_MAX_BYTES = 3 * SIDE * SIDE + 4096
_GRAY = (200, 202, 206)
_MARK = b"facessl.thumbnails"


class Thumbnails:
    """The thumbnails of N faces, JPEGs of `SIDE` pixels square.

    Those in the file are taken where they are of these rows. Else `make` makes and keeps them, and one that is asked
    for before is made at once.

    Args:
        file: where they are kept.
        rows: the faces.
        source: their images; None: each key is the path of its image.
    """

    def __init__(self, file: Path, rows: Embeddings, source: Source | None) -> None:
        self.file, self._rows, self._source = file, rows, source
        mark = hashlib.blake2b(np.ascontiguousarray(rows.array).data, digest_size=16)
        mark.update("\0".join(rows.keys).encode("utf-8", "surrogateescape"))
        digits = mark.hexdigest().encode()
        self._schema = pa.schema([("jpeg", pa.large_binary())], metadata={_MARK: digits})
        self._kept = _kept(file, len(rows), self._schema)

    @property
    def complete(self) -> bool:
        """Whether all are there."""
        return self._kept is not None

    def jpegs(self, rows: Sequence[int]) -> list[bytes]:
        """The thumbnails of some faces."""
        kept = self._kept
        return self._made(rows) if kept is None else [kept[row].as_py() for row in rows]

    def pictures(self, rows: Sequence[int]) -> list[Image.Image]:
        """The same, decoded."""
        return [Image.fromarray(simplejpeg.decode_jpeg(jpeg)) for jpeg in self.jpegs(rows)]

    def make(self, ended: Callable[[], bool] = lambda: False) -> None:
        """Make all and keep them, unless they are there; nothing is kept where `ended` says True before the last.

        Raises:
            DataError: the file cannot be written.
        """
        if self.complete:
            return
        with contextlib.suppress(_Ended), only_writer(self.file, folder=False, wait=True):
            self._kept = _kept(self.file, len(self._rows), self._schema)  # another process has made them
            if not self.complete:
                self._write(ended)
                self._kept = pq.read_table(self.file)["jpeg"].combine_chunks()

    def _write(self, ended: Callable[[], bool]) -> None:
        count = len(self._rows)
        with (
            ProgressLine("thumbnail") as progress,
            files.completed(self.file, private=True) as partial,
            pq.ParquetWriter(partial, self._schema, compression="none", use_dictionary=False) as writer,
        ):
            for start in range(0, count, PART):
                if ended():
                    raise _Ended
                part = self._made(range(start, min(start + PART, count)))
                writer.write_table(pa.table([pa.array(part, pa.large_binary())], schema=self._schema))
                progress(start + len(part), count)

    def _made(self, rows: Sequence[int]) -> list[bytes]:
        keys = [self._rows.keys[row] for row in rows]
        if self._source is None:
            return [_jpeg(picture) for picture in contact_sheet.thumbnails(keys, SIDE)]
        with ThreadPoolExecutor(environment.cores()) as pool:
            return list(pool.map(lambda key: _jpeg(self._picture(key)), keys))

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        source = self._source
        return {} if source is None else {source.key(i): i for i in range(len(source))}

    def _picture(self, key: str) -> Image.Image:
        """A square with the whole image in its middle; gray where it can no longer be read."""
        with contextlib.suppress(DataError, OSError):
            if self._source is not None and key in self._places:
                sample = self._source[self._places[key]]
                image = sample.image
                array = image if isinstance(image, np.ndarray) else decode(image, key=sample.key, min_side=SIDE)
                return ImageOps.pad(Image.fromarray(array), (SIDE, SIDE), color=_GRAY)
        return Image.new("RGB", (SIDE, SIDE), _GRAY)


class _Ended(Exception):
    """The page ends before all thumbnails are made."""


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


def _jpeg(picture: Image.Image) -> bytes:
    array = np.ascontiguousarray(picture)
    return simplejpeg.encode_jpeg(array, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
