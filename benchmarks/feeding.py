"""JPEG shards, and timing a step that loader processes feed: what they had ready must not pass for their speed.

A loader has batches ready when a measurement begins, more than a short one uses: a step would find one each time,
however slowly they are made. They are dropped first, without training, which would only let the processes fill up
again; then the first half of the steps is not counted, in which what is slow at first may have let some gather.
"""

from __future__ import annotations

import io
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import simplejpeg

sys.path.insert(0, str(Path(__file__).parent))
from pipeline import picture

#: Batches that a loader process has ready (torch's prefetch_factor).
READY = 2


class Fed(NamedTuple):
    """What `timed` found.

    Attributes:
        rate: steps per second.
        waited: share of the time in which the step waited for a batch.
    """

    rate: float
    waited: float


def drained(batches: Iterator[Any], ready: int, count: int = 0) -> float:
    """Drops the `ready` batches that may be waiting; batches per second of the `count` after them."""
    for _ in range(ready):
        next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count / (time.perf_counter() - began)


def timed(ready: Any, step: Callable[[Any], Any], steps: int, wait: Callable[[], None]) -> Fed:
    """`steps` steps on what `ready` (a Prefetcher, or what counts `waited` as it does) gives; the second half counts.

    Args:
        ready: batches on the device; its source was drained just before.
        step: trains on one.
        steps: 2 or more.
        wait: returns when the device is done.
    """
    for _ in range(steps // 2):
        step(next(ready))
    wait()
    began, waited, count = time.perf_counter(), ready.waited, steps - steps // 2
    for _ in range(count):
        step(next(ready))
    wait()
    seconds = time.perf_counter() - began
    return Fed(count / seconds, (ready.waited - waited) / seconds)


def write_shards(folder: Path, images: int, *, workers: int, size: int, per_shard: int = 1024) -> None:
    """Tars of noise JPEGs with the detail of photographs; 16 to 512 different ones, over and over."""
    different = max(16, min(512, images // 4))
    with ThreadPool(min(workers, 16)) as pool:  # OpenCV and the encoder release the interpreter's lock
        files = pool.map(lambda seed: jpeg(size, seed), range(different))
    for shard, start in enumerate(range(0, images, per_shard)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(start, min(images, start + per_shard)):
                info = tarfile.TarInfo(f"{number:08d}.jpg")
                data = files[number % len(files)]
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def jpeg(size: int, seed: int) -> bytes:
    """One encoded picture, quality 90, 4:2:0."""
    return simplejpeg.encode_jpeg(picture(size, seed), quality=90, colorsubsampling="420")
