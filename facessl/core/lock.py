"""One writer for each folder or file that a command writes."""

import contextlib
import errno
import importlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from facessl.core.errors import ConfigError
from facessl.core.files import open_own

#: (process, lock file) held by this process, which the system's lock does not keep out.
_HELD: dict[tuple[int, Path], object] = {}
#: Locked byte of the file on Windows, where locked bytes cannot be read: far behind the text.
_BYTE = 1 << 30
#: Seconds between two attempts on Windows, which cannot wait for a lock.
_AGAIN = 0.2


class InUse(ConfigError):
    """Another process writes there."""


@contextlib.contextmanager
def only_writer(out: str | Path, *, folder: bool = True, wait: bool = False) -> Iterator[None]:
    """Create a folder and lock it, or one file, against other writers until the block ends.

    The lock on `.lock` in the folder, or on `.NAME.lock` beside the file, is the system's and goes with the process,
    however it dies; forked processes do not hold it. Its file is removed at the end, with a folder that stayed empty.
    `wait`: until the other process ends.

    ConfigError: the folder cannot be created. InUse: another process writes, whose PID and host are named.
    """
    out = Path(out)
    parent = out if folder else out.parent
    lock = parent / ".lock" if folder else parent / f".{out.name}.lock"
    created = [path for path in (parent, *parent.parents) if not path.exists()]
    failure, own, process = "made", object(), f"process {os.getpid()} on {socket.gethostname()}"
    with contextlib.ExitStack() as held:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            failure = "used"
            key = os.getpid(), parent.resolve() / lock.name
            if _HELD.setdefault(key, own) is not own:  # opening and closing its file would free the lock
                raise _in_use(out, process)
            held.callback(_HELD.pop, key)
            file, is_ours = _open_locked(lock, wait)
        except OSError as error:
            raise ConfigError(
                f"--out {out} cannot be {failure} ({error.strerror or error}): name a {'folder' if folder else 'file'} "
                "where you may write"
            ) from None
        held.enter_context(file)
        if not is_ours:
            file.seek(0)
            raise _in_use(out, file.read())
        file.truncate(0)
        print(process, end="", file=file, flush=True)
        try:
            yield
        finally:
            if os.name == "nt":  # where an open file cannot be removed
                file.close()
            with contextlib.suppress(OSError):  # the folder may have been moved, or have other files in it
                lock.unlink()
                for path in created:
                    path.rmdir()


def _in_use(out: Path, by: str) -> InUse:
    return InUse(f"{out} is being written by {by}: wait until it ends, or choose another --out")


def _open_locked(path: Path, wait: bool) -> tuple[IO[str], bool]:
    """Open the lock's file; return it and whether it is locked by us. Opened again if its holder removed it."""
    while True:
        file = open_own(path, "a+")
        if not _lock(file, wait):
            return file, False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file, True
        file.close()


def _lock(file: IO[str], wait: bool) -> bool:
    """Lock a file; False if another process has. File systems without locks count as locked."""
    try:  # imported by name, as mypy knows each module on its own system only
        fcntl: Any = importlib.import_module("fcntl")
    except ModuleNotFoundError:
        return _lock_on_windows(file, wait)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _lock_on_windows(file: IO[str], wait: bool) -> bool:
    """`_lock` on Windows, which frees the byte when the file is closed or the process ends."""
    msvcrt: Any = importlib.import_module("msvcrt")
    while True:
        file.seek(_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno != errno.EACCES:
                return True
            if not wait:
                return False
            time.sleep(_AGAIN)
        else:
            return True
