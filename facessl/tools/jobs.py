"""What jobs over whole folders share: an output folder with one writer, processes, progress.

File names there come from photos and from files of earlier calls: nothing outside the folder is written, and no link in
it is written through.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import cv2
import torch

from facessl.core.errors import ConfigError, DataError
from facessl.core.files import is_temporary
from facessl.data.location import refuse_inside
from facessl.data.source import Source

_LOCK, PART = ".lock", ".part"
#: Pieces per process that are in work or wait to be written.
_AHEAD = 4


def claim(out: str | Path, source: Source, manifest: str, job: str, made: str) -> tuple[Path, IO[bytes]]:
    """The output folder of a job, created where it is missing, and its lock, held until it is closed.

    Args:
        out: new, empty, or a folder that has the file `manifest` of an earlier call.
        source: what the job reads; the folder must not lie inside it.
        manifest: name of the file.
        job: name of the job, for messages.
        made: what the job writes, in the plural.

    Raises:
        ConfigError: the folder is a file, inside the source, has other files in it, or is in use.
    """
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder for the {made}")
    refuse_inside(folder, source, f"the {made}")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = {_LOCK, manifest + PART}  # of a call that was stopped before its first file
    if not (folder / manifest).is_file() and any(
        p.name not in unfinished and not is_temporary(p.name) for p in folder.iterdir()
    ):
        raise ConfigError(
            f"{folder} is not empty, and its files are not of an earlier {job}: name another folder with --out"
        )
    lock = open_file(folder / _LOCK, "ab")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # child processes do not inherit it
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"another {job} is writing to {folder}: wait for it, or name another folder") from None
    except OSError:  # a file system without locks
        pass
    return folder, lock


def inside(folder: Path, name: str) -> Path:
    """`folder / name`. DataError where `..` or a link leads out of the folder."""
    path = folder / name
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path} leads out of {folder}: remove the link, or name another folder")
    return path


def open_file(path: Path, mode: str) -> IO[Any]:
    """`open` for writing. DataError where the file is a link, which is never written through."""

    def no_link(name: str, flags: int) -> int:
        try:
            return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError:
            if os.path.islink(name):
                raise DataError(f"{name} is a link, which is not written through: remove it") from None
            raise

    return open(path, mode, opener=no_link)


def replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file that holds its old or its new content, never a part; `durable` waits until it is on the disk."""
    part = path.with_name(path.name + PART)
    with open_file(part, "wb") as file:
        file.write(data)
        if durable:
            sync(file)
    os.replace(part, path)
    if durable:
        sync_folder(path.parent)


def sync(file: IO[bytes]) -> None:
    """Bring what was written to a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ProgressLine:
    """Context manager, to be called with the numbers of images done and in total: a line on standard error.

    The line has the rate and the time left. It is redrawn on a terminal, and a new one every half minute elsewhere.
    """

    def __enter__(self) -> ProgressLine:
        self._live = sys.stderr.isatty()
        self._began = self._last = time.monotonic()
        self._before: int | None = None  # done by an earlier call
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print(file=sys.stderr)

    def __call__(self, done: int, total: int) -> None:
        if self._before is None:
            self._before = done
        now = time.monotonic()
        if now - self._last < (0.5 if self._live else 30) and done < total:
            return
        self._last = now
        rate = (done - self._before) / max(now - self._began, 1e-3)
        left = round((total - done) / max(rate, 1e-3))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        text = f"{done}/{total} images  {100 * done // max(total, 1)} %  {rate:.3g} images/s  left {clock}"
        print(f"\r{text:<72}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)


def in_order(work: Callable[[Any], Any], pieces: Iterable[Any], workers: int) -> Iterator[Any]:
    """`work(piece)` of every piece, in order, by so many processes; 0 works in this one.

    `pieces` is read a few ahead of the results, so that it may depend on them.

    Raises:
        DataError: a process died.
    """
    if not workers:
        yield from map(work, pieces)
        return
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # as in the loader
    idle: SimpleQueue[Connection] = SimpleQueue()
    processes = []
    for _ in range(workers):
        # Each has a pipe of its own: one that is killed while it writes ends its pipe, and blocks none that others use.
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True))
        processes[-1].start()
        theirs.close()
        idle.put(ours)

    def ask(piece: Any) -> Any:
        connection = idle.get()
        try:
            connection.send((piece,))
            result, error = connection.recv()
        except (EOFError, OSError):
            raise DataError(
                "a worker process died, most often because memory ran out: the same command with fewer --workers goes "
                "on"
            ) from None
        finally:
            idle.put(connection)
        if error is not None:
            raise error
        return result

    threads = ThreadPoolExecutor(workers)  # that empty the pipes while the results before are used
    waiting: deque[Future[Any]] = deque()
    try:
        for piece in pieces:
            waiting.append(threads.submit(ask, piece))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        for _ in processes:
            with contextlib.suppress(OSError), idle.get() as connection:
                connection.send(None)
        for process in processes:
            process.join()


def _serve(work: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    """Work on pieces until told to stop. One thread per process; the main process decides about Ctrl-C; nobody
    outlives it."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    answer: tuple[Any, Exception | None]
    while (given := connection.recv()) is not None:
        try:
            answer = work(*given), None
        except Exception as error:
            answer = None, error
        connection.send(answer)


def _leave_with(parent: int) -> None:
    """A parent that was killed leaves its processes waiting for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
