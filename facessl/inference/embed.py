"""Using a trained backbone: embeddings of a source. `embedding_formats` writes and reads their files."""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facessl.core.errors import ConfigError, DataError, DataWarning, many
from facessl.core.types import Batch
from facessl.data.loader import OneView
from facessl.data.source import Source, open_source
from facessl.inference.embedding_formats import Embeddings, example
from facessl.inference.trained_task import Embedder, load_trained
from facessl.models.backbone import Backbone
from facessl.models.forward import PassOptions, forward
from facessl.models.weights import fingerprint
from facessl.pretrained.load import load_backbone, weight_files
from facessl.views.geometric import resize


def load_embedder(run: str | Path) -> Backbone | Embedder:
    """Load the embedding that a run of verification was trained for, else the run's backbone.

    Arguments and errors as for `facessl.load_backbone`.
    """
    if "task" in weight_files(run):
        with contextlib.suppress(KeyError):  # a task without an embedding of its own
            return Embedder(load_trained(run))
    return load_backbone(run)


def network_of(run: str | os.PathLike[str] | Backbone | Embedder) -> Backbone | Embedder:
    """A loaded network as it is; of a run folder, checkpoint or export what `load_embedder` gives.

    ConfigError: neither.
    """
    if isinstance(run, str | os.PathLike):
        return load_embedder(os.fspath(run))
    if not isinstance(run, Backbone | Embedder):
        raise ConfigError(
            f"the network is of type {type(run).__name__}: give what facessl.load_backbone returns, or a run folder"
        )
    return run


def network_id(backbone: Backbone | Embedder, precision: str) -> str:
    """`PRECISION:DIGITS`; embeddings can be compared if the digits, of weights and preprocessing, are the same."""
    view = backbone.augment if isinstance(backbone, Embedder) else None
    crop = "" if view is None else f"-{view.crop_scale}-{view.warp}-{view.border}"
    return f"{precision}:{fingerprint(backbone)}{crop}"


def embedding_batches(
    backbone: Backbone | Embedder,
    source: Source,
    *,
    batches: Iterable[Sequence[int]] | None = None,
    network: str = "",
    **options: Any,
) -> Iterator[Embeddings]:
    """Embeddings batch by batch, so that a source of any size fits in memory. Options as for `embed`.

    An item may hold no image: the last one, with what was skipped at the end, and any one of `batches` (the positions
    of each batch). The results of a batch are fetched while a GPU works on the next one.
    """
    chosen = PassOptions(**options)
    view = backbone.view if isinstance(backbone, Embedder) else functools.partial(resize, size=backbone.image_size)
    loader = chosen.loader(source, OneView(view), backbone, batches)
    seen, network = 0, network or network_id(backbone, chosen.precision)
    empty = torch.zeros(0, backbone.num_features)
    waiting: tuple[Batch, Tensor, torch.cuda.Event | None] | None = None
    for batch in loader:
        seen += len(batch.skipped)
        z = forward(backbone, batch.views[0], chosen.precision) if len(batch) else empty  # (B, C)
        sent = batch, *_sent(z)
        if waiting is not None:
            yield _fetched(source, network, *waiting)
        waiting = sent
    if waiting is not None:
        yield _fetched(source, network, *waiting)
    if len(loader.skipped) > seen:
        index = np.zeros(0, np.int64)
        yield Embeddings(array=empty.numpy(), keys=[], index=index, skipped=tuple(loader.skipped[seen:]))


def _sent(z: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start the copy of `z` to the CPU, before a GPU is given its next batch; the event says when it has arrived."""
    if not z.is_cuda:
        return z.float().cpu(), None
    pinned = z.float().to("cpu", non_blocking=True)
    return pinned, torch.cuda.current_stream(z.device).record_event()


def _fetched(source: Source, network: str, batch: Batch, z: Tensor, arrived: torch.cuda.Event | None) -> Embeddings:
    array = z.numpy()
    if arrived is not None:
        arrived.synchronize()
        array = array.copy()  # pinned memory is not for keeping
    if not (finite := np.isfinite(array).all(1)).all():
        raise DataError(
            f"the embedding of {batch.keys[int(finite.argmin())]} is not finite: use --precision fp32 or "
            "bf16, or other weights"
        )
    return Embeddings(
        array=array,
        keys=list(batch.keys),
        index=batch.index.numpy(),
        labels=None if batch.label is None else batch.label.numpy(),
        label_names=tuple(source.label_names),
        skipped=tuple(batch.skipped),
        network=network,
    )


def embeddings(
    backbone: str | os.PathLike[str] | Backbone | Embedder,
    source: str | os.PathLike[str] | Source,
    *,
    batch_size: int = 64,
    workers: int = 0,
    precision: str = "fp32",
    max_bad: float = 0.05,
) -> Embeddings:
    """Embeddings of a source with the key and label of each row; arguments and errors as for `facessl.embed`.

    `facessl.write_embeddings("embeddings.parquet", facessl.embeddings(backbone, "faces/"))`

    Returns:
        `array` (N, C) float32, one row per readable image in the order of the source; `keys`, `index` and `labels` of
        the rows; `skipped`, the images that could not be read.
    """
    opened, options = open_source(source), PassOptions(batch_size, workers, precision, max_bad)
    parts = list(embedding_batches(network_of(backbone), opened, **vars(options)))
    skipped = tuple(pair for part in parts for pair in part.skipped)
    parts = [part for part in parts if len(part)]
    if not parts and len(skipped) == 1:
        raise DataError(f"the image {skipped[0][0]} cannot be read: {skipped[0][1]}")
    if not parts:
        named = "the source" if isinstance(source, Source) else os.fspath(source)
        raise DataError(f"no image of {named} could be read{example(skipped)}")
    labels = [part.labels for part in parts if part.labels is not None]
    return Embeddings(
        array=np.concatenate([part.array for part in parts]),
        keys=[key for part in parts for key in part.keys],
        index=np.concatenate([part.index for part in parts]),
        labels=np.concatenate(labels) if len(labels) == len(parts) else None,
        label_names=parts[0].label_names,
        skipped=skipped,
        network=parts[0].network,
    )


def embed(
    backbone: str | os.PathLike[str] | Backbone | Embedder,
    source: str | os.PathLike[str] | Source,
    *,
    batch_size: int = 64,
    workers: int = 0,
    precision: str = "fp32",
    max_bad: float = 0.05,
) -> np.ndarray:
    """Embeddings of a source.

    Args:
        backbone: from `facessl.load_backbone`, or from `facessl.load_embedder`, which gives the trained embedding of a
            run of verification; or a run folder, checkpoint or export, which `load_embedder` then reads. The images go
            to the device its weights are on.
        source: a source, a path, or how it is written on the command line.
        batch_size: images per forward pass.
        workers: loader processes; 0 reads in this one.
        precision: fp32, bf16 or fp16 (autocast).
        max_bad: fraction of unreadable images above which it stops.

    Returns:
        (N, C) float32, one row per readable image in the order of the source. A `DataWarning` says how many images
        could not be read: they have no row, and `facessl.embeddings` gives the keys of the others.

    Raises:
        DataError: the source cannot be opened, or more than `max_bad` of its images, or all of them, cannot be read.
        CheckpointError: no network there.
        ConfigError: an unknown precision.
    """
    options = PassOptions(batch_size, workers, precision, max_bad)
    found = embeddings(backbone, source, **vars(options))
    if lost := len(found.skipped):
        images = many(lost + len(found), "image")
        warnings.warn(
            f"{lost:,} of {images} could not be read and {'has' if lost == 1 else 'have'} no row"
            f"{example(found.skipped)}: facessl.embeddings(...) gives the key of every row",
            DataWarning,
            stacklevel=2,
        )
    return found.array
