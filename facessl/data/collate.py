"""Samples with their views -> one batch."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facessl.core.types import FIELDS, Batch, Sample
from facessl.data.skipped import Skipped


class Collector:
    """Collects the samples of one batch: at most `rows`, with views of the sides `sizes` (empty: no `view_buffers`).

    Attributes:
        skipped: (key, reason) of images that could not be read; add to it.
    """

    def __init__(self, rows: int, sizes: Sequence[int]) -> None:
        self.skipped: Skipped = []
        self._memory = [_memory((rows, size, size, 3)) for size in sizes]
        self._arrays = [tensor.numpy() for tensor in self._memory]
        self._rows: list[tuple[int, Sample, list[np.ndarray], list[np.ndarray], Sequence[np.ndarray]]] = []

    def view_buffers(self) -> list[np.ndarray]:
        """Return V arrays (S_v, S_v, 3) uint8 in the batch's own memory, to be filled and passed to `add` as views."""
        return [array[len(self)] for array in self._arrays]

    def add(
        self,
        index: int,
        sample: Sample,
        views: list[np.ndarray],
        params: list[np.ndarray],
        crops: Sequence[np.ndarray] = (),
    ) -> None:
        """Add one image: its position and its `facessl.data.loader.SampleViews`.

        The views are those of `view_buffers` for every image of the batch, or for none.
        """
        sample.image = b""  # only its fields are needed from here on
        self._rows.append((index, sample, views, params, crops))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self) -> Batch:
        """Return the batch; views are (B, 3, S, S) uint8 in channels-last memory."""
        index, samples, views, params, crops = zip(*self._rows, strict=True) if self._rows else [()] * 5
        tensors = [memory[: len(self)] for memory in self._memory]
        if not tensors:
            for arrays in zip(*views, strict=True):
                tensors.append(_memory((len(self), *arrays[0].shape)))
                np.stack(arrays, out=tensors[-1].numpy())
        return Batch(
            views=[view.permute(0, 3, 1, 2) for view in tensors],
            params=[torch.from_numpy(np.stack(rows)) for rows in zip(*params, strict=True)],
            index=torch.tensor(index, dtype=torch.int64),
            crops=[torch.from_numpy(np.stack(rows)) for rows in zip(*crops, strict=True)],
            keys=[sample.key for sample in samples],
            skipped=self.skipped,
            **{name: _field([getattr(sample, name) for sample in samples]) for name in FIELDS},
        )


def _memory(shape: tuple[int, ...]) -> Tensor:
    """Allocate uint8; in a loader process in shared memory, which goes to the main process without a copy."""
    if torch.utils.data.get_worker_info() is None or not math.prod(shape):
        return torch.empty(shape, dtype=torch.uint8)
    # As in torch's own collation; `Tensor.share_memory_` would copy the memory before it is filled.
    try:
        storage = torch.UntypedStorage._new_shared(math.prod(shape))
    except RuntimeError as error:
        for name in re.findall(r"</(torch_\w+)>", str(error)):  # PyTorch leaves it
            Path("/dev/shm", name).unlink(missing_ok=True)
        raise
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _field(values: list[Any]) -> Any:
    """One optional field of a batch; None if a sample lacks it or the shapes differ."""
    if not values or any(value is None for value in values):
        return None
    if isinstance(values[0], str):
        return values
    if isinstance(values[0], np.ndarray):
        one_shape = len({value.shape for value in values}) == 1
        return torch.from_numpy(np.stack(values)) if one_shape else None
    return torch.tensor(values, dtype=torch.int64)
