"""One writer for each folder that a command writes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from facessl.core.errors import ConfigError


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes from writing to it until the block ends.

    The lock on `folder/.lock` is the system's and goes with the process, however it dies; processes that it forks do
    not hold it (as those of the package filelock do). A folder in which nothing was written is removed again.
    Windows has no such lock.

    Raises:
        ConfigError: the folder cannot be made, or another process writes there, whose number and host are named.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    fails = "made"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fails = "used"
        file = open(folder / ".lock", "a+", opener=_own_file)  # noqa: SIM115 (below)
    except OSError as error:
        raise ConfigError(
            f"--out {folder} cannot be {fails} ({error.strerror or error}): name a folder where you may write"
        ) from None
    with file:
        if not _locked(file):
            file.seek(0)
            raise ConfigError(
                f"{folder} is being written by {file.read()}: wait until it ends, or choose another --out"
            )
        file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", end="", file=file, flush=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder may have been moved
                if made and os.listdir(folder) == [".lock"]:
                    (folder / ".lock").unlink()
                    for path in made:
                        path.rmdir()


def _own_file(name: str, flags: int) -> int:
    """An opener that follows no link and takes nothing but a file: the folder may be somebody else's."""
    descriptor = os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, ".lock is not a file of its own")


def _locked(file: TextIO) -> bool:
    """Lock a file; False where another process has. True, too, on file systems that have no locks."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
