"""Shared by `crop` and `pack`: an output folder with one writer, and worker processes."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import cv2
import torch

from facessl.core.blocks import remove_blocks
from facessl.core.environment import start_method
from facessl.core.errors import ConfigError, DataError
from facessl.core.files import is_temporary, remove_temporaries, writing
from facessl.core.lock import only_writer
from facessl.data.location import refuse_inside
from facessl.data.source import Source, open_source

#: Name of the ranks' blocks in the output folder (`facessl.core.blocks`).
BLOCKS = "ranks"
#: Pieces per process that are queued, in work or wait to be written.
_AHEAD = 4


def open_with_positions(source: str | os.PathLike[str] | Source) -> Source:
    """Open the source of a job. ConfigError: a stream, which has no positions to resume from."""
    opened = open_source(source)
    if opened.streaming:
        raise ConfigError("a stream has no positions to go on from: use files on a disk")
    return opened


@contextlib.contextmanager
def output_folder(out: str | Path, source: Source, manifest: str, job: str, *, wait: bool = False) -> Iterator[Path]:
    """Create and lock the output folder of a job.

    Args:
        out: new, empty, or a folder with the file `manifest` of an earlier call.
        source: images of the job called `job`; the folder must not lie inside it.
        wait: for a process that uses the folder; this one is a rank (`facessl.tools.ranks`), and others may continue
            the job.

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
        remove_temporaries(folder, *folder.rglob("*/"))
        with writing(folder):
            yield folder
            if not wait:  # the whole job is done
                remove_blocks(folder / BLOCKS)


def in_order(work: Callable[[Any], Any], pieces: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield `work(piece)` of every piece in order, computed by worker processes, or here if 0. DataError: one died.

    `pieces` is read only a few ahead of the results, so it may depend on them.
    """
    if not workers:
        yield from map(work, pieces)
        return
    context: Any = multiprocessing.get_context(start_method())
    idle: SimpleQueue[Connection] = SimpleQueue()
    processes = []
    for _ in range(workers):
        # Each has its own pipe: one that is killed while writing breaks no pipe of others.
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(work, theirs), daemon=True))
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

    threads = ThreadPoolExecutor(workers)  # empty the pipes while earlier results are used
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


def _serve(work: Callable[[Any], Any], connection: Connection) -> None:
    """Work on pieces until None comes, with one thread; Ctrl-C is left to the main process, whose end ends this one."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    answer: tuple[Any, Exception | None]
    while (message := connection.recv()) is not None:
        try:
            answer = work(*message), None
        except Exception as error:
            answer = None, error
        connection.send(answer)


def _exit_with_parent() -> None:
    """End this process with its parent, which may be killed without closing the pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
