"""What jobs over whole folders share: an output folder with one writer, and processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import torch

from facessl.core.errors import ConfigError, DataError
from facessl.core.files import is_temporary, remove_temporaries
from facessl.core.lock import only_writer
from facessl.data.location import refuse_inside
from facessl.data.source import Source, open_source

#: Pieces per process that are in work or wait to be written.
_AHEAD = 4


def open_with_positions(source: str | Path | Source) -> Source:
    """The source of a job. ConfigError for a stream, which has no positions to go on from."""
    opened = open_source(str(source) if isinstance(source, Path) else source)
    if opened.streaming:
        raise ConfigError("a stream has no positions to go on from: use files on a disk")
    return opened


@contextlib.contextmanager
def output_folder(out: str | Path, source: Source, manifest: str, job: str, *, wait: bool = False) -> Iterator[Path]:
    """The output folder of a job, made where it is missing, with this process as its only writer.

    Args:
        out: new, empty, or a folder that has the file `manifest` of an earlier call.
        source: what the job reads; the folder must not lie inside it.
        manifest: name of the file.
        job: name of the job, for messages.
        wait: until another process has left the folder.

    Raises:
        ConfigError: the folder is a file, inside the source, has other files in it, or is in use.
        DataError: a file in it cannot be written.
    """
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder")
    refuse_inside(folder, source, f"what {job} writes")
    with only_writer(folder, wait=wait):
        if not (folder / manifest).is_file() and any(
            path.name != ".lock" and not is_temporary(path.name) for path in folder.iterdir()
        ):
            raise ConfigError(
                f"{folder} is not empty, and its files are not of an earlier {job}: name another folder with --out"
            )
        remove_temporaries(folder)
        try:
            yield folder
        except OSError as error:
            raise DataError(
                f"cannot write to {folder}: {error.strerror or error}; the same command goes on where it stopped"
            ) from None


def in_order(work: Callable[[Any], Any], pieces: Iterable[Any], workers: int) -> Iterator[Any]:
    """`work(piece)` of every piece, in order, by so many processes; 0 works in this one.

    `pieces` is read a few ahead of the results, so that it may depend on them.

    Raises:
        DataError: a process died.
    """
    if not workers:
        yield from map(work, pieces)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # as in the loader
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(work, os.getpid()))
    waiting: deque[Future[Any]] = deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(_call, piece))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process died, most often because memory ran out: the same command with fewer --workers goes on"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any]


def _start_worker(work: Callable[[Any], Any], parent: int) -> None:
    """One thread per process; the main process decides about Ctrl-C; nobody outlives it."""
    global _work
    _work = work
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A parent that was killed leaves its processes waiting for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _call(piece: Any) -> Any:
    return _work(piece)
