"""Any source -> tar shards of resized, re-encoded images: parallel, resumable at any moment, with checksums.

The images are cut into short stretches that processes work on; this process alone writes, in the source's order, so
that the shards do not depend on the number of processes or on interruptions. A shard becomes valid in three steps: its
bytes and the rows of the tables are on the disk; `pack.json` names it; it gets its name. What a stop leaves between
them is finished or thrown away by the next call.
"""

from __future__ import annotations

import collections
import math
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch

from facessl.core import environment
from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data import records
from facessl.data.decode import ImageError, stored_size
from facessl.data.frame import resize_to
from facessl.data.loader import pixels
from facessl.data.source import Source, open_source
from facessl.tools.phash import phash
from facessl.tools.shards import SKIPPED, Settings, Shards, verify

#: Bytes of images that one stretch is meant to have: large enough that handing it over costs little, and that what is
#: ahead keeps the processes at work while a shard is brought to the disk.
_STRETCH = 2 << 20
_LONGEST = 512
#: Bytes of shared memory for a stretch; a longer one goes through a pipe.
_ROOM = 2 * _STRETCH
#: Stretches that are in work or wait to be written, per process.
_AHEAD = 4
#: Stretches per process that the rest is cut into at least, so that all processes end at about the same time.
_LAST = 4
#: Endings of copied images by their first bytes; others are stored anew.
_ENDINGS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"))
#: Pixels that a copied JPEG is decoded to at least, to see that it is whole and for its hash.
_SEEN = 64


@dataclass
class PackSummary:
    """What is in a folder of shards.

    Attributes:
        images: number of images in the source.
        packed, skipped, duplicates: how many of them are in the shards, cannot be read, were left out.
        shards, bytes: number and size of the tars.
        before: images that an earlier call had done.
        unreadable: (key, reason), of this call.
    """

    images: int
    packed: int = 0
    skipped: int = 0
    duplicates: int = 0
    shards: int = 0
    bytes: int = 0
    before: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


class Shown:
    """Context manager: a line on standard error with the images done, their rate and the time left.

    It is drawn over and over on a terminal, and a new one every half minute elsewhere.
    """

    def __enter__(self) -> Shown:
        self._live = sys.stderr.isatty()
        self._every = 0.5 if self._live else 30.0
        self._began = self._last = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print(file=sys.stderr)

    def __call__(self, done: int, total: int, before: int) -> None:
        now = time.monotonic()
        if now - self._last < self._every and done < total:
            return
        self._last = now
        rate = (done - before) / max(now - self._began, 1e-3)
        left = round((total - done) / max(rate, 1e-3))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        text = f"{done}/{total} images  {100 * done // total} %  {rate:.0f} images/s  left {clock}"
        print(f"\r{text:<72}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)


def verified(path: str | Path) -> dict[str, Any]:
    """`facessl.tools.shards.verify`, which gives the numbers that are returned.

    Raises:
        DataError: a shard is damaged, missing or not of this pack, or the folder is none of `facessl pack`.
    """
    found = verify(path)
    if damaged := found.pop("damaged"):
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise DataError(
            f"{len(damaged)} shards of {path} are missing, damaged or not of its pack: {', '.join(damaged[:5])}{more}"
        )
    return found


#: Called with the numbers of images done, in total, and done before this call.
Told = Callable[[int, int, int], None]


def pack(
    source: str | Source,
    out: str | Path,
    *,
    size: int = 256,
    quality: int = 90,
    copy: bool = False,
    shard_size: str | int = 2000,
    workers: int | None = None,
    dedupe: int | None = None,
    max_bad: float = 0.05,
    progress: Told | None = None,
) -> PackSummary:
    """Write a source as `out/shard-000000.tar`, ..., which `webdataset:out` reads back.

    Kept of every image: pixels, label, caption, identity, landmarks (with `visible`), box, five points, mask,
    attributes, pose, group and the key; of the source: names of classes, attributes, groups and mask classes, the
    landmarks' layout, subsets and pairs (as far as their images are packed). What lies in pixels moves along when an
    image is resized. Lost: EXIF and colour profiles, unless the files are copied; transparency becomes white; `splits`,
    because one split is packed at a time.

    `out` also gets `pack.json` (settings, shards, their SHA-256), `traits.json`, `skipped.csv` (key, reason) and
    `duplicates.csv` (key, duplicate_of, distance). The same call goes on where it was stopped, and the files are the
    same whatever was stopped and whatever the number of workers.

    Args:
        source: any source with positions.
        out: a folder that is new, empty, or from an earlier call with the same settings.
        size: shorter side of larger images in pixels, antialiased; smaller images are not enlarged; 0: no resizing.
        quality: of the JPEGs (4:2:0), 1 to 100.
        copy: keep the encoded bytes as they are instead; images that the source draws become PNG.
        shard_size: images per shard, or its size as "500MB" or "2GB".
        workers: processes; None: one per core; 0 works in this one.
        dedupe: leave out images whose perceptual hash (`facessl.tools.phash`) differs in at most so many of 64 bits
            from an earlier one; 0 to 10, of which 4 finds copies and hardly anything else; None keeps all.
        max_bad: fraction of unreadable images above which it stops.
        progress: called now and then.

    Raises:
        ConfigError: a stream, settings that cannot work or that changed, or an `out` with something else in it.
        DataError: the source cannot be read, too many unreadable images, `out` cannot be written or was changed.
    """
    settings = Settings(0 if copy else size, 0 if copy else quality, copy, str(shard_size), dedupe)
    opened = open_source(source)
    workers = environment.cores() if workers is None else workers
    if workers < 0 or not 0 <= max_bad <= 1:
        raise ConfigError(f"{workers} workers and max_bad = {max_bad}: the one must be 0 or more, the other 0 to 1")
    if opened.streaming:
        raise ConfigError("a stream cannot be packed, because it has no positions to go on from: use files on a disk")
    folder, root = Path(out).expanduser(), getattr(opened, "root", None)
    if root is not None and folder.resolve().is_relative_to(Path(root).resolve()):
        raise ConfigError(f"the shards cannot lie inside the images ({folder} is in {root}): name a folder outside")
    try:
        with Shards(folder, settings, opened, source if isinstance(source, str) else type(source).__name__) as shards:
            return _run(_Packer(opened, settings), shards, workers, max_bad, progress)
    except BrokenProcessPool:
        raise DataError(
            "a packing process died, most often because memory ran out: the same command with fewer --workers goes on"
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot write shards to {folder}: {error.strerror or error}; the same command goes on"
        ) from None


class _Stretch(NamedTuple):
    """Images start, start + 1, ... ready to be written: `blob` holds their members, `lengths` bytes of each.

    `blob` is None on the way from another process that left the members in shared memory.
    """

    start: int
    blob: bytes | memoryview | None
    lengths: list[int]
    hashes: list[int]
    skipped: dict[int, tuple[str, str]]


class _Packer:
    """Images start .. stop of the source -> a stretch. Runs in any process."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self.source, self.settings = source, settings
        # A JPEG decoded at 1/2, 1/4 or 1/8 has rounded-up sides, by which points would be wrong.
        self._scaled = bool(settings.size) and not records.has_pixels(source)
        self._names = tuple(source.label_names)

    def __call__(self, start: int, stop: int, room: memoryview | None = None) -> _Stretch:
        """Images start .. stop, in `room` where there is one and they fit into it."""
        parts: list[bytes] = []
        lengths: list[int] = []
        hashes: list[int] = []
        skipped: dict[int, tuple[str, str]] = {}
        for index in range(start, stop):
            data: list[bytes] = []
            value = 0
            try:
                data, value = self._one(index)
            except ImageError as error:
                skipped[index] = error.key, error.reason
            parts += data
            lengths.append(sum(map(len, data)))
            hashes.append(value)
        if room is None or sum(lengths) > len(room):
            return _Stretch(start, b"".join(parts), lengths, hashes, skipped)
        end = 0
        for part in parts:
            begin, end = end, end + len(part)
            room[begin:end] = part
        return _Stretch(start, None, lengths, hashes, skipped)

    def _one(self, index: int) -> tuple[list[bytes], int]:
        """Members of one image as they stand in a tar, in pieces, and its hash where hashes are wanted."""
        sample = self.source[index]
        image, stored = self._image(sample)
        ending, data = self._encoded(sample, image)
        label = sample.label
        name = self._names[label] if label is not None and 0 <= label < len(self._names) else None
        shape = stored if self.settings.copy else image.shape[:2]
        parts = {ending: data, **records.members(sample, stored, shape, name)}
        return records.archived(f"{index:09d}", parts), phash(image) if self.settings.dedupe is not None else 0

    def _image(self, sample: Sample) -> tuple[np.ndarray, tuple[int, int]]:
        """The image resized, and the height and width it is stored with."""
        size, data = self.settings.size, sample.image
        image = pixels(sample, _SEEN if self.settings.copy else size if self._scaled else None)
        exact = isinstance(data, np.ndarray) or not (self.settings.copy or self._scaled)
        exact = exact or min(image.shape[:2]) < (size or _SEEN)  # smaller than a reduced one would be
        height, width = image.shape[:2] if exact else stored_size(bytes(data), key=sample.key)
        if size and min(height, width) > size:
            image = resize_to(image, *(max(1, round(side * size / min(height, width))) for side in (height, width)))
        return image, (height, width)

    def _encoded(self, sample: Sample, image: np.ndarray) -> tuple[str, bytes]:
        """Ending and bytes of the packed image."""
        if self.settings.copy:
            data = sample.image
            if isinstance(data, bytes):
                webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
                ending = "webp" if webp else next((e for magic, e in _ENDINGS if data.startswith(magic)), None)
                if ending:
                    return ending, data
            return "png", cv2.imencode(".png", cv2.cvtColor(pixels(sample), cv2.COLOR_RGB2BGR))[1].tobytes()
        try:
            data = simplejpeg.encode_jpeg(image, self.settings.quality, colorspace="RGB", colorsubsampling="420")
        except ValueError as error:  # a side above 65500 pixels
            raise ImageError(sample.key, f"cannot be stored as JPEG ({error}): give a --size") from None
        return "jpg", data


def _run(packer: _Packer, shards: Shards, workers: int, max_bad: float, progress: Told | None) -> PackSummary:
    total, before = len(packer.source), shards.next
    summary = PackSummary(total, before=before)
    limit = math.floor(max_bad * total)
    for stretch in _stretches(packer, before, total, workers):
        assert stretch.blob is not None
        view, end = memoryview(stretch.blob), 0
        for index, (length, value) in enumerate(zip(stretch.lengths, stretch.hashes, strict=True), stretch.start):
            start, end = end, end + length
            if index in stretch.skipped:
                shards.skip(*stretch.skipped[index])
                summary.unreadable.append(stretch.skipped[index])
                if shards.skipped > limit:
                    raise DataError(
                        f"{shards.skipped} images cannot be read, more than the {limit} that max_bad allows (the last: "
                        f"{': '.join(stretch.skipped[index])}): remove them, or go on with a larger --max-bad"
                    )
            else:
                shards.add(index, view, start, end, value)
        shards.flush()
        if progress is not None:
            progress(stretch.start + len(stretch.lengths), total, before)
    shards.finish(total)
    if not shards.packed:
        raise DataError(f"no image of the source could be read: see {shards.path / SKIPPED}")
    summary.packed, summary.skipped, summary.duplicates = shards.packed, shards.skipped, shards.duplicates
    summary.shards, summary.bytes = shards.count, shards.total_bytes
    return summary


def _stretches(packer: _Packer, start: int, stop: int, workers: int) -> Iterator[_Stretch]:
    """All stretches in order, so many ahead that processes need not wait, and no more than memory is meant for.

    A stretch is to be used before the next one is asked for: its memory is then written anew.
    """
    length = 8
    if not workers:
        for first in range(start, stop, length):
            yield packer(first, min(first + length, stop))
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # as in the loader
    # Members that went through a pipe would be copied four times, 64 kB at a time.
    forked = context.get_start_method() == "fork"
    rooms = [memoryview(mmap.mmap(-1, _ROOM)) for _ in range(_AHEAD * workers if forked else 0)]
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(packer, os.getpid(), rooms))
    waiting: collections.deque[tuple[int, Future[_Stretch]]] = collections.deque()
    free = collections.deque(range(_AHEAD * workers))
    try:
        while start < stop or waiting:
            while start < stop and free:
                room = free.popleft()
                waiting.append((room, pool.submit(_work, start, min(start + length, stop), room)))
                start += length
            room, future = waiting.popleft()
            done = future.result()
            yield done if done.blob is not None else done._replace(blob=rooms[room])
            free.append(room)
            per_image = max(1, sum(done.lengths) // len(done.lengths))
            length = max(1, min(_LONGEST, _STRETCH // per_image, (stop - start) // (_LAST * workers)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_packer: _Packer
_rooms: list[memoryview]


def _start_worker(packer: _Packer, parent: int, rooms: list[memoryview]) -> None:
    """One thread per process; the main process decides about Ctrl-C; nobody outlives it."""
    global _packer, _rooms
    _packer, _rooms = packer, rooms
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A parent that was killed leaves its processes waiting for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(start: int, stop: int, room: int) -> _Stretch:
    return _packer(start, stop, _rooms[room] if _rooms else None)
