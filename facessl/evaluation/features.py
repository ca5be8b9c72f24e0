"""Features of a frozen backbone, computed once and kept, so that another head needs no forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Batch
from facessl.data.index import Table, cache_file, load
from facessl.data.loader import EvalLoader, check_skipped
from facessl.data.source import Source
from facessl.data.subset import Subset
from facessl.inference.trained_task import Embedder
from facessl.models.backbone import Backbone
from facessl.models.forward import autocast, evaluating
from facessl.models.weights import fingerprint
from facessl.views.augment import Augment
from facessl.views.normalize import normalize
from facessl.views.supervised import Supervised

Kind = Literal["pooled", "map"]

#: Small fields of the samples that are kept beside the features.
_FIELDS = ("label", "identity", "attributes", "landmarks", "visible", "box", "group", "frame")
_LAYOUT = 3


@dataclass(frozen=True)
class Features:
    """Features of N images that could be read, in the order of their source."""

    array: np.ndarray  # (N, D) float16 or float32; mapped from a file where it is kept
    index: np.ndarray  # (N,) int64 positions in the source
    # Field of `Sample` -> N values, of those that every image has; landmarks and boxes are those of the view, and
    # `frame` (N, 3, 3) leads to it
    fields: dict[str, np.ndarray]
    skipped: tuple[tuple[str, str], ...] = ()  # (key, reason) of images that could not be read
    seconds: float = 0.0  # that the forward passes took; 0 where nothing had to be computed
    kept: bool = False  # the features were read from the cache

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, chosen: np.ndarray) -> Features:
        """Some of the images; `chosen` are rows of this array."""
        fields = {name: values[chosen] for name, values in self.fields.items()}
        return replace(self, array=self.array[chosen], index=self.index[chosen], fields=fields)

    def batch(self, size: int) -> Batch:
        """All images for a task's meter, with an empty view of `size` pixels."""
        fields: dict[str, Any] = {name: torch.from_numpy(values) for name, values in self.fields.items()}
        return Batch(views=[torch.empty(0, 3, size, size)], params=[], index=torch.from_numpy(self.index), **fields)


def features(
    backbone: Backbone | Embedder,
    source: Source,
    *,
    kind: Kind = "pooled",
    augment: Augment | None = None,
    flip: bool = False,
    cache: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    precision: str = "fp32",
    max_bad: float = 1,
) -> Features:
    """Features of every readable image, from the cache where they are there.

    They are kept in the folder of `facessl.data.index.cache_file` where it has room, one file per backbone (a hash of
    its weights), source (its fingerprint), view and precision; it is always complete, and may be deleted at any time.
    A part of a source of which all features are kept takes them from there.

    Args:
        backbone: frozen; used in evaluation mode; or the trained embedding of `facessl.inference.embed.load_embedder`.
        source: images; those of a stream are never kept.
        kind: pooled, (N, C) float32; or map, the flattened last feature map, (N, C h w) float16.
        augment: gives the crop; nothing random is done. None: the whole image.
        cache: read and keep; False: neither.
        flip: add the features of the mirrored view.
        batch_size, workers, precision, max_bad: as in `facessl.embed`.

    Raises:
        DataError: no image, or more than the fraction `max_bad`, cannot be read.
        ConfigError: an unknown precision, the map of an `Embedder`, which has none, or a map whose values float16
            cannot hold.
    """
    if kind == "map" and isinstance(backbone, Embedder):
        raise ConfigError("a trained embedding has no feature map: use features=pooled, or the run it started from")
    augment, file = augment or Augment(), None
    if cache and not source.streaming:
        made_by = (fingerprint(backbone), repr((_LAYOUT, kind, augment, flip, precision)))
        file = cache_file("features", *made_by, source.fingerprint())
        known = _load(file) or _of_whole(made_by, source)
        if known is not None:
            if known.skipped:
                check_skipped(len(known.skipped), len(source), max_bad, known.skipped[-1])
            return known
    view = Supervised(augment, backbone.image_size, needs=frozenset(), train=False)
    loader = EvalLoader(source, view, batch_size=batch_size, workers=workers, max_bad=max_bad)
    began = time.perf_counter()
    made = _collected(_blocks(backbone, loader, kind, flip, precision), loader)
    made = replace(made, seconds=time.perf_counter() - began)
    if file is None:
        return made
    columns = {"features": made.array, "index": made.index, **made.fields}
    return replace(made, array=Table(columns, {"skipped": made.skipped}).saved(file)["features"])


def _blocks(
    backbone: Any, loader: EvalLoader, kind: Kind, flip: bool, precision: str
) -> Iterator[tuple[Batch, np.ndarray]]:
    device = next(backbone.parameters()).device
    for batch in loader:
        x = normalize(batch.views[0].to(device, non_blocking=True), backbone.mean, backbone.std)
        with evaluating(backbone), autocast(device, precision):
            views = (x, x.flip(3)) if flip else (x,)
            z = [backbone(v) if kind == "pooled" else backbone.forward_features(v).flatten(1) for v in views]
        block = torch.stack(z).float().sum(0).cpu().numpy()
        if kind == "map":
            if np.abs(block).max() > np.finfo(np.float16).max:
                raise ConfigError(
                    "the feature map has values beyond 65504, more than float16 holds: use pooled features"
                )
            block = block.astype(np.float16)
        yield batch, block


def _of_whole(made_by: tuple[str, str], source: Source) -> Features | None:
    """Features of a part of a source, where those of all of it are kept."""
    if not isinstance(source, Subset):
        return None
    whole = source.source
    found = _load(cache_file("features", *made_by, whole.fingerprint())) or _of_whole(made_by, whole)
    if found is None:
        return None
    row = np.full(len(whole), -1, np.int64)
    row[found.index] = np.arange(len(found))
    rows, reasons = row[source.positions], dict(found.skipped)
    lost = [whole.key(int(i)) for i in source.positions[rows < 0]]
    skipped = tuple((key, reasons.get(key, "")) for key in lost)
    return replace(found.rows(rows[rows >= 0]), index=np.flatnonzero(rows >= 0), skipped=skipped)


def _load(file: Path) -> Features | None:
    """What a file of the cache holds; None where there is none or it is damaged."""
    table = load(file)
    if table is None:
        return None
    fields = {name: values.copy() for name, values in table.columns.items() if name != "features"}
    skipped = tuple((key, reason) for key, reason in table.note["skipped"])
    return Features(table["features"], fields.pop("index"), fields, skipped, kept=True)


def _collected(blocks: Iterator[tuple[Batch, np.ndarray]], loader: EvalLoader) -> Features:
    arrays: list[np.ndarray] = []
    small: dict[str, list[np.ndarray]] = {}
    for batch, block in blocks:
        arrays.append(block)
        for name in ("index", *_FIELDS):
            if (value := getattr(batch, name)) is not None:
                small.setdefault(name, []).append(value.numpy())
    if not arrays:
        example = f" (the first: {': '.join(loader.skipped[0])})" if loader.skipped else ""
        raise DataError(f"no image of the source could be read{example}")
    array = np.concatenate(arrays)
    joined = {name: np.concatenate(parts) for name, parts in small.items()}
    fields = {name: values for name, values in joined.items() if len(values) == len(array)}
    return Features(array, fields.pop("index"), fields, tuple(loader.skipped))
