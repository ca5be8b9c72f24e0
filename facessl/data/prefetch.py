"""Batches on the device, ready to train on: on a GPU the next one is copied and augmented while the step runs."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from facessl.core.types import Batch


class Prefetcher:
    """Batches on a device, after `finish`, in the order they come in.

    On a GPU the copy and `finish` of the next batch run on a stream of their own, queued before the step: the step
    waits for neither. One batch more is in memory, and one more than is trained on is taken from `batches`. On other
    devices a batch is copied and finished when it is asked for.

    Attributes:
        waited: seconds spent waiting for `batches` so far.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, finish: Callable[[Batch], Batch]) -> None:
        """`finish` is the photometric part of the views; it may not change its input."""
        self.waited = 0.0
        self._batches, self._device, self._finish = batches, device, finish
        self._stream: torch.cuda.Stream | None = None
        self._next: Batch | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # what `batches` reads may still be on its way

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, for use on the device's current stream."""
        if self._stream is None:
            return self._made()
        batch = self._made_aside() if self._next is None else self._next
        main = torch.cuda.current_stream(self._device)
        main.wait_stream(self._stream)
        for tensor in _tensors(batch):
            if tensor.is_cuda:  # its memory belongs to the other stream, which may use it again only after this one
                tensor.record_stream(main)
        try:
            self._next = self._made_aside()
        except StopIteration:
            self._next = None
        return batch

    def _made(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        return self._finish(batch.to(self._device))

    def _made_aside(self) -> Batch:
        with torch.cuda.stream(self._stream):
            return self._made()


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    for name in batch.__slots__:
        value = getattr(batch, name)
        found += [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, Tensor)]
    return found
