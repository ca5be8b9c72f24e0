"""A source -> its file of embeddings, by one process or several ranks; a stopped command continues."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from facessl.core.blocks import Blocks, Record, RecordWithData, record
from facessl.core.distributed import gathered, world_size
from facessl.core.errors import ConfigError
from facessl.core.files import check_ending
from facessl.core.lock import only_writer
from facessl.core.schema import misfit
from facessl.data.decode import pixels
from facessl.data.skipped import ImageError, check_skipped
from facessl.data.source import Source
from facessl.inference.embed import embedding_batches, network_id
from facessl.inference.embedding_formats import ENDINGS, Embeddings, write_locked
from facessl.inference.trained_task import Embedder
from facessl.models.backbone import Backbone
from facessl.models.forward import PassOptions


class _Batch(TypedDict):
    """Fields of `Embeddings` that are stored beside the embeddings of a batch."""

    labels: list[int] | None
    skipped: list[tuple[str, str]]


def embed_to_file(
    path: Path,
    backbone: Backbone | Embedder,
    source: Source,
    *,
    private: bool = False,
    progress: Callable[[int, int], None] | None = None,
    max_bad: float = 0.05,
    **options: Any,
) -> tuple[int, list[tuple[str, str]]] | None:
    """Write the embeddings of a source. Every rank of a job calls this, and the last one to end writes the file.

    Args:
        path: as for `write_embeddings`; every rank sees its folder.
        private: nobody but the owner may read the file.
        progress: called with numbers of images of this rank, done and in total; not for a stream.
        backbone, source, max_bad, options: as for `facessl.embed`, errors too.

    Returns:
        Rows written and (key, reason) of the images that were skipped; None on the ranks that ended before the last.

    Raises:
        ConfigError: the source is a stream and there are several ranks, or another process writes the file.
    """
    check_ending(path, "embeddings", ENDINGS)
    chosen = PassOptions(max_bad=max_bad, **options)
    if source.streaming and world_size() > 1:
        raise ConfigError("a stream cannot be split over ranks: use shards on a disk, or one process")
    if source.streaming:
        batches = embedding_batches(backbone, source, **vars(chosen))
        with only_writer(path, folder=False):
            return write_locked(path, batches, private=private)
    network, width = network_id(backbone, chosen.precision), backbone.num_features
    labeled, classes = "label" in source.provides, len(source.label_names) or 1 << 63

    def compute(batches: Iterator[Sequence[int]]) -> Iterator[list[RecordWithData]]:
        loaded, positions_of_each = itertools.tee(batches)
        parts = embedding_batches(backbone, source, batches=loaded, network=network, **vars(chosen))
        for part, positions in zip(parts, positions_of_each, strict=False):
            labels = part.labels.tolist() if labeled and part.labels is not None else None
            unreadable = sorted({*positions}.difference(part.index.tolist()))
            yield [record(positions, unreadable, {"labels": labels, "skipped": part.skipped}, [part.array.tobytes()])]

    def valid(saved: Record) -> bool:
        values, missing = saved["values"], len(saved["unreadable"])
        if misfit(values, _Batch) or len(values["skipped"]) != missing:
            return False
        rows, labels = len(saved["positions"]) - missing, values["labels"]
        if saved["sizes"] != [4 * width * rows] or (rows and (labels is not None) != labeled):
            return False
        return labels is None or (len(labels) == rows and all(-1 <= label < classes for label in labels))

    blocks = Blocks(
        path,
        (source.fingerprint(), network),
        len(source),
        range(len(source)),
        compute,
        valid=valid,
        readable=functools.partial(_readable, source),
        piece=max(1, chosen.batch_size),  # the loader refuses less
    )
    with only_writer(path, folder=False) if world_size() == 1 else contextlib.nullcontext():
        blocks.begin()
        gathered(None)  # a rank that came later could find the work done, and begin again
        blocks.work(progress)
        with blocks.joined() as records:
            if records is None:
                return None
            return write_locked(path, _rows(records, source, width, network, max_bad), private=private)


def _readable(source: Source, index: int) -> bool:
    with contextlib.suppress(ImageError):
        pixels(source[index])
        return True
    return False


def _rows(
    records: Iterator[RecordWithData], source: Source, width: int, network: str, max_bad: float
) -> Iterator[Embeddings]:
    """The batches of all blocks. DataError if more than `max_bad` of the images could not be read."""
    skipped = 0
    for saved, (data,) in records:
        labels = saved["values"]["labels"]
        index = sorted({*saved["positions"]}.difference(saved["unreadable"]))
        unreadable = tuple((key, reason) for key, reason in saved["values"]["skipped"])
        skipped += len(unreadable)
        if unreadable:
            check_skipped(skipped, len(source), max_bad, unreadable[-1])
        yield Embeddings(
            array=np.frombuffer(data, np.float32).reshape(-1, width),
            keys=[source.key(i) for i in index],
            index=np.array(index, np.int64),
            labels=None if labels is None else np.array(labels, np.int64),
            label_names=tuple(source.label_names),
            skipped=unreadable,
            network=network,
        )
