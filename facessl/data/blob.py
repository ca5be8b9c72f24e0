"""Memory that the processes of a machine share, and how much of it is free."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError


class Blob:
    """Bytes that forked workers share, and other processes after unpickling it while its maker lives.

    On Linux it is memory without a file and vanishes with the last process; elsewhere a file in the temporary folder.
    Bytes that were never written take no memory.
    """

    def __init__(self, capacity: int) -> None:
        """
        Args:
            capacity: bytes, 1 or more.
        """
        if sys.platform == "linux":
            handle = os.memfd_create("facessl-cache")
            path = f"/proc/{os.getpid()}/fd/{handle}"
            weakref.finalize(self, os.close, handle)
        else:
            handle, path = tempfile.mkstemp(prefix="facessl-cache-")
            os.close(handle)
            weakref.finalize(self, _remove, path, os.getpid())
        os.truncate(path, capacity)
        self._map(path, capacity)

    def _map(self, path: str, capacity: int) -> None:
        self.path, self.capacity = path, capacity
        with open(path, "r+b") as file:
            self.bytes = np.frombuffer(mmap.mmap(file.fileno(), capacity), np.uint8)

    def __getstate__(self) -> tuple[str, int]:
        return self.path, self.capacity

    def __setstate__(self, state: tuple[str, int]) -> None:
        try:
            self._map(*state)
        except OSError as error:
            raise DataError(
                f"this process cannot open the image cache of another one of this machine ({error}): leave --cache out"
            ) from None


def _remove(path: str, maker: int) -> None:
    if os.getpid() == maker:
        Path(path).unlink(missing_ok=True)


def free_memory() -> int:
    """Bytes of free main memory: what the system calls available, or what a container has left if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, int(limit) - int(used) + int(stat.get("inactive_file", 0)))  # "max" is no number
    except (OSError, ValueError):
        return free
