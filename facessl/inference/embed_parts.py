"""Embeddings by several ranks: each embeds contiguous blocks of a source, and the first one joins them into one file.

Blocks lie in a hidden folder beside the file, named by source and network, until it is complete; the same command takes
those that are there, whatever stopped the one before.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow.parquet as pq
import torch.distributed as dist

from facessl.core import files, tables
from facessl.core.distributed import own_part, rank, world_size
from facessl.core.errors import ConfigError, FaceSSLError
from facessl.core.schema import read_json
from facessl.data.decode import ImageError
from facessl.data.loader import check_skipped, pixels
from facessl.data.source import Source
from facessl.data.subset import Subset
from facessl.inference.embed import Embeddings, embedding_batches, network_id
from facessl.inference.embedding_files import NETWORK, array_of, write_embeddings
from facessl.inference.trained_task import Embedder
from facessl.models.backbone import Backbone

#: Images of a block, at most: what is lost where a rank is killed.
BLOCK = 4096


def embed_in_parts(
    path: Path,
    backbone: Backbone | Embedder,
    source: Source,
    *,
    precision: str = "fp32",
    max_bad: float = 0.05,
    **options: Any,
) -> tuple[int, list[tuple[str, str]]] | None:
    """As `write_embeddings` of `embedding_batches`, by all ranks; each of them calls this.

    Args:
        path: file that the first rank writes; every rank sees its folder.
        options: batch_size and workers, as for `facessl.embed`.

    Returns:
        On the first rank rows written and (key, reason) of the images that were skipped; None on the others.

    Raises:
        ConfigError: the source is a stream.
        DataError: more than `max_bad` of all images cannot be read, or a file cannot be written.
    """
    if source.streaming:
        raise ConfigError("a stream cannot be split over ranks: use shards on a disk, or one process")
    block = min(BLOCK, -(-len(source) // world_size()))
    starts = range(0, len(source), block)
    network = network_id(backbone, precision)
    told = [_mark(source, network, block) if rank() == 0 else ""]
    if world_size() > 1:
        dist.broadcast_object_list(told)
    folder = path.with_name(f".{path.name}.{told[0]}.parts")
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link, which is not written through: remove it")
    skipped: list[list[str]] = []
    for start in starts[own_part(len(starts))]:
        part = Subset(source, np.arange(start, min(start + block, len(source))))
        skipped += _embed_block(folder, start, part, backbone, precision, options)
        _check(skipped, source, max_bad)
    if world_size() > 1:
        dist.barrier()
    if rank():
        return None
    blocks = [read_json(_note(folder, start), _Note) for start in starts]
    every = [pair for note in blocks for pair in note["skipped"]]
    _check(every, source, max_bad)
    rows = (_rows(folder, start, source, network) for start, note in zip(starts, blocks, strict=True) if note["rows"])
    count, _ = write_embeddings(path, (batch for block in rows for batch in block))
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.parts"):  # also of the source before a correction
        shutil.rmtree(left, ignore_errors=True)
    return count, [(key, reason) for key, reason in every]


class _Note(TypedDict):
    """What is told of a block: its rows, and (key, reason) of the images that were skipped."""

    rows: int
    skipped: list[list[str]]


def _mark(source: Source, network: str, block: int) -> str:
    """Digits of all that decides what is in the blocks."""
    return hashlib.blake2b(repr((source.fingerprint(), network, block)).encode(), digest_size=6).hexdigest()


def _note(folder: Path, start: int) -> Path:
    """The file that is there when the block of images from `start` is complete."""
    return folder / f"{start:012d}.json"


def _embed_block(
    folder: Path, start: int, part: Source, backbone: Backbone | Embedder, precision: str, options: dict[str, Any]
) -> list[list[str]]:
    """Embed one block, unless it is there already. Returns (key, reason) of the images that were skipped."""
    note = _note(folder, start)
    skipped = _known(note, part, network_id(backbone, precision))
    if skipped is None:
        batches = list(embedding_batches(backbone, part, precision=precision, max_bad=1, **options))
        rows = sum(map(len, batches))
        if rows:
            write_embeddings(rows_file := note.with_suffix(".parquet"), batches)
            with rows_file.open("r+b") as file:
                files.sync(file)
        skipped = [list(pair) for batch in batches for pair in batch.skipped]
        files.write_atomic(note, json.dumps({"rows": rows, "skipped": skipped}).encode())
    return skipped


def _known(note: Path, part: Source, network: str) -> list[list[str]] | None:
    """What an earlier call skipped of a block; None where it has to be embedded: it is not there, its rows cannot be
    read (a lost disk cache) or are of other images, or one of those images can be read by now."""
    paths: list[str] = []
    try:
        told: _Note = read_json(note, _Note)
        if told["rows"]:
            with files.open_regular(note.with_suffix(".parquet"), most=None) as raw, pq.ParquetFile(raw) as file:
                if (file.schema_arrow.metadata or {}).get(NETWORK) != network.encode():
                    return None
                paths = file.read(["path"], use_threads=False)["path"].to_pylist()
    except (OSError, ValueError, KeyError, FaceSSLError):
        return None
    skipped = [pair for pair in told["skipped"] if len(pair) == 2]
    found = sorted([*paths, *(tables.printable(key) for key, _ in skipped)])
    if found != sorted(tables.printable(part.key(index)) for index in range(len(part))):
        return None
    keys = {key for key, _ in skipped}
    again = [index for index in range(len(part)) if part.key(index) in keys] if keys else []
    return skipped if len(again) == len(skipped) and not any(_readable(part, index) for index in again) else None


def _readable(source: Source, index: int) -> bool:
    try:
        pixels(source[index])
    except ImageError:
        return False
    return True


def _check(skipped: list[list[str]], source: Source, max_bad: float) -> None:
    if skipped:
        check_skipped(len(skipped), len(source), max_bad, (skipped[-1][0], skipped[-1][1]))


def _rows(folder: Path, start: int, source: Source, network: str) -> Iterator[Embeddings]:
    """The row groups of a block."""
    with pq.ParquetFile(_note(folder, start).with_suffix(".parquet"), pre_buffer=False) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, use_threads=False)
            keys = [tables.from_printable(text) for text in table["path"].to_pylist()]
            labels = table["label"].fill_null(-1).to_numpy() if "label" in table.column_names else None
            index = np.full(len(keys), -1, np.int64)
            yield Embeddings(
                array_of(table["embedding"]), keys, index, labels, tuple(source.label_names), network=network
            )
