"""Any source -> tar shards of resized, re-encoded images: parallel, resumable at any moment, with checksums.

Processes encode short ranges of images; this one alone writes, in the source's order, so that the shards do not depend
on the number of processes or on interruptions.
"""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import cv2
import numpy as np
import simplejpeg

from facessl.core import environment
from facessl.core.errors import ConfigError, DataError
from facessl.core.schema import misfit
from facessl.core.types import Sample
from facessl.data import records
from facessl.data.decode import pixels, stored_size
from facessl.data.face_square import resize_to
from facessl.data.skipped import ImageError, check_skipped
from facessl.data.source import Source
from facessl.tools.jobs import in_order, open_with_positions
from facessl.tools.options import PackOptions, output_settings, read_options
from facessl.tools.phash import phash
from facessl.tools.ranks import Result, over_ranks
from facessl.tools.shards import MANIFEST, SKIPPED, Shards

#: Most bytes and images of a range: large enough to keep the processes busy while a shard is synced to the disk.
_RANGE_BYTES, _RANGE_IMAGES = 2 << 20, 512
#: Endings of copied images by their first bytes; others are encoded again.
_ENDINGS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"))
#: Smallest side in pixels to which a copied JPEG is decoded, for its hash and to check that it is complete.
_CHECK_SIZE = 64


@dataclass
class PackSummary:
    """Content of a folder of shards."""

    images: int  # number of images in the source
    packed: int = 0
    skipped: int = 0  # unreadable images
    duplicates: int = 0  # images left out as near-duplicates
    shards: int = 0  # number of tars
    bytes: int = 0  # size of the tars
    before: int = 0  # images of earlier calls
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (key, reason), of this call
    finished: bool = True  # False on a rank that is done before others


def pack(
    source: str | os.PathLike[str] | Source,
    out: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> PackSummary:
    """Write a source as `out/shard-000000.tar`, ..., which `webdataset:out` reads back.

    Stored of every image: pixels, label, caption, identity, landmarks (with `visible`), box, five points, mask,
    attributes, pose, group and the key; of the source: names of classes, attributes, groups and mask classes, the
    landmarks' layout, subsets and pairs (as far as their images are packed). Labels in pixels are resized with the
    image. Lost: EXIF and color profiles, unless the files are copied; transparency becomes white; `splits`,
    because one split is packed at a time.

    `out` also gets `pack.json` (settings, shards, their SHA-256), `traits.json`, `skipped.csv` (key, reason) and
    `duplicates.csv` (key, duplicate_of, distance). The same call continues after a stop, and the files depend
    neither on stops nor on the number of workers. Under torchrun or srun the ranks share the work; the
    one that ends last has the numbers of all, the others none.

    Args:
        source: any source with positions.
        out: a folder that is new, empty, or from an earlier call with the same settings.
        progress: called with the numbers of images done and in total, first with those of earlier calls.
        options: fields of `facessl.tools.options.PackOptions`.

    Raises:
        UnknownName: no such option; the nearest is given.
        ConfigError: a stream, settings that cannot work or that changed, or an `out` that is in use or has something
            else in it.
        DataError: the source cannot be read, too many unreadable images, `out` cannot be written or was changed, or a
            process died.
    """
    settings = read_options(PackOptions, "pack", options).resolved()
    opened, max_bad = open_with_positions(source), settings.max_bad
    workers = environment.cores() if settings.workers is None else settings.workers
    check_skipped(0, 0, max_bad, ("", ""))
    if workers < 0:
        raise ConfigError(f"{workers} workers, but there must be 0 or more")
    spec = type(source).__name__ if isinstance(source, Source) else os.fspath(source)
    packer, report = _Packer(opened, settings), progress or (lambda done, total: None)

    def left(path: Path) -> range:
        with Shards(path, settings, opened, spec) as shards:
            return range(shards.next, len(opened))

    def write(path: Path, image_of: Callable[[int], Result], workers: int) -> PackSummary:
        with Shards(path, settings, opened, spec) as shards:
            return _run(opened, image_of, shards, workers, max_bad, report)

    written = over_ranks(
        out,
        opened,
        MANIFEST,
        "pack",
        output_settings(settings),
        left,
        packer,
        write,
        valid=_is_record,
        failed=lambda values: bool(values["unreadable"]),
        workers=workers,
        progress=report,
    )
    return written or PackSummary(len(opened), finished=False)


class _Record(TypedDict):
    """An image without its members in a tar."""

    hash: Any  # 0 without `dedupe`
    unreadable: tuple[str, str] | None  # (key, reason)


def _is_record(values: Any, parts: int) -> bool:
    return parts == 1 and misfit(values, _Record) is None and type(values["hash"]) is int


class _Packer:
    """Position -> encoded image: a `_Record` and its members in a tar. Runs in any process."""

    def __init__(self, source: Source, settings: PackOptions) -> None:
        self.source, self.settings = source, settings
        # A JPEG decoded at 1/2, 1/4 or 1/8 has rounded-up sides, which would displace points.
        self._scaled = bool(settings.size) and not records.has_pixels(source)
        self._names = tuple(source.label_names)

    def __call__(self, index: int) -> Result:
        try:
            sample = self.source[index]
            image, stored = self._image(sample)
            ending, data = self._encoded(sample, image)
        except ImageError as error:
            return {"hash": 0, "unreadable": (error.key, error.reason)}, [b""]
        label = sample.label
        name = self._names[label] if label is not None and 0 <= label < len(self._names) else None
        shape = stored if self.settings.copy else image.shape[:2]
        parts = {ending: data, **records.members(sample, stored, shape, name)}
        value = phash(image) if self.settings.dedupe is not None else 0
        return {"hash": value, "unreadable": None}, [b"".join(records.archived(f"{index:09d}", parts))]

    def _image(self, sample: Sample) -> tuple[np.ndarray, tuple[int, int]]:
        """The resized image, and the height and width of the stored one."""
        size, data = self.settings.size, sample.image
        image = pixels(sample, _CHECK_SIZE if self.settings.copy else size if self._scaled else None)
        exact = isinstance(data, np.ndarray) or not (self.settings.copy or self._scaled)
        exact = exact or min(image.shape[:2]) < (size or _CHECK_SIZE)  # smaller than a reduced one would be
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


def _images(image_of: Callable[[int], Result], positions: range) -> list[Result]:
    return [image_of(index) for index in positions]


def _run(
    source: Source,
    image_of: Callable[[int], Result],
    shards: Shards,
    workers: int,
    max_bad: float,
    progress: Callable[[int, int], None],
) -> PackSummary:
    total, index, length = len(source), shards.next, 8
    summary = PackSummary(total, before=index)

    def ranges() -> Iterator[range]:
        """Ranges of the current length."""
        start = summary.before
        while start < total:
            stop = min(start + length, total)
            yield range(start, stop)
            start = stop

    progress(index, total)
    for images in in_order(functools.partial(_images, image_of), ranges(), workers):
        for image, (members,) in images:
            if image["unreadable"]:
                key, reason = image["unreadable"]
                shards.skip(key, reason)
                summary.unreadable.append((key, reason))
                check_skipped(shards.skipped, total, max_bad, (key, reason))
            else:
                shards.add(index, members, image["hash"])
            index += 1
        size = sum(len(members) for _, (members,) in images)
        length = max(1, min(_RANGE_IMAGES, _RANGE_BYTES * len(images) // max(1, size)))
        progress(index, total)
    shards.finish(total)
    if not shards.packed:
        raise DataError(f"no image of the source could be read: see {shards.path / SKIPPED}")
    summary.packed, summary.skipped, summary.duplicates = shards.packed, shards.skipped, shards.duplicates
    summary.shards, summary.bytes = len(shards.finished), sum(shard["bytes"] for shard in shards.finished)
    return summary
