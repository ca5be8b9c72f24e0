"""Batches on the device, ready to train on: on a GPU the next one is copied and augmented while the step runs."""

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from facessl.core.types import Batch


class Prefetcher:
    """Batches on a device, after `on_device_transform`, in order.

    On a GPU the next batch is copied and transformed on a stream of its own, queued before the step, which waits for
    neither. One batch more is in memory, and one more than is trained on is taken from `batches`. On other devices a
    batch is copied and transformed when it is requested.

    Attributes:
        waited: seconds spent waiting for `batches` so far.
    """

    def __init__(
        self, batches: Iterator[Batch], device: torch.device, on_device_transform: Callable[[Batch], Batch]
    ) -> None:
        """`on_device_transform` is the photometric part of the views; it may not change its input."""
        self.waited = 0.0
        self._batches, self._device, self._transform = batches, device, on_device_transform
        self._stream: torch.cuda.Stream | None = None
        self._next: Batch | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # inputs of `batches` may still be in transfer

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, for use on the device's current stream."""
        if self._stream is None:
            return self._fetch()
        batch = self._fetch_on_stream() if self._next is None else self._next
        main = torch.cuda.current_stream(self._device)
        main.wait_stream(self._stream)
        for tensor in _tensors(batch):
            if tensor.is_cuda:  # its memory belongs to the other stream, which may use it again only after this one
                tensor.record_stream(main)
        try:
            self._next = self._fetch_on_stream()
        except StopIteration:
            self._next = None
        return batch

    def _fetch(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        return self._transform(batch.to(self._device))

    def _fetch_on_stream(self) -> Batch:
        with torch.cuda.stream(self._stream):
            return self._fetch()


def _tensors(batch: Batch) -> list[Tensor]:
    values = [getattr(batch, name) for name in batch.__slots__]
    parts = itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in values)
    return [part for part in parts if isinstance(part, Tensor)]
