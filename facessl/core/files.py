"""Safe reading and writing: a file holds its old or its new content, and links and pipes are neither read nor written.

Everything that writes does it through these functions, as other programs may write to the same folder.
"""

import contextlib
import errno
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from facessl.core.errors import ConfigError, DataError

#: Endings of the pictures that are written.
PICTURES = (".png", ".jpg")
#: Bytes of the largest list that is read.
MAX_LIST = 2 << 30
#: A pipe does not wait for its writer, a child process does not hold the file, Windows changes no line ends.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_MOVING = threading.Lock()
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\.facessl-[0-9a-f]{20}\.tmp")


def open_regular(path: str | Path, mode: str = "rb", *, most: int | None = MAX_LIST, **options: Any) -> IO[Any]:
    """`open` for reading a file that somebody else named: neither a pipe nor a device, and of at most `most` bytes.

    OSError: as `open`, and with a `strerror` that says what else the file is.
    """

    def opener(name: str, _: int) -> int:
        descriptor = os.open(name, os.O_RDONLY | _FLAGS)
        status, error = os.fstat(descriptor), None
        if stat.S_ISDIR(status.st_mode):
            error = OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        elif not stat.S_ISREG(status.st_mode):
            error = OSError(errno.EINVAL, "not a regular file")
        elif most is not None and status.st_size > most:
            error = OSError(errno.EFBIG, f"{status.st_size:,} bytes are more than the {most:,} that are read")
        if error:
            os.close(descriptor)
            raise error
        return descriptor

    try:
        return open(path, mode, opener=opener, **options)
    except ValueError:
        raise OSError(errno.EINVAL, "the name has a NUL byte in it") from None


def read_regular(path: str | Path, *, most: int = MAX_LIST) -> bytes:
    """The content of a file as `open_regular` opens it."""
    with open_regular(path, most=most, buffering=0) as file:
        data: bytes = file.read()
    return data


def descriptor_of(path: str | Path) -> int:
    """A descriptor of a file for `read_at`, which the caller closes."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes of an open file from `offset` on, fewer at its end.

    Threads and forked processes may share the descriptor, as pread moves no position. Windows has neither pread nor
    fork.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _MOVING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def most_open_files() -> int:
    """Files that this process may have open at a time."""
    if sys.platform == "win32":
        return 512
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def open_own(path: str | Path, mode: str) -> IO[Any]:
    """`open` for writing to a file that is kept ("a", "a+") or emptied ("w"). OSError where it is a link, pipe or
    device, or has a second name (a hard link); it is then left as it is."""

    def opener(name: str, flags: int) -> int:
        if not hasattr(os, "O_NOFOLLOW") and os.path.islink(name):  # Windows
            raise _not_own(name)
        empty = getattr(os, "O_TRUNC", 0)
        try:
            descriptor = os.open(name, (flags & ~empty) | getattr(os, "O_NOFOLLOW", 0) | _FLAGS, 0o666)
        except OSError as error:
            if os.path.islink(name) or error.errno == errno.ENXIO:  # a pipe that nobody reads
                raise _not_own(name) from None
            raise
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            if flags & empty:  # only now, as what is refused keeps its content
                os.ftruncate(descriptor, 0)
            return descriptor
        os.close(descriptor)
        raise _not_own(name)

    return open(path, mode, opener=opener)


def _not_own(name: str) -> OSError:
    return OSError(errno.EINVAL, f"{Path(name).name} is a link or no regular file, which is not written to: remove it")


def open_new(path: str | Path, *, mode: int = 0o666) -> IO[bytes]:
    """A new file, open for writing, in the place of whatever had its name: a link is replaced, not followed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | _FLAGS
    return open(path, "wb", opener=lambda name, _: os.open(name, flags, mode))


def write_atomic(path: Path, data: bytes | Callable[[IO[bytes]], object], *, private: bool = False) -> None:
    """Write `data`, or let it write to the file it is given: `path` holds its old or its new content, never a part.

    The folder is made; a `private` file nobody but the owner may read. DataError: the file could not be written (disk
    full, no permission, no memory).
    """
    with completed(path, private=private) as temporary, open(temporary, "wb") as file:
        try:
            if callable(data):
                data(file)
            else:
                file.write(data)
        except (RuntimeError, MemoryError) as error:  # torch.save reports a full disk as a RuntimeError
            raise OSError(errno.EIO, _reason(error)) from None
        sync(file)
    sync_folder(path.parent)


@contextlib.contextmanager
def completed(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """An empty file to write to, which becomes `path` where the block ends without an error. DataError as above."""
    path, temporary = Path(path), temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        open_new(temporary, mode=0o600 if private else 0o666).close()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """DataError where the block cannot write to the folder of a job that can be run again."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to {folder}: {error.strerror or error}; the same command goes on where it stopped"
        ) from None


def temporary_beside(path: str | Path) -> Path:
    """A name in the same folder that no file has, as `is_temporary` knows it; it tells the machine and the process."""
    process = f"{os.getpid() & 0xFFFFFF:06x}"
    return Path(path).with_name(f".facessl-{_MACHINE}{process}{secrets.token_hex(3)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file has a name of `temporary_beside`."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(*folders: Path) -> None:
    """Remove what processes that were killed left in these folders, to which only this process writes."""
    for folder in folders:
        for left in folder.glob(".facessl-*.tmp"):
            if is_temporary(left.name):
                _remove(left)


def _remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove what processes of this machine that were killed left in a folder to which others may write as well."""
    for left in list(folder.glob(pattern)):
        if is_temporary(left.name) and not _running(int(left.name[17:23], 16)):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _running(process: int) -> bool:
    if os.name == "nt":  # signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def inside(folder: Path, name: str) -> Path:
    """`folder / name`. DataError where `..` or a link leads out of the folder; the last part may be a link."""
    path = folder / name
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path.parent} leads out of {folder}: remove the link, or name another folder")
    return path


def sync(file: IO[bytes]) -> None:
    """Bring what was written to a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(path: str | Path | None, *, folder: bool = False) -> None:
    """Check, before any work, that a file (or `folder`) can be made at `path`, and remove what killed calls left there.

    ConfigError where something else is there, or the folder above may not be written to. None is fine.
    """
    if path is None:
        return
    kind, other = ("folder", "file") if folder else ("file", "folder")
    if os.path.exists(path) and os.path.isdir(path) != folder:
        raise ConfigError(f"--out {path} is a {other}: name a {kind}")
    full = os.path.abspath(path)
    above = full if folder else os.path.dirname(full)
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
        why = "may not be written to" if os.path.isdir(above) else "is a file"
        raise ConfigError(f"--out {path} cannot be made, as {above} {why}: name a {kind} where you may write")
    left = f".facessl-{_MACHINE}*.tmp"
    _remove_abandoned(Path(full if folder else above), f"**/{left}" if folder else left)


def check_ending(path: str | Path, what: str, endings: Sequence[str]) -> None:
    """ConfigError unless the name of the file for `what` ends in one of `endings`."""
    if Path(path).suffix not in endings:
        raise ConfigError(f"cannot write the {what} to {path}: the name must end in {' or '.join(endings)}")


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 picture as .png or .jpg. ConfigError: another ending. DataError: not written."""
    check_ending(path, "picture", PICTURES)
    kind = "PNG" if Path(path).suffix == ".png" else "JPEG"
    with completed(path) as partial:  # compress_level 3 takes half the time of 6 for a tenth more
        Image.fromarray(picture).save(partial, format=kind, quality=88, compress_level=3)


def _reason(error: RuntimeError | MemoryError) -> str:
    """What went wrong, also where torch's writer hides the system's own words."""
    root: BaseException = error
    while root.__context__ is not None:
        root = root.__context__
    if isinstance(root, MemoryError):
        return "not enough memory"
    return getattr(root, "strerror", None) or " ".join(str(root).split())[:160] or type(root).__name__
