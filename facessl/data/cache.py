"""Decoded images in memory that all processes of a machine share, for sets that fit (`--cache ram|device`).

`fill` decodes every image once. With `--cache ram` the loader then reads `Cached` instead of the source: the same
arrays, so that views, batches and weights are bit for bit those of a run without a cache, unless `size` is given (JPEGs
so large that the loader may decode them at reduced size stay encoded for that). With `--cache device` all images have
one size and lie in one tensor (`Store.tensor`); `facessl.views.batched` cuts there.

What a size changes: images are resized (bilinear, antialiased) before the views are cut, so that a view is resampled
twice and a crop of fewer stored than view pixels is softer than one of the original. Crops, flips and colours are
drawn for the original size of every image, so that their distribution is the same.
"""

from __future__ import annotations

import math
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from facessl.core.errors import ConfigError, DataError, FaceSSLError
from facessl.core.types import Sample
from facessl.data.blob import Blob, free_memory
from facessl.data.decode import ImageError, stored_size
from facessl.data.frame import resize_to
from facessl.data.loader import pixels
from facessl.data.source import Source
from facessl.data.workers import worker_batches

#: Images whose headers are read to estimate the size of the rest.
LOOKED_AT = 256
#: Share of the free memory that a cache may take: of the host's, and of a GPU's, where the network has to fit too.
HOST_SHARE, DEVICE_SHARE = 0.9, 0.7
_CHUNK = 32
# Columns of `Store.table`.
_HEIGHT, _WIDTH, _STORED_HEIGHT, _STORED_WIDTH, _AT, _NOTE_AT, _NOTE_SIZE = range(7)

Size = tuple[int, int]
Report = Callable[[int, int], None]


@dataclass
class Store:
    """Images of a source, decoded.

    Attributes:
        pixels: of all readable images, (h, w, 3) each, one after the other in any order.
        notes: pickled samples, without images that are in `pixels`; (key, reason) of unreadable ones.
        table: (N, 7) int64: height and width of the image (0: unreadable), the same as stored (0: still encoded), where
            its pixels begin, where its note begins, bytes of the note.
        size: height and width that all stored images have; None where each has its own.
    """

    pixels: Blob | None
    notes: Blob
    table: np.ndarray
    size: Size | None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def unreadable(self) -> int:
        """Number of images that could not be read."""
        return int((self.table[:, _HEIGHT] == 0).sum())

    def unread(self) -> list[tuple[str, str]]:
        """(key, reason) of the images that could not be read."""
        return [self.note(index) for index in np.flatnonzero(self.table[:, _HEIGHT] == 0).tolist()]

    @property
    def nbytes(self) -> int:
        """Bytes of all images and notes."""
        return int(3 * (self.table[:, _STORED_HEIGHT] * self.table[:, _STORED_WIDTH]).sum() + self.table[:, -1].sum())

    def note(self, index: int) -> Any:
        """What was kept beside the pixels of image `index`: a Sample (with its image if encoded), or (key, reason)."""
        start = int(self.table[index, _NOTE_AT])
        return pickle.loads(self.notes.bytes[start : start + int(self.table[index, _NOTE_SIZE])].data)

    def image(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8: the shared pixels of a readable image themselves."""
        assert self.pixels is not None
        _, _, h, w, start, _, _ = self.table[index].tolist()
        return self.pixels.bytes[start : start + 3 * h * w].reshape(h, w, 3)

    def tensor(self, device: torch.device) -> Tensor:
        """(N, H, W, 3) uint8 on `device`, of a store with one size; unreadable images are black.

        The store gives its pixels away; on a CPU the tensor is the shared memory itself.
        """
        assert self.pixels is not None
        assert self.size is not None
        shape = (len(self), *self.size, 3)
        host = torch.from_numpy(self.pixels.bytes[: 3 * len(self) * self.size[0] * self.size[1]]).view(shape)
        self.pixels = None
        if device.type == "cpu":
            return host
        out = torch.empty(shape, dtype=torch.uint8, device=device)
        for start in range(0, len(out), 1024):  # a copy of all at once would need pages for all at once
            out[start : start + 1024].copy_(host[start : start + 1024])
        return out


class Cached:
    """A source whose images come from a `Store`; unreadable ones raise what reading them raised.

    Attributes:
        provides, label_names, attribute_names: of the source.
    """

    streaming = False

    def __init__(self, source: Source, store: Store) -> None:
        """
        Args:
            source: gives names and keys; its images are not read.
            store: the images. Where it gave its pixels away (`Store.tensor`), images are black and take no memory.
        """
        self._source, self._store = source, store
        self.provides, self.label_names = source.provides, source.label_names
        self.attribute_names = source.attribute_names

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Sample:
        """Image `index`. Raises ImageError where it could not be read."""
        note = self._store.note(index)
        if isinstance(note, tuple):
            raise ImageError(*note)
        sample: Sample = note
        if len(sample.image):
            return sample
        if self._store.pixels is None:
            height, width = self._store.table[index, : _WIDTH + 1].tolist()
            sample.image = _black(height, width)
        else:
            sample.image = self._store.image(index)
        return sample

    def key(self, index: int) -> str:
        """What a person finds image `index` by."""
        return self._source.key(index)


def fill(
    source: Source,
    *,
    size: int | None = None,
    side: int | None = None,
    encoded_from: int | None = None,
    workers: int = 0,
    device: torch.device | None = None,
    free: int | None = None,
    report: Report = lambda done, total: None,
) -> Store:
    """Decode every image of a source once.

    Args:
        source: images by position.
        size: None: nothing is resized. A number: pixels that the shorter side is reduced to where it is longer.
        side: None: images keep their shapes. A number: all are stored in one size, their own where those looked at have
            the same, else squares of `size` pixels (None: `side` pixels), or of the longest side if that is less.
        encoded_from: JPEGs whose shorter side has so many pixels stay encoded, unless `size` or `side` is given.
        workers: processes that decode; 0 decodes in this process.
        device: a GPU that must have room for the images, too.
        free: bytes of free main memory; None asks the system.
        report: called with the images done and all images, from time to time.

    Raises:
        ConfigError: a stream.
        DataError: the images need more than `HOST_SHARE` or `DEVICE_SHARE` of the free memory, which is estimated from
            `LOOKED_AT` headers before any pixel is decoded.
    """
    if source.streaming:
        raise ConfigError("a stream cannot be cached, as its images have no positions: use tar files on a disk")
    free = free_memory() if free is None else free
    sizes, lengths = _look(source)
    exact = None if side is None else _one_size(sizes, size, side)
    keep = _Keep(exact, shorter=size, encoded_from=encoded_from if size is None and side is None else None)
    expected = keep.expected(sizes, lengths, len(source))
    places = [(free, HOST_SHARE, "of main memory")]
    if device is not None and device.type == "cuda":
        places.append((torch.cuda.mem_get_info(device)[0], DEVICE_SHARE, f"of {device}"))
    for have, share, where in places:
        if expected > share * have:
            raise DataError(_too_large(len(source), expected, have, share, where))
    room = max(1, int(HOST_SHARE * free))
    store = Store(
        pixels=Blob(3 * len(source) * exact[0] * exact[1] if exact else room),
        notes=Blob(room),
        table=np.zeros((len(source), 7), np.int64),
        size=exact,
    )
    work = _Fill(source, store, keep)
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    rows: Iterator[Any] = worker_batches(work, chunks, workers, False)
    for part, chunk in zip(rows, chunks, strict=True):
        store.table[chunk.start : chunk.stop] = part
        report(chunk.stop, len(source))
    return store


def fill_once(make: Callable[[], Store], *, node: int, first: bool) -> Store:
    """The store of this machine, made by one of its ranks (`first`) and shared with the others (collective call).

    Args:
        make: calls `fill`.
        node: number of this machine.
        first: whether this rank makes it.

    Raises:
        FaceSSLError: what `make` raised, on every rank.
    """
    store, failed = None, None
    try:
        store = make() if first else None
    except FaceSSLError as error:
        failed = error
    # As bytes: a store is opened where it is unpickled, and only the ranks of its machine can do that.
    mine = (node, pickle.dumps(store) if store else b"", str(failed or ""))
    every: list[tuple[int, bytes, str]] = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, mine)
    for _, _, reason in every:
        if reason:
            raise failed or DataError(reason)
    opened: Store = store or pickle.loads(next(data for where, data, _ in every if where == node and data))
    torch.distributed.barrier()  # the maker keeps its store until everybody has opened it
    return opened


@lru_cache(1024)
def _black(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 that takes no memory and cannot be written."""
    return np.broadcast_to(np.uint8(0), (height, width, 3))


class _Fill(Dataset[Any]):
    """One item decodes a range of images into the store and returns their rows of its table."""

    def __init__(self, source: Source, store: Store, keep: _Keep) -> None:
        self.source, self.store, self.keep = source, store, keep
        self.ends = multiprocessing.Value("q", 0), multiprocessing.Value("q", 0)  # of pixels and notes

    def __getitem__(self, chunk: range) -> np.ndarray | FaceSSLError:
        rows = np.zeros((len(chunk), 7), np.int64)
        try:
            for row, index in zip(rows, chunk, strict=True):
                self._one(row, index)
        except FaceSSLError as error:
            return error
        return rows

    def _one(self, row: np.ndarray, index: int) -> None:
        assert self.store.pixels is not None
        note: Any
        try:
            sample = self.source[index]
            image = pixels(sample)
        except ImageError as error:
            note = (error.key, error.reason)
        else:
            row[: _WIDTH + 1] = image.shape[:2]
            note = sample
            if not self.keep.encoded(image.shape[0], image.shape[1], _jpeg_length(sample)):
                note = replace(sample, image=b"")
                image = self.keep.resized(image)
                row[_STORED_HEIGHT : _STORED_WIDTH + 1] = image.shape[:2]
                at = index * image.size if self.store.size else None
                row[_AT] = self._write(self.store.pixels, 0, image.reshape(-1), at)
        data = np.frombuffer(pickle.dumps(note, pickle.HIGHEST_PROTOCOL), np.uint8)
        row[_NOTE_AT], row[_NOTE_SIZE] = self._write(self.store.notes, 1, data), data.size

    def _write(self, blob: Blob, end: int, data: np.ndarray, at: int | None = None) -> int:
        """Where `data` was put: at `at`, or behind everything so far."""
        if at is None:
            with self.ends[end]:
                at = self.ends[end].value
                self.ends[end].value += data.size
        if at + data.size > blob.capacity:
            raise DataError(
                f"the decoded images need more than the {blob.capacity / 2**30:.1f} GiB of memory that may be used: "
                "store them smaller with --cache-size, or leave --cache out"
            )
        blob.bytes[at : at + data.size] = data
        return at


@dataclass(frozen=True)
class _Keep:
    """How images are kept; the first rule that is set applies.

    Attributes:
        exact: height and width of all.
        shorter: largest length of the shorter side.
        encoded_from: length of the shorter side from which JPEGs stay encoded.
    """

    exact: Size | None
    shorter: int | None
    encoded_from: int | None

    def encoded(self, height: int, width: int, length: int) -> bool:
        """Whether an image stays encoded; `length` is that of its JPEG, 0 for others."""
        return self.encoded_from is not None and length > 0 and min(height, width) >= self.encoded_from

    def size(self, height: int, width: int) -> Size:
        """Stored height and width of an image."""
        scale = 1.0 if self.shorter is None else min(1.0, self.shorter / min(height, width))
        return self.exact or (round(height * scale), round(width * scale))

    def resized(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 as it is stored."""
        return np.ascontiguousarray(resize_to(image, *self.size(*image.shape[:2])))

    def expected(self, sizes: np.ndarray, lengths: np.ndarray, n: int) -> int:
        """Bytes that n images like those of `sizes` (k, 2) and JPEG `lengths` (k,) take."""
        each = [
            length if self.encoded(h, w, length) else 3 * math.prod(self.size(h, w))
            for (h, w), length in zip(sizes.tolist(), lengths.tolist(), strict=True)
        ]
        return math.ceil(n * sum(each) / len(each))


def _look(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """(k, 2) heights and widths of some images, from their headers, and (k,) lengths of their JPEGs, 0 for others."""
    sizes, lengths = [], []
    for index in np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)).tolist():
        try:
            sample = source[index]
            image = sample.image
            sizes.append(image.shape[:2] if isinstance(image, np.ndarray) else stored_size(image, key=sample.key))
            lengths.append(_jpeg_length(sample))
        except ImageError:
            continue
    if not sizes:
        raise DataError(f"none of the {min(LOOKED_AT, len(source))} images that were tried has a readable header")
    return np.array(sizes), np.array(lengths)


def _jpeg_length(sample: Sample) -> int:
    image = sample.image
    return len(image) if isinstance(image, bytes) and image[:3] == b"\xff\xd8\xff" else 0


def _one_size(sizes: np.ndarray, size: int | None, side: int) -> Size:
    """Height and width that all images are brought to (`fill`)."""
    longest, same = int(sizes.max()), bool((sizes == sizes[0]).all())
    if same and (size is None or size >= longest):
        return int(sizes[0, 0]), int(sizes[0, 1])
    square = min(side if size is None else size, longest)
    return square, square


def _too_large(n: int, needed: int, free: int, share: float, where: str) -> str:
    fitting = int((share * free / (3 * n)) ** 0.5) // 8 * 8
    smaller = f"store them smaller (--cache-size {fitting}), " if fitting >= 32 else ""
    return (
        f"{n} decoded images need about {_gib(needed)}, but {_gib(free)} {where} are free, of which a cache may take "
        f"{share:.0%}: {smaller}pack them smaller (facessl pack --size), or leave --cache out"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
