"""Features of a frozen backbone, computed once and kept, so that another head needs no forward pass."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Batch
from facessl.data.index import Table, cache_file, load
from facessl.data.loader import EvalLoader
from facessl.data.skipped import check_skipped
from facessl.data.source import Source
from facessl.data.subset import Subset
from facessl.inference.embedding_formats import example
from facessl.inference.trained_task import Embedder
from facessl.models.backbone import Backbone
from facessl.models.forward import PassOptions, forward
from facessl.models.weights import fingerprint
from facessl.views.augment import Augment
from facessl.views.supervised import Supervised

Kind = Literal["pooled", "map"]

#: Small fields of the samples that are stored beside the features.
_FIELDS = ("label", "identity", "attributes", "landmarks", "visible", "box", "group", "frame")
_LAYOUT = 3


@dataclass(frozen=True)
class Features:
    """Features of N images that could be read, in the order of their source."""

    array: np.ndarray  # (N, D) float16 or float32; mapped from a file if it is cached
    index: np.ndarray  # (N,) int64 positions in the source
    # Field of `Sample` -> N values, of those that every image has; landmarks and boxes are those of the view, and
    # `frame` (N, 3, 3) leads to it
    fields: dict[str, np.ndarray]
    skipped: tuple[tuple[str, str], ...] = ()  # (key, reason) of images that could not be read
    seconds: float = 0.0  # that the forward passes took; 0 if nothing had to be computed
    cached: bool = False  # whether they were read from the cache

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, chosen: np.ndarray) -> Features:
        """Select images by their rows."""
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
    **options: Any,
) -> Features:
    """Features of every readable image, from the cache if they are there.

    They are cached in the folder of `facessl.data.index.cache_file` if it has room, one file per backbone (a hash of
    its weights), source (its fingerprint), view and precision; it is always complete, and may be deleted at any time.
    A part of a source of which all features are cached takes them from there.

    Args:
        backbone: frozen; used in evaluation mode; or the trained embedding of `facessl.load_embedder`.
        source: images; those of a stream are never cached.
        kind: pooled, (N, C) float32; or map, the flattened last feature map, (N, C h w) float16.
        augment: gives the crop; nothing random is done. None: the whole image.
        cache: read and keep; False: neither.
        flip: add the features of the mirrored view.
        options: batch_size, workers, precision and max_bad (default 1), as in `facessl.embed`.

    Raises:
        DataError: no image, or more than the fraction `max_bad`, cannot be read.
        ConfigError: an unknown precision, the map of an `Embedder`, which has none, or a map whose values float16
            cannot hold.
    """
    if kind == "map" and isinstance(backbone, Embedder):
        raise ConfigError("a trained embedding has no feature map: use features=pooled, or the run it started from")
    chosen, augment, file = PassOptions(**options), augment or Augment(), None
    if cache and not source.streaming:
        made_by = (fingerprint(backbone), repr((_LAYOUT, kind, augment, flip, chosen.precision)))
        file = cache_file("features", *made_by, source.fingerprint())
        known = _load(file) or _of_whole(made_by, source)
        if known is not None:
            if known.skipped:
                check_skipped(len(known.skipped), len(source), chosen.max_bad, known.skipped[-1])
            return known
    view = Supervised(augment, backbone.image_size, needs=frozenset(), train=False)
    loader = chosen.loader(source, view, backbone)
    began = time.perf_counter()
    computed = _collected(backbone, loader, kind, flip, chosen.precision)
    computed = replace(computed, seconds=time.perf_counter() - began)
    if file is None:
        return computed
    columns = {"features": computed.array, "index": computed.index, **computed.fields}
    return replace(computed, array=Table(columns, {"skipped": computed.skipped}).saved(file)["features"])


def _of_whole(made_by: tuple[str, str], source: Source) -> Features | None:
    """Features of a part of a source, if those of all of it are cached."""
    if not isinstance(source, Subset):
        return None
    whole = source.source
    cached = _load(cache_file("features", *made_by, whole.fingerprint())) or _of_whole(made_by, whole)
    if cached is None:
        return None
    row = np.full(len(whole), -1, np.int64)
    row[cached.index] = np.arange(len(cached))
    rows, reasons = row[source.positions], dict(cached.skipped)
    lost = [whole.key(int(i)) for i in source.positions[rows < 0]]
    skipped = tuple((key, reasons.get(key, "")) for key in lost)
    return replace(cached.rows(rows[rows >= 0]), index=np.flatnonzero(rows >= 0), skipped=skipped)


def _load(file: Path) -> Features | None:
    """Read a file of the cache; None if there is none or it is damaged."""
    table = load(file)
    if table is None:
        return None
    fields = {name: values.copy() for name, values in table.columns.items() if name != "features"}
    skipped = tuple((key, reason) for key, reason in table.note["skipped"])
    return Features(table["features"], fields.pop("index"), fields, skipped, cached=True)


def _collected(backbone: Any, loader: EvalLoader, kind: Kind, flip: bool, precision: str) -> Features:
    """Features of the batches, and what is kept beside them."""
    arrays: list[np.ndarray] = []
    small: dict[str, list[np.ndarray]] = {}

    def extract(x: Tensor) -> Tensor:
        views = (x, x.flip(3)) if flip else (x,)
        z = [backbone(v) if kind == "pooled" else backbone.forward_features(v).flatten(1) for v in views]
        return torch.stack(z).float().sum(0)

    for batch in loader:
        block = forward(backbone, batch.views[0], precision, extract).cpu().numpy()
        if kind == "map" and np.abs(block).max() > np.finfo(np.float16).max:
            raise ConfigError("the feature map has values beyond 65504, more than float16 holds: use pooled features")
        arrays.append(block.astype(np.float16) if kind == "map" else block)
        for name in ("index", *_FIELDS):
            if (value := getattr(batch, name)) is not None:
                small.setdefault(name, []).append(value.numpy())
    if not arrays:
        raise DataError(f"no image of the source could be read{example(loader.skipped)}")
    array = np.concatenate(arrays)
    joined = {name: np.concatenate(parts) for name, parts in small.items()}
    fields = {name: values for name, values in joined.items() if len(values) == len(array)}
    return Features(array, fields.pop("index"), fields, tuple(loader.skipped))
