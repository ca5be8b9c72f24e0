"""Rows of past batches, the same on every rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facessl.core.distributed import all_gather_rows, rank, world_size
from facessl.core.precision import at_least_float32


class Queue(nn.Module):
    """The last L rows of K parallel sets (SwAV: one set per view that is assigned), over all ranks.

    Every rank holds all rows, so that a checkpoint of one rank holds the queue and a run may go on with another number
    of ranks. `note` gathers rows during a step, `move` puts them in. Nothing is read back from the device.
    """

    def __init__(self, sets: int, length: int, dim: int) -> None:
        """`sets` is K; `length` L, rows of each set over all ranks, of which the oldest leave first; `dim` D."""
        super().__init__()
        self.length = length
        self.rows: Tensor
        self.position: Tensor
        self.filled: Tensor
        self.register_buffer("rows", torch.zeros(sets, length, dim))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._noted: Tensor | None = None

    @torch.no_grad()
    def note(self, rows: Tensor) -> None:
        """Keeps (K, B, D) rows of this rank for `move`; never more than L of them, however often it is called."""
        rows = at_least_float32(rows.detach())
        joined = rows if self._noted is None else torch.cat([self._noted, rows], 1)  # (K, B + ..., D)
        self._noted = joined[:, -self.length :]

    @torch.no_grad()
    def move(self) -> None:
        """Puts in what all ranks noted, in the order of the ranks (collective call where something was noted)."""
        if self._noted is None:
            return
        fresh = all_gather_rows(self._noted.transpose(0, 1))[-self.length :].transpose(0, 1)  # (K, W * B, D)
        count = fresh.shape[1]
        places = (self.position + torch.arange(count, device=fresh.device)) % self.length
        self.rows.index_copy_(1, places, fresh.to(self.rows.dtype))
        self.position.copy_((self.position + count) % self.length)
        self.filled.copy_((self.filled + count).clamp_max(self.length))
        self._noted = None

    def share(self) -> Tensor:
        """The rows this rank stands for, (K, about L / W, D): those of all ranks together are the whole queue."""
        return self.rows[:, rank() :: world_size()]

    def full(self) -> Tensor:
        """1 where L rows have been put in, else 0: a scalar on the queue's device, of the type of its rows."""
        return (self.filled >= self.length).to(self.rows.dtype)
