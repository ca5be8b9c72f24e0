"""Stopping a run before its end: signals, time limit, agreement of the ranks."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Stopping:
    """Decision to stop, the same on every rank after every step; as a context manager it catches SIGINT and SIGTERM.

    A first signal requests a stop, a second one interrupts at once. Requests of several ranks are summed behind a step
    and read one step later, so that a GPU never waits: all ranks stop after the following step.

    Attributes:
        reason: why the run stops, once agreed on; None = continue.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        """`device` is that of the process group's tensors."""
        self.reason: str | None = None
        self._device, self._world_size = device, world_size
        self._request: str | None = None
        self._sent: tuple[Tensor, Any] | None = None  # the sum on the host, and its event or work handle
        self._handlers: dict[int, Any] = {}
        self._signaled = False

    def ask(self, reason: str) -> None:
        """Request a stop of all ranks."""
        self._request = self._request or reason

    def agree(self, *, at_once: bool = False) -> None:
        """Set `reason`; collective call, after every step. `at_once`: include the requests of now."""
        if self._world_size == 1:
            self.reason = self._request
            return
        self._receive()
        if self.reason is None:
            self._send()
        if at_once:
            self._receive()

    def _send(self) -> None:
        # Filled on the device: a copy from here would wait for it.
        requests = torch.full((1,), float(self._request is not None), device=self._device)
        if self._device.type != "cuda":
            self._sent = requests, dist.all_reduce(requests, async_op=True)
            return
        dist.all_reduce(requests)
        total, copied = torch.empty(1, pin_memory=True), torch.cuda.Event()
        total.copy_(requests, non_blocking=True)
        copied.record()
        self._sent = total, copied

    def _receive(self) -> None:
        if self._sent is None:
            return
        total, copied = self._sent
        self._sent = None
        copied.wait() if self._device.type != "cuda" else copied.synchronize()
        if float(total):
            self.reason = self._request or "another rank stopped"

    def __enter__(self) -> Stopping:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._handlers[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the caller handles signals
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None and self._sent is not None:  # leave no message behind
            self._sent[1].wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signaled:
            raise KeyboardInterrupt
        self._signaled = True
        self.ask(signal.Signals(number).name)
