"""Batches for the step: finished, in order, and on a GPU one ahead. No GPU is needed: its streams are stood in for."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from facessl.core.types import Batch
from facessl.data.prefetch import Prefetcher


def batches(count: int, events: list[str]) -> Iterator[Batch]:
    for number in range(count):
        events.append(f"load {number}")
        yield Batch(views=[torch.full((1, 3, 2, 2), number)], params=[torch.zeros(1, 9)], index=torch.tensor([number]))


def finish(events: list[str]) -> Any:
    def doubled(batch: Batch) -> Batch:
        events.append(f"finish {int(batch.index)}")
        return replace(batch, views=[2 * view for view in batch.views])

    return doubled


def test_on_a_cpu_a_batch_is_taken_when_it_is_asked_for() -> None:
    events: list[str] = []
    ready = Prefetcher(batches(3, events), torch.device("cpu"), finish(events))
    assert events == []
    for number in range(3):
        batch = next(ready)
        assert torch.equal(batch.views[0], torch.full((1, 3, 2, 2), 2 * number))
        assert events == [f"{what} {n}" for n in range(number + 1) for what in ("load", "finish")]
    with pytest.raises(StopIteration):
        next(ready)


class Stream:
    """Notes what waits for what."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: Any) -> None:
        self.events.append(f"{self.name} waits for {other.name}")


def test_on_a_gpu_the_next_batch_is_made_aside_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    main, side = Stream("main", events), Stream("side", events)

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        events.append(f"on {stream.name}")
        yield
        events.append("on main")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    ready = Prefetcher(batches(2, events), torch.device("cuda"), finish(events))

    found = []
    for batch in ready:
        found.append(int(batch.index))
        events.append(f"step {int(batch.index)}")
    assert found == [0, 1]
    assert events == [
        *("side waits for main", "on side", "load 0", "finish 0", "on main"),
        *("main waits for side", "on side", "load 1", "finish 1", "on main", "step 0"),
        *("main waits for side", "on side", "step 1"),
        "on side",
    ]
