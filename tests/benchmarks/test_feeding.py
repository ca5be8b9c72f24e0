"""What the benchmarks say about a loader that is too slow: the truth, though it had batches ready at the start."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from facessl.data.prefetch import Prefetcher
from tests.helpers import script

feeding = script("feeding")

READY, STEP = 12, 0.004


def full(seconds: float) -> Iterator[torch.Tensor]:
    """Batches that take `seconds` each to make, of which `READY` are there when the first is asked for."""
    made: queue.Queue[torch.Tensor] = queue.Queue(maxsize=READY)

    def make() -> None:
        while True:
            made.put(torch.zeros(1))
            time.sleep(seconds)

    threading.Thread(target=make, daemon=True).start()
    while not made.full():
        time.sleep(seconds)
    while True:
        yield made.get()


class Waiting(Prefetcher):
    """A prefetcher of whatever comes, without a copy."""

    def _made(self):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        return batch


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.002, 0.0, 0.05), (0.008, 0.35, 0.6)])
def test_a_full_buffer_hides_no_wait(seconds: float, least: float, most: float) -> None:
    batches = full(seconds)
    alone = feeding.drained(batches, READY, count=12)
    ready = Waiting(batches, torch.device("cpu"), lambda batch: batch)
    found = feeding.timed(ready, lambda batch: time.sleep(STEP), 40, lambda: None)
    assert alone < 1.1 / seconds, "what was ready is not the loader's rate"
    assert least <= found.waited <= most
    assert found.rate < 1.05 / max(seconds, STEP)
