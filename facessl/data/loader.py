"""From a source to batches: order, sharding over ranks and workers, exact resume, unreadable images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from facessl.core.errors import ConfigError, DataError, FaceSSLError
from facessl.core.types import Batch, Sample
from facessl.data.collate import Collector
from facessl.data.decode import Reduction, pixels
from facessl.data.order import Order, view_rng
from facessl.data.skipped import MAX_BAD_IN_ROW, ImageError, Skipped, check_skipped
from facessl.data.source import Source
from facessl.data.workers import worker_batches

#: Sample with its labels in the first view, V views (S_v, S_v, 3) uint8, V or no parameter rows (P,) float32, V or no
#: rows (5,) float32 of `Batch.crops`.
SampleViews = tuple[Sample, list[np.ndarray], list[np.ndarray], list[np.ndarray]]


class DrawnTransform(Protocol):
    """The transform of one image, with its random numbers drawn."""

    @property
    def reduction(self) -> Reduction | None:
        """Allowed reduction of the image in decoding (see `decode`); None: no reduction."""

    def __call__(self, sample: Sample, image: np.ndarray, out: list[np.ndarray]) -> SampleViews:
        """Make views of `image`, (H, W, 3) uint8, in the V arrays `out`, or in new memory if it is empty."""


class Transform(Protocol):
    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides S_v of the views that are written into `out`; empty if the views have their own memory."""

    def draw(self, rng: np.random.Generator | None) -> DrawnTransform:
        """Draw the random numbers of one image's views, before it is decoded; None: evaluation, nothing is random."""


class OneView:
    """Evaluation by a function of the image: (H, W, 3) uint8 -> the one view (S, S, 3) uint8."""

    sizes, reduction = (), None

    def __init__(self, view: Callable[[np.ndarray], np.ndarray]) -> None:
        self._view = view

    def draw(self, rng: np.random.Generator | None) -> OneView:
        return self

    def __call__(self, sample: Sample, image: np.ndarray, out: list[np.ndarray]) -> SampleViews:
        return sample, [self._view(image)], [], []


class TrainLoader:
    """Endless batches that do not depend on the number of workers and ranks.

    Epoch e visits the source in a permutation drawn from (seed, e); the rest that does not fill a batch is left
    out. The views of an image depend on (seed, epoch, index) alone. An unreadable image is replaced by the next
    readable one in the source, with views of its own, and reported in `Batch.skipped`.

    A stream has no positions: `Batch.index` is -1, its order comes from the source's own buffer shuffle, and it depends
    on the number of workers and ranks.
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
            batch_size: images of one optimizer step over all ranks; rank r gets its contiguous r-th part.
            seed: of the order and the views, 0 or more.
            workers: processes that decode; 0 decodes in this process.
            start_step: optimizer steps already done, whose images are not read.
            pin_memory: put batches into page-locked memory.
            weights: (N,) fractions that sum to 1; an epoch then draws N images by them, with replacement.

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
        if source.streaming:
            if start_step:
                raise ConfigError(
                    f"cannot resume at step {start_step} of a stream: exact resume needs random access "
                    "(tar files on a disk, or a folder)"
                )
            self._dataset: Any = _Stream(source, transform, batch_size // world_size, seed, rank, world_size)
            self._sampler = None
            workers = _stream_workers(source, workers, world_size)
        else:
            if batch_size > len(source):
                raise ConfigError(
                    f"a batch of {batch_size} images is larger than the source, which has {len(source)}: use a "
                    f"batch size of {len(source) // world_size * world_size or 1} or less"
                )
            self._dataset = _Views(source, transform, seed)
            self._sampler = Order(len(source), batch_size, seed, rank, world_size, start_step, weights)
        self._workers, self._pin_memory = workers, pin_memory

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `start_step` on, without end.

        DataError: `MAX_BAD_IN_ROW` images in a row, or all there are, cannot be read. TrainingError: a worker died.
        """
        return worker_batches(self._dataset, self._sampler, self._workers, self._pin_memory)


class EvalLoader:
    """Every image of a source once, in order (of a stream: as it comes).

    Attributes:
        skipped: (key, reason) of every unreadable image so far; those are left out.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        batch_size: int,
        workers: int = 0,
        pin_memory: bool = False,
        max_bad: float = 1,
        batches: Iterable[Sequence[int]] | None = None,
    ) -> None:
        """
        Args:
            batch_size: images per batch; less where some cannot be read, and in the last batch.
            workers, pin_memory: as for `TrainLoader`.
            max_bad: fraction of unreadable images above which iteration stops.
            batches: positions of each batch, instead of all in order; one comes also where none of it can be read.
        """
        if batch_size < 1 or workers < 0:
            raise ConfigError(f"batch size {batch_size} and {workers} workers: the one must be > 0, the other >= 0")
        check_skipped(0, 0, max_bad, ("", ""))
        self.skipped: Skipped = []
        self._max_bad, self._total = max_bad, None if source.streaming else len(source)
        self._empty = batches is not None
        if source.streaming:
            self._dataset: Any = _Stream(source, transform, batch_size)
            self._sampler = None
            workers = _stream_workers(source, workers)
        else:
            self._dataset = _Once(source, transform)
            positions = range(len(source))
            in_order = [positions[start : start + batch_size] for start in positions[::batch_size]]
            self._sampler = in_order if batches is None else batches
        self._workers, self._pin_memory = workers, pin_memory

    def __iter__(self) -> Iterator[Batch]:
        """Batches with one view and no `params`; `Batch.skipped` lists the images left out since the last one.

        Raises:
            DataError: more than `max_bad` of the images cannot be read, of a stream after its end.
        """
        self.skipped = []
        reported = read = 0
        for batch in worker_batches(self._dataset, self._sampler, self._workers, self._pin_memory):
            self.skipped += batch.skipped
            if self._total is not None and batch.skipped:
                check_skipped(len(self.skipped), self._total, self._max_bad, self.skipped[-1])
            if len(batch) or self._empty:
                read += len(batch)
                batch.skipped, reported = self.skipped[reported:], len(self.skipped)
                yield batch
        if self._total is None and self.skipped:
            check_skipped(len(self.skipped), read + len(self.skipped), self._max_bad, self.skipped[-1])


def _stream_workers(source: Any, workers: int, world_size: int = 1) -> int:
    """At most as many workers as every rank has shards for."""
    if source.shards < world_size:
        raise ConfigError(
            f"a stream of {source.shards} shards cannot feed {world_size} ranks: pack it into more shards or use "
            "fewer ranks"
        )
    return min(workers, source.shards // world_size)


@dataclass(eq=False)
class _Views(Dataset[Any]):
    """One item is one whole training batch."""

    source: Source
    transform: Transform
    seed: int

    def __getitem__(self, item: tuple[int, np.ndarray]) -> Batch | FaceSSLError:
        epoch, indices = item
        collector = Collector(len(indices), self.transform.sizes)
        try:
            for index in indices.tolist():
                # The generator of the requested position: a substitute that is also in this batch in its own right
                # does not get the same views twice.
                drawn = self.transform.draw(view_rng(self.seed, epoch, index))
                used, sample, image = self._readable(index, drawn, collector.skipped)
                collector.add(used, *drawn(sample, image, collector.view_buffers()))
        except FaceSSLError as error:
            return error
        return collector.batch()

    def _readable(self, index: int, drawn: DrawnTransform, skipped: Skipped) -> tuple[int, Sample, np.ndarray]:
        """The image at `index`, or the first readable one after it."""
        tries = min(MAX_BAD_IN_ROW, len(self.source))
        for used in range(index, index + tries):
            used %= len(self.source)
            try:
                sample = self.source[used]
                return used, sample, pixels(sample, reduction=drawn.reduction)
            except ImageError as error:
                skipped.append((error.key, error.reason))
                last = error
        raise DataError(f"{tries} images in a row could not be read: {last}")


@dataclass(eq=False)
class _Once(Dataset[Any]):
    """One item is one evaluation batch, without its unreadable images."""

    source: Source
    transform: Transform

    def __getitem__(self, indices: Sequence[int]) -> Batch | FaceSSLError:
        collector, drawn = Collector(len(indices), self.transform.sizes), self.transform.draw(None)
        try:
            for index in indices:
                try:
                    sample = self.source[index]
                    image = pixels(sample, reduction=drawn.reduction)
                except ImageError as error:
                    collector.skipped.append((error.key, error.reason))
                    continue
                collector.add(index, *drawn(sample, image, collector.view_buffers()))
        except FaceSSLError as error:
            return error
        return collector.batch()


@dataclass(eq=False)
class _Stream(IterableDataset[Any]):
    """Batches of a streaming source: without end with a seed, else one pass."""

    source: Source
    transform: Transform
    batch_size: int
    seed: int | None = None
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Batch | FaceSSLError]:
        collector, bad = Collector(self.batch_size, self.transform.sizes), 0
        try:
            for rng, sample in self._samples():
                drawn = self.transform.draw(rng)
                try:
                    image = pixels(sample, reduction=drawn.reduction)
                except ImageError as error:
                    bad += 1
                    collector.skipped.append((error.key, error.reason))
                    if bad == MAX_BAD_IN_ROW:
                        raise DataError(f"{bad} images in a row could not be read: {error}") from None
                    continue
                bad = 0
                collector.add(-1, *drawn(sample, image, collector.view_buffers()))
                if len(collector) == self.batch_size:
                    yield collector.batch()
                    collector = Collector(self.batch_size, self.transform.sizes)
        except FaceSSLError as error:
            yield error
            return
        if len(collector) or collector.skipped:
            yield collector.batch()

    def _samples(self) -> Iterator[tuple[np.random.Generator | None, Sample]]:
        info = torch.utils.data.get_worker_info()
        place = (self.rank, info.id if info else 0)
        for epoch in itertools.count() if self.seed is not None else (0,):
            stream = self.source.stream(seed=self.seed, epoch=epoch, rank=self.rank, world_size=self.world_size)
            empty = True
            for count, sample in enumerate(stream):
                empty = False
                if self.seed is None:
                    yield None, sample
                    continue
                entropy = np.random.SeedSequence((self.seed, epoch, count), spawn_key=place)
                yield np.random.Generator(np.random.PCG64(entropy)), sample
            if empty:
                raise DataError("the stream holds no image")
