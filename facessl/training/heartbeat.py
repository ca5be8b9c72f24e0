"""Notices that a rank of a distributed job is gone, so that the others end with a sentence instead of waiting.

A rank that was killed (out of memory, a node that failed) leaves the others in a collective: gloo breaks off, NCCL
waits for an hour (`run.TIMEOUT`). Every rank therefore writes a counter to the job's own store twice a second,
from a thread. Rank 0 judges: a counter that stands still for `PATIENCE` of its own beats is a rank that is gone; a
broken connection shortens that to `DOUBT`. Beats and not seconds are counted, so that a job that is suspended as a
whole does not end when it wakes. The traffic is two small messages per rank and beat, whatever the number of ranks.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from datetime import timedelta

import torch.distributed as dist

#: Seconds between two beats.
BEAT = 0.5
#: Beats without a sign after which a rank is gone: 30 seconds.
PATIENCE = 60
#: The same once a rank has seen its connection break: 3 seconds.
DOUBT = 6
#: Exit status of the ranks that are left.
LOST = 3

DONE, FAILED = "done", "failed"


class Heartbeat:
    """The signs of life of one rank, and its view of the others.

    Attributes:
        advice: how to go on, the end of the sentence that is printed.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int, prefix: str) -> None:
        """
        Args:
            host, port: of the job's store (MASTER_ADDR, MASTER_PORT).
            rank, world_size: of this process.
            prefix: of the keys, the same on all ranks and new at every start.
        """
        self.rank, self.world_size = rank, world_size
        self.advice = "go on with --resume --out RUN, on any number of ranks that divides the batch"
        # A connection of its own: the process group's blocks while it waits.
        own = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
        self._store = dist.PrefixStore(prefix, own)
        self._ended, self._doubt = threading.Event(), threading.Event()
        self._store.set(f"who/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
        self._store.set(f"beat/{rank}", "0")
        self._store.set("lost", "") if rank == 0 else None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; every rank must have been constructed (the process group's start is such a point)."""
        self._thread.start()

    def leave(self, *, failed: bool = False) -> None:
        """This rank ends by itself, with an error of its own or at the end of its work."""
        self._ended.set()
        try:
            self._store.set(f"beat/{self.rank}", FAILED if failed else DONE)
        except RuntimeError:
            return  # the store ended first

    def wait_for_verdict(self) -> None:
        """A connection of this rank broke: ends the process as soon as it is known which rank is gone.

        Returns where none is, after twice `DOUBT` beats: then it is the network, not a rank.
        """
        self._doubt.set()
        self._thread.join(2 * (DOUBT + 2) * BEAT)

    def _run(self) -> None:
        seen: dict[int, tuple[str, int]] = {}
        beats = 0
        while not self._ended.wait(BEAT):
            beats += 1
            try:
                self._store.set(f"beat/{self.rank}", str(beats))
                if self._doubt.is_set():
                    self._store.set("doubt", "1")
                lost = self._judge(seen) if self.rank == 0 else self._follow(seen)
            except RuntimeError:  # the store is gone, and with it the process that held it
                if self._ended.wait(DOUBT * BEAT):
                    return
                lost = "rank 0, or the process that holds the job's store,"
            if lost and not self._ended.is_set():
                self._end(lost)

    def _judge(self, seen: dict[int, tuple[str, int]]) -> str:
        """Rank 0: who has been silent too long, as the subject of a sentence; "" if nobody has."""
        every = self._read([f"beat/{rank}" for rank in range(self.world_size)])
        limit = DOUBT if self._store.check(["doubt"]) else PATIENCE
        for rank in range(1, self.world_size):
            if self._silence(rank, every[rank], seen) >= limit:
                (who,) = self._read([f"who/{rank}"])
                lost = f"rank {rank} of {self.world_size} ({who})"
                if every[rank] == FAILED:
                    lost += " ended with an error of its own and"
                self._store.set("lost", lost)
                return lost
        return ""

    def _follow(self, seen: dict[int, tuple[str, int]]) -> str:
        """Other ranks: what rank 0 found, or that rank 0 itself is silent."""
        lost, zero = self._read(["lost", "beat/0"])
        limit = DOUBT if self._doubt.is_set() else PATIENCE
        if lost or self._silence(0, zero, seen) < limit:
            return lost
        return f"rank 0 of {self.world_size} ({self._read(['who/0'])[0]})"

    def _read(self, keys: list[str]) -> list[str]:
        return [value.decode() for value in self._store.multi_get(keys)]

    def _silence(self, rank: int, value: str, seen: dict[int, tuple[str, int]]) -> int:
        """Beats of this rank since the counter of `rank` moved."""
        last, count = seen.get(rank, ("", 0))
        count = count + 1 if value == last and value != DONE else 0
        seen[rank] = (value, count)
        return count

    def _end(self, lost: str) -> None:
        if self.rank == 0 or (self.rank == 1 and lost.startswith("rank 0")):
            print(f"facessl: {lost} is gone (killed, out of memory, or its node failed): the job ends; {self.advice}",
                  file=sys.stderr, flush=True)  # fmt: skip
        # The main thread is in a collective that never ends. Time for rank 0's verdict to reach the others.
        if self.rank == 0:
            self._ended.wait(2 * BEAT)
        os._exit(LOST)


_current: Heartbeat | None = None
_starts = 0


def start(rank: int, world_size: int) -> None:
    """Begin to watch the ranks of the job that the environment names; nothing where it names no store."""
    global _current, _starts
    if world_size == 1 or "MASTER_PORT" not in os.environ:
        return
    _starts += 1
    prefix = f"facessl/heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_starts}"
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"])
    _current = Heartbeat(host, port, rank, world_size, prefix)
    dist.barrier()
    _current.start()


def advise(text: str) -> None:
    """How to go on, told where a rank is lost."""
    if _current is not None:
        _current.advice = text


def leave(*, failed: bool = False) -> None:
    """End the watch, as this rank ends by itself."""
    global _current
    if _current is not None:
        _current.leave(failed=failed)
    _current = None


def wait_for_verdict() -> None:
    """After a broken connection: see `Heartbeat.wait_for_verdict`."""
    if _current is not None:
        _current.wait_for_verdict()
