"""Samples with their views -> one batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from facessl.batch import FIELDS, Batch, Sample

Skipped = list[tuple[str, str]]


class Collector:
    """Puts the samples of one batch together.

    Attributes:
        skipped: (key, reason) of images that could not be read; add to it.
    """

    def __init__(self) -> None:
        self.skipped: Skipped = []
        self._samples: list[Sample] = []
        self._index: list[int] = []
        self._views: list[list[np.ndarray]] = []
        self._params: list[list[np.ndarray]] = []

    def add(self, index: int, sample: Sample, views: list[np.ndarray], params: list[np.ndarray]) -> None:
        """One image: its position, fields, V views (S_v, S_v, 3) uint8 and V or no parameter rows (P,) float32."""
        sample.image = b""  # only what surrounds it is needed from here on
        self._index.append(index)
        self._samples.append(sample)
        self._views.append(views)
        self._params.append(params)

    def __len__(self) -> int:
        return len(self._index)

    def done(self) -> Batch:
        """The batch; views are (B, 3, S, S) uint8 in channels-last memory."""
        return Batch(
            views=[torch.from_numpy(np.stack(v)).permute(0, 3, 1, 2) for v in zip(*self._views, strict=True)],
            params=[torch.from_numpy(np.stack(p)) for p in zip(*self._params, strict=True)],
            index=torch.tensor(self._index, dtype=torch.int64),
            keys=[sample.key for sample in self._samples],
            skipped=self.skipped,
            **{name: _field([getattr(sample, name) for sample in self._samples]) for name in FIELDS},
        )


def _field(values: list[Any]) -> Any:
    """One optional field of a batch; None where a sample lacks it or the shapes differ."""
    if not values or any(value is None for value in values):
        return None
    if isinstance(values[0], str):
        return values
    if isinstance(values[0], np.ndarray):
        same = len({value.shape for value in values}) == 1
        return torch.from_numpy(np.stack(values)) if same else None
    return torch.tensor(values, dtype=torch.int64)
