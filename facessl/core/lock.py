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

#: (process, lock file) that are held here: the system's lock keeps other processes out, not this one.
_HELD: dict[tuple[int, Path], object] = {}
#: On Windows the byte of the lock's file that is locked, far behind its text, as locked bytes cannot be read there.
_BYTE = 1 << 30
#: Seconds between two tries where the system cannot wait for a lock.
_AGAIN = 0.2


class InUse(ConfigError):
    """Another process writes there."""


@contextlib.contextmanager
def only_writer(out: str | Path, *, folder: bool = True, wait: bool = False) -> Iterator[None]:
    """Make a folder and keep others from writing to it until the block ends; or do so for one file.

    The lock on `.lock` in the folder, or on `.NAME.lock` beside the file, is the system's and goes with the process,
    however it dies; forked processes do not hold it. It is removed at the end, and so is a folder in which nothing was
    written. `wait`: for the other process's end.

    ConfigError: the folder cannot be made. InUse: another writer is there, whose PID and host are named.
    """
    out = Path(out)
    place = out if folder else out.parent
    lock = place / ".lock" if folder else place / f".{out.name}.lock"
    made = [path for path in (place, *place.parents) if not path.exists()]
    fails, own, process = "made", object(), f"process {os.getpid()} on {socket.gethostname()}"
    with contextlib.ExitStack() as held:
        try:
            place.mkdir(parents=True, exist_ok=True)
            fails = "used"
            key = os.getpid(), place.resolve() / lock.name
            if _HELD.setdefault(key, own) is not own:  # opening and closing its file would free the lock
                raise _written(out, process)
            held.callback(_HELD.pop, key)
            file, free = _locked(lock, wait)
        except OSError as error:
            raise ConfigError(
                f"--out {out} cannot be {fails} ({error.strerror or error}): name a {'folder' if folder else 'file'} "
                "where you may write"
            ) from None
        held.enter_context(file)
        if not free:
            file.seek(0)
            raise _written(out, file.read())
        file.truncate(0)
        print(process, end="", file=file, flush=True)
        try:
            yield
        finally:
            if os.name == "nt":  # a file that is open, here or by who waits for it, cannot be removed there
                file.close()
            with contextlib.suppress(OSError):  # the folder may have been moved, or have other files in it
                lock.unlink()
                for path in made:
                    path.rmdir()


def _written(out: Path, by: str) -> InUse:
    return InUse(f"{out} is being written by {by}: wait until it ends, or choose another --out")


def _locked(path: Path, wait: bool) -> tuple[IO[str], bool]:
    """The lock's file and whether it is ours now; anew where its last holder has removed it in between."""
    while True:
        file = open_own(path, "a+")
        if not _lock(file, wait):
            return file, False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file, True
        file.close()


def _lock(file: IO[str], wait: bool) -> bool:
    """Lock a file; False where another process has. True, too, on file systems that have no locks."""
    try:  # imported by name, as mypy knows either module on its own system alone
        fcntl: Any = importlib.import_module("fcntl")
    except ModuleNotFoundError:
        return _lock_on_windows(file, wait)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _lock_on_windows(file: IO[str], wait: bool) -> bool:
    """As `_lock`. The system frees the byte when the file is closed or the process ends."""
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
