"""When a run stops before its end: signals, the time limit, and what the ranks agree on."""

from __future__ import annotations

import signal
from collections import deque
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Stopping:
    """Whether to stop, the same on every rank after every step; as a context manager it catches SIGINT and SIGTERM.

    A first signal asks for a stop, a second one interrupts at once. What several ranks ask for is summed up behind the
    work of a step and read one step later, so that a GPU never waits: all stop after the step that follows.

    Attributes:
        reason: why the run stops, once agreed on; None = go on.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        """`device` is that of the process group's tensors."""
        self.reason: str | None = None
        self._device, self._world_size = device, world_size
        self._asked: str | None = None
        self._sent: tuple[Tensor, Any] | None = None  # the sum on the host, and what to wait for before it is there
        self._old: dict[int, Any] = {}
        self._seen: deque[int] = deque()

    def ask(self, reason: str) -> None:
        """This rank wants to stop."""
        self._asked = self._asked or reason

    def agree(self, *, at_once: bool = False) -> None:
        """Sets `reason`; collective call, after every step. `at_once`: wait for what the ranks ask for now."""
        if self._world_size == 1:
            self.reason = self._asked
            return
        self._receive()
        if self.reason is None:
            self._send()
        if at_once:
            self._receive()

    def _send(self) -> None:
        # Filled on the device: a copy from here would wait for it.
        asking = torch.full((1,), float(self._asked is not None), device=self._device)
        if self._device.type != "cuda":
            self._sent = asking, dist.all_reduce(asking, async_op=True)
            return
        dist.all_reduce(asking)
        total, there = torch.empty(1, pin_memory=True), torch.cuda.Event()
        total.copy_(asking, non_blocking=True)
        there.record()
        self._sent = total, there

    def _receive(self) -> None:
        if self._sent is None:
            return
        total, there = self._sent
        self._sent = None
        there.wait() if self._device.type != "cuda" else there.synchronize()
        if float(total):
            self.reason = self._asked or "another rank stopped"

    def __enter__(self) -> Stopping:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the caller handles signals
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        if kind is None and self._sent is not None:  # no message is left behind on its way
            self._sent[1].wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen.append(number)
        self.ask(signal.Signals(number).name)
