"""From a source to batches: order, sharding over ranks and workers, exact resume, unreadable images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from facessl.core.errors import ConfigError, DataError, FaceSSLError
from facessl.core.types import Batch, Sample
from facessl.data.collate import Collector, Skipped
from facessl.data.decode import ImageError, Reduction, decode
from facessl.data.order import Order, uniforms, view_rng
from facessl.data.source import Source
from facessl.data.workers import worker_batches

#: Image (H, W, 3) uint8 and the sample's own generator -> V views (S_v, S_v, 3) uint8 and V parameter rows (P,)
#: float32. An attribute `min_side` (pixels), where there is one, lets JPEGs be decoded at reduced size.
Transform = Callable[[np.ndarray, np.random.Generator], tuple[list[np.ndarray], list[np.ndarray]]]
#: Image (H, W, 3) uint8 -> (S, S, 3) uint8.
EvalTransform = Callable[[np.ndarray], np.ndarray]
# A Transform that can draw its random numbers before it sees the image has `sizes` (S_v of its views) and
# `drawn(generator)`, which is used instead of the call: what it returns says by its `reduction` (see `decode`) how the
# image may be decoded, and is then called with (image, arrays of the views' sizes to be filled) -> the same as above.
# A transform of either kind that also moves landmarks, boxes or masks has a method `with_sample`, which is used
# instead: (sample, image, generator or None) -> sample with the moved fields and `frame`, views, parameter rows.
# A transform that makes no views has `draws` and `rows`, which is used instead: shapes (B, 2) of the images and the
# first `draws` numbers of their generators (B, draws) -> `Batch.params`. A stream cannot have such a transform.

#: Unreadable images one after the other that mean that something other than the images is wrong.
MAX_BAD_IN_ROW = 100


class TrainLoader:
    """Batches without end, the same whatever the number of workers and ranks.

    Epoch e visits the source in a permutation drawn from (seed, e); the rest that does not fill a batch is left
    out. The views of an image depend on (seed, epoch, index) alone. An unreadable image is replaced by the next
    readable one in the source, with views of its own, and reported in `Batch.skipped`.

    `Batch.landmarks` and `Batch.mask` are those of the stored image, before the crop.

    A stream (`source.streaming`) has no positions: `Batch.index` is -1, its order comes from the source's own
    buffer shuffle, and it depends on the number of workers and ranks.

    Attributes:
        steps_per_epoch: optimiser steps of one pass; None for a stream.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        pin_memory: bool = False,
        weights: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            source: images by position, or a stream.
            transform: makes the views of one image (`Transform`).
            batch_size: images of one optimiser step over all ranks; rank r gets its contiguous r-th part.
            seed: of the order and the views, 0 or more.
            workers: processes that decode; 0 decodes in this process.
            rank, world_size: this process among those that train.
            start_step: optimiser steps already done; iteration goes on there without reading what was done.
            pin_memory: put batches into page-locked memory for the copy to a GPU.
            weights: (N,) shares that sum to 1; an epoch then draws N images by them, with replacement.

        Raises:
            ConfigError: a batch that exceeds the source or does not divide by the ranks, a negative number, or a
                start in the middle of a stream.
        """
        for name, value, least in (
            ("batch size", batch_size, 1),
            ("seed", seed, 0),
            ("number of workers", workers, 0),
            ("start step", start_step, 0),
        ):
            if value < least:
                raise ConfigError(f"the {name} is {value}, but it must be {least} or more")
        if batch_size % world_size:
            fitting = max(1, batch_size // world_size) * world_size
            raise ConfigError(
                f"a batch of {batch_size} images cannot be split evenly over {world_size} ranks: use {fitting}"
            )
        self.steps_per_epoch: int | None = None
        self._local = batch_size // world_size
        if source.streaming:
            if start_step:
                raise ConfigError(
                    f"cannot resume at step {start_step} of a stream: exact resume needs random access "
                    "(tar files on a disk, or a folder)"
                )
            self._dataset: Any = _Stream(source, transform, self._local, seed, rank, world_size)
            self._sampler = None
            workers = _stream_workers(source, workers, world_size)
        else:
            if batch_size > len(source):
                raise ConfigError(
                    f"a batch of {batch_size} images is larger than the source, which has {len(source)}: use a "
                    f"batch size of {len(source) // world_size * world_size or 1} or less"
                )
            self.steps_per_epoch = len(source) // batch_size
            self._dataset = _Views(source, transform, seed)
            self._sampler = Order(len(source), batch_size, seed, rank, world_size, start_step, weights)
        self._workers, self._pin_memory = workers, pin_memory

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `start_step` on, without end.

        Raises:
            DataError: `MAX_BAD_IN_ROW` images in a row, or all there are, cannot be read.
            TrainingError: a worker process died.
        """
        return worker_batches(self._dataset, self._sampler, self._workers, self._pin_memory)


class EvalLoader:
    """Every image of a source once, in order (of a stream: as it comes).

    Attributes:
        skipped: (key, reason) of every unreadable image so far; those are left out.
    """

    def __init__(
        self, source: Source, transform: EvalTransform, *, batch_size: int, workers: int = 0, pin_memory: bool = False
    ) -> None:
        """
        Args:
            source: images by position, or a stream.
            transform: makes the one view of an image (`EvalTransform`).
            batch_size: images per batch; less where some cannot be read, and in the last batch.
            workers: processes that decode; 0 decodes in this process.
            pin_memory: put batches into page-locked memory for the copy to a GPU.
        """
        if batch_size < 1 or workers < 0:
            raise ConfigError(f"batch size {batch_size} and {workers} workers: the one must be > 0, the other >= 0")
        self.skipped: Skipped = []
        if source.streaming:
            self._dataset: Any = _Stream(source, _Plain(transform), batch_size)
            self._sampler = None
            workers = _stream_workers(source, workers)
        else:
            self._dataset = _Once(source, transform)
            n = len(source)
            self._sampler = [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
        self._workers, self._pin_memory = workers, pin_memory

    def __iter__(self) -> Iterator[Batch]:
        """Batches with one view and no `params`; `Batch.skipped` is what was left out since the last one.

        Raises:
            TrainingError: a worker process died.
        """
        self.skipped = []
        told = 0
        for batch in worker_batches(self._dataset, self._sampler, self._workers, self._pin_memory):
            self.skipped += batch.skipped
            if len(batch):
                batch.skipped, told = self.skipped[told:], len(self.skipped)
                yield batch


def _stream_workers(source: Any, workers: int, world_size: int = 1) -> int:
    """As many workers as every rank has shards for: one more would have nothing to read."""
    if source.shards < world_size:
        raise ConfigError(
            f"a stream of {source.shards} shards cannot feed {world_size} ranks: pack it into more shards or use "
            "fewer ranks"
        )
    return min(workers, source.shards // world_size)


def pixels(sample: Sample, min_side: int | None = None, reduction: Reduction | None = None) -> np.ndarray:
    """The image of a sample, (H, W, 3) uint8 RGB; `min_side`, `reduction` and errors as in `decode`."""
    if isinstance(sample.image, np.ndarray):
        return sample.image
    return decode(sample.image, key=sample.key, min_side=min_side, reduction=reduction)


class _OneImage:
    """A transform about to make the views of one image: what has been drawn for it, whatever kind of transform it is.

    Attributes:
        min_side, reduction: how the image may be decoded (see `decode`).
    """

    def __init__(self, transform: Any, rng: np.random.Generator | None) -> None:
        self._transform, self._rng = transform, rng
        self._drawn: Any = transform.drawn(rng) if _draws_first(transform) and rng is not None else None
        self.reduction: Reduction | None = None if self._drawn is None else self._drawn.reduction
        self.min_side: int | None = getattr(transform, "min_side", None)

    def pixels(self, sample: Sample) -> np.ndarray:
        """The sample's image, as small as the views allow. Raises ImageError."""
        return pixels(sample, self.min_side, self.reduction)

    def add_to(self, batch: Collector, index: int, sample: Sample, image: np.ndarray) -> None:
        """Make the views of `image` and put them into the batch."""
        transform, rng = self._transform, self._rng
        if self._drawn is not None:
            batch.add(index, sample, *self._drawn(image, batch.room()))
        elif hasattr(transform, "with_sample"):
            batch.add(index, *transform.with_sample(sample, image, rng))
        elif rng is None:
            batch.add(index, sample, [transform(image)], [])
        else:
            batch.add(index, sample, *transform(image, rng))


def _draws_first(transform: Any) -> bool:
    """Whether a training transform has `drawn` (see `Transform`)."""
    return hasattr(transform, "drawn") and not hasattr(transform, "with_sample")


def _collector(transform: Any, rows: int) -> Collector:
    return Collector(rows, transform.sizes) if _draws_first(transform) else Collector()


class _Views(Dataset[Any]):
    """One item is one whole training batch."""

    def __init__(self, source: Source, transform: Transform, seed: int) -> None:
        self.source, self.seed = source, seed
        self.transform: Any = transform

    def __getitem__(self, item: tuple[int, np.ndarray]) -> Batch | FaceSSLError:
        epoch, indices = item
        if hasattr(self.transform, "rows"):
            return self._without_views(epoch, indices)
        batch = _collector(self.transform, len(indices))
        try:
            for index in indices.tolist():
                # The generator of the position that was asked for: a substitute that is also in this batch in
                # its own right does not get the same views twice.
                making = _OneImage(self.transform, view_rng(self.seed, epoch, index))
                making.add_to(batch, *self._readable(index, making, batch.skipped))
        except FaceSSLError as error:
            return error
        return batch.done()

    def _without_views(self, epoch: int, indices: np.ndarray) -> Batch | FaceSSLError:
        """What is drawn for a batch, all of it at once."""
        batch, making, shapes = Collector(), _OneImage(self.transform, None), []
        try:
            for index in indices.tolist():
                used, sample, image = self._readable(index, making, batch.skipped)
                shapes.append(image.shape[:2])
                batch.add(used, sample, [], [])
        except FaceSSLError as error:
            return error
        draws = uniforms(self.seed, epoch, indices, self.transform.draws)
        return batch.done(self.transform.rows(np.array(shapes), draws))

    def _readable(self, index: int, making: _OneImage, skipped: Skipped) -> tuple[int, Sample, np.ndarray]:
        """The image at `index`, or the first readable one after it."""
        tries = min(MAX_BAD_IN_ROW, len(self.source))
        for used in range(index, index + tries):
            used %= len(self.source)
            try:
                sample = self.source[used]
                return used, sample, making.pixels(sample)
            except ImageError as error:
                skipped.append((error.key, error.reason))
                last = error
        raise DataError(f"{tries} images in a row could not be read: {last}")


class _Once(Dataset[Any]):
    """One item is one evaluation batch, without its unreadable images."""

    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, indices: Iterable[int]) -> Batch | FaceSSLError:
        batch, making = Collector(), _OneImage(self.transform, None)
        try:
            for index in indices:
                try:
                    sample = self.source[index]
                    image = making.pixels(sample)
                except ImageError as error:
                    batch.skipped.append((error.key, error.reason))
                    continue
                making.add_to(batch, index, sample, image)
        except FaceSSLError as error:
            return error
        return batch.done()


class _Plain:
    """An evaluation transform where a training transform is expected."""

    def __init__(self, transform: EvalTransform) -> None:
        self.transform = transform

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [self.transform(image)], []


class _Stream(IterableDataset[Any]):
    """Batches of a streaming source: without end where there is a seed, else one pass."""

    def __init__(
        self,
        source: Any,
        transform: Transform,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source, self.transform, self.batch_size, self.seed = source, transform, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch | FaceSSLError]:
        batch, bad = _collector(self.transform, self.batch_size), 0
        try:
            for rng, sample in self._samples():
                making = _OneImage(self.transform, rng)
                try:
                    image = making.pixels(sample)
                except ImageError as error:
                    bad += 1
                    batch.skipped.append((error.key, error.reason))
                    if bad == MAX_BAD_IN_ROW:
                        raise DataError(f"{bad} images in a row could not be read: {error}") from None
                    continue
                bad = 0
                making.add_to(batch, -1, sample, image)
                if len(batch) == self.batch_size:
                    yield batch.done()
                    batch = _collector(self.transform, self.batch_size)
        except FaceSSLError as error:
            yield error
            return
        if len(batch) or batch.skipped:
            yield batch.done()

    def _samples(self) -> Iterator[tuple[np.random.Generator, Sample]]:
        info = torch.utils.data.get_worker_info()
        place = (self.rank, info.id if info else 0)
        for epoch in itertools.count() if self.seed is not None else (0,):
            stream = self.source.stream(seed=self.seed, epoch=epoch, rank=self.rank, world_size=self.world_size)
            empty = True
            for count, sample in enumerate(stream):
                entropy = np.random.SeedSequence((self.seed or 0, epoch, count), spawn_key=place)
                yield np.random.Generator(np.random.PCG64(entropy)), sample
                empty = False
            if empty:
                raise DataError("the stream holds no image")
