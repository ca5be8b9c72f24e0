"""Features of a frozen backbone, computed once and kept, so that another head needs no forward pass."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import cv2
import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Batch, Sample
from facessl.data.frame import Crop, Frame, frame_of, similarity
from facessl.data.index import cache_file
from facessl.data.loader import EvalLoader, Made
from facessl.data.source import Source
from facessl.data.subset import Subset
from facessl.evaluation import fingerprint
from facessl.models.backbone import Backbone
from facessl.models.forward import autocast, evaluating
from facessl.views.normalise import normalise

Kind = Literal["pooled", "map"]

#: Small fields of the samples that are kept beside the features.
_FIELDS = ("label", "identity", "attributes", "landmarks", "visible", "box", "group", "frame")
_LAYOUT = 1
_DAY = 86400


@dataclass(frozen=True)
class Framing:
    """The view that features are computed on; the fields of the sample stay those of the stored image.

    Attributes:
        size: side in pixels.
        crop: whole, box or five_points (`facessl.data.frame.frame_of`).
        scale: fraction of the surroundings that is shown.
        flip: mirror the view.
    """

    sizes: ClassVar[tuple[int, ...]] = ()
    reduction: ClassVar[None] = None

    size: int
    crop: Crop = "whole"
    scale: float = 1.0
    flip: bool = False

    def frame(self, sample: Sample, shape: tuple[int, ...]) -> Frame:
        """Where the pixels of a sample's view come from; `shape` (H, W, ...) of its image."""
        frame = frame_of(sample, shape, crop=self.crop, size=self.size, scale=self.scale)
        return frame.compose(similarity(self.size, flip=True)) if self.flip else frame

    def draw(self, rng: np.random.Generator | None) -> Framing:
        """Itself: nothing is random."""
        return self

    def __call__(self, sample: Sample, image: np.ndarray, out: Sequence[np.ndarray] = ()) -> Made:
        """As the loader calls it; `sample.frame` is set."""
        frame = self.frame(sample, image.shape)
        return replace(sample, frame=frame.matrix.astype(np.float32)), [frame.image(image)], [], []


@dataclass(frozen=True)
class Features:
    """Features of N images that could be read, in the order of their source.

    Attributes:
        array: (N, D) float16 or float32; mapped from a file where it is kept.
        index: (N,) int64 positions in the source.
        fields: field of `Sample` -> N values, of those that every image has; `frame` is (N, 3, 3).
        skipped: (key, reason) of images that could not be read.
        seconds: that the forward passes took; 0 where nothing had to be computed.
        kept: the features were read from the cache.
    """

    array: np.ndarray
    index: np.ndarray
    fields: dict[str, np.ndarray]
    skipped: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    kept: bool = False

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, chosen: np.ndarray) -> Features:
        """Some of the images; `chosen` are rows of this array."""
        fields = {name: values[chosen] for name, values in self.fields.items()}
        return replace(self, array=self.array[chosen], index=self.index[chosen], fields=fields)


def features(
    backbone: Backbone,
    source: Source,
    *,
    kind: Kind = "pooled",
    framing: Framing | None = None,
    cache: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    precision: str = "fp32",
) -> Features:
    """Features of every readable image, from the cache where they are there.

    They are kept in the folder of `facessl.data.index.cache_file`, one folder per backbone (a hash of its weights),
    source (keys, options, files), framing and precision; what is there is always complete, and may be deleted at any
    time. A part of a source of which all features are kept takes them from there.

    Args:
        backbone: frozen; used in evaluation mode.
        source: images; those of a stream are never kept.
        kind: pooled, (N, C) float32; or map, the flattened last feature map, (N, C h w) float16.
        framing: None: the whole image at the backbone's size.
        cache: read and keep; False: neither.
        batch_size, workers, precision: as in `facessl.embed`.

    Raises:
        DataError: no image can be read, or the features cannot be written.
        ConfigError: an unknown precision, or a map whose values float16 cannot hold.
    """
    framing = framing or Framing(backbone.image_size)
    cache = cache and not source.streaming
    name = ""
    if cache:
        made_by = (fingerprint.of_backbone(backbone), fingerprint.of_values(_LAYOUT, kind, framing, precision))
        name = _folder(*made_by, source).name
        known = _known(made_by, source)
        if known is not None:
            return known
    loader = EvalLoader(source, framing, batch_size=batch_size, workers=workers, pin_memory=False)
    began = time.perf_counter()
    with _Store(_cache_root() / name if cache else None, 0 if source.streaming else len(source)) as store:
        for batch, block in _blocks(backbone, loader, kind, precision):
            store.add(batch, block)
        if not store.rows:
            example = f" (the first: {': '.join(loader.skipped[0])})" if loader.skipped else ""
            raise DataError(f"no image of the source could be read{example}")
        made = store.done(tuple(loader.skipped))
    return replace(made, seconds=time.perf_counter() - began, kept=False)


def _blocks(backbone: Backbone, loader: EvalLoader, kind: Kind, precision: str) -> Iterator[tuple[Batch, np.ndarray]]:
    device = next(backbone.parameters()).device
    for batch in loader:
        x = normalise(batch.views[0].to(device, non_blocking=True), backbone.mean, backbone.std)
        with evaluating(backbone), autocast(device, precision):
            z = backbone(x) if kind == "pooled" else backbone.forward_features(x).flatten(1)  # (B, D)
        block = z.float().cpu().numpy()
        if kind == "map":
            if np.abs(block).max() > np.finfo(np.float16).max:
                raise ConfigError(
                    "the feature map has values beyond 65504, more than float16 holds: use pooled features"
                )
            block = block.astype(np.float16)
        yield batch, block


def _cache_root() -> Path:
    return cache_file("features").parent


def _folder(weights: str, how: str, source: Source) -> Path:
    return cache_file("features", weights, how, fingerprint.of_source(source)).with_suffix("")


def _known(made_by: tuple[str, str], source: Source) -> Features | None:
    """Kept features of the source, or of one that it is a part of; None where there are none."""
    positions: np.ndarray | None = None
    whole = source
    while True:
        found = _load(_folder(*made_by, whole))
        if found is not None:
            return found if positions is None else _part(found, whole, positions)
        if not isinstance(whole, Subset):
            return None
        positions = whole.positions if positions is None else whole.positions[positions]
        whole = whole.source


def _part(found: Features, whole: Source, positions: np.ndarray) -> Features:
    """The features of `positions` of a source, from those of all of it."""
    row = np.full(len(whole), -1, np.int64)
    row[found.index] = np.arange(len(found))
    rows = row[positions]
    reasons = dict(found.skipped)
    lost = [whole.key(int(i)) for i in positions[rows < 0]]
    part = found.rows(rows[rows >= 0])
    skipped = tuple((key, reasons.get(key, "")) for key in lost)
    return replace(part, index=np.flatnonzero(rows >= 0), skipped=skipped)


def _load(folder: Path) -> Features | None:
    """What a folder of the cache holds; None where there is none or it is damaged."""
    try:
        note = json.loads((folder / "note.json").read_text())
        with np.load(folder / "fields.npz", allow_pickle=False) as small:
            fields = dict(small)
        shape = (note["rows"], note["columns"])
        array = np.memmap(folder / "features.bin", np.dtype(note["dtype"]), mode="r", shape=shape)
        if os.path.getsize(folder / "features.bin") != array.nbytes:
            return None
    except (OSError, ValueError, KeyError):
        return None
    os.utime(folder)  # so that the oldest are those that nobody used
    skipped = tuple((key, reason) for key, reason in note["skipped"])
    return Features(np.asarray(array), fields.pop("index"), fields, skipped, kept=True)


class _Store:
    """Takes features block by block, into a folder that appears when it is complete, or into memory."""

    def __init__(self, folder: Path | None, expected: int) -> None:
        """
        Args:
            folder: of the cache; None: memory.
            expected: images.
        """
        self.rows, self._expected, self._folder = 0, expected, folder
        self._partial = folder and folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
        self._file: BinaryIO | None = None
        self._blocks: list[np.ndarray] = []
        self._small: dict[str, list[np.ndarray]] = {}

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, batch: Batch, block: np.ndarray) -> None:
        """A batch and its features (B, D)."""
        if not self.rows and self._partial is not None:
            self._open(self._partial, self._expected * block[0].nbytes)
        if self._file is None:
            self._blocks.append(block)
        else:
            try:
                self._file.write(block.data)
            except OSError as error:
                raise DataError(f"cannot keep features in {self._folder}: {error.strerror}; use --no-cache") from None
        self.rows += len(block)
        self._shape, self._dtype = block.shape[1], block.dtype
        for name in ("index", *_FIELDS):
            value = getattr(batch, name)
            if value is not None:
                self._small.setdefault(name, []).append(value.numpy())

    def done(self, skipped: tuple[tuple[str, str], ...]) -> Features:
        """All features; the folder is in its place."""
        small = {name: np.concatenate(parts) for name, parts in self._small.items()}
        small = {name: values for name, values in small.items() if len(values) == self.rows}
        if self._file is None:
            index = small.pop("index")
            return Features(np.concatenate(self._blocks), index, small, skipped)
        assert self._partial is not None
        assert self._folder is not None
        note: dict[str, Any] = {"rows": self.rows, "columns": self._shape, "dtype": self._dtype.name}
        try:
            self._file.close()
            np.savez(self._partial / "fields.npz", **small)  # type: ignore[arg-type]
            (self._partial / "note.json").write_text(json.dumps(note | {"skipped": skipped}))
            if _load(self._folder) is None:  # a damaged one makes room, another process's is as good as this one
                shutil.rmtree(self._folder, ignore_errors=True)
                self._partial.replace(self._folder)
        except OSError as error:
            raise DataError(f"cannot keep features in {self._folder}: {error.strerror}; use --no-cache") from None
        found = _load(self._folder)
        if found is None:
            raise DataError(f"the features in {self._folder} were removed while they were in use: start again")
        return replace(found, skipped=skipped)

    def _open(self, partial: Path, size: int) -> None:
        """The file, where there is a folder to write to and room in it; else the features stay in memory."""
        try:
            partial.mkdir(parents=True)
            for left in partial.parent.glob(".features-*.partial"):  # of processes that were killed
                if time.time() - left.stat().st_mtime > _DAY:
                    shutil.rmtree(left, ignore_errors=True)
            if shutil.disk_usage(partial).free > 1.1 * size:
                self._file = open(partial / "features.bin", "wb")  # noqa: SIM115 - closed by __exit__
        except OSError:
            self._file = None


def view_points(points: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(N, K, 2) stored pixels -> (N, K, 2) float64 view pixels, by (N, 3, 3) frames; their inverses lead back."""
    return np.stack([cv2.transform(p[None], f[:2])[0] for p, f in zip(points.astype(float), frames, strict=True)])
