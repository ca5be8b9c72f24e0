"""Processes that make batches: how they start, stop, and what is said when one dies."""

from __future__ import annotations

import errno
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from facessl.core.errors import FaceSSLError, TrainingError

#: Open files that this process and each worker may need: every tensor of a batch on its way is one.
_FILES, _FILES_PER_WORKER = 64, 48
#: Seconds without a batch after which the loader processes are given up.
_TIMEOUT = 1200


def worker_batches(dataset: Any, sampler: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    """What a dataset gives for each item of a sampler (None: for all of itself), in order.

    The dataset gives batches, or errors, which are raised here; 0 `workers` are this process.

    Raises:
        TrainingError: a worker process died, or there is too little memory or too few open files for them.
    """
    if workers and sys.platform != "win32":
        _allow_files(_FILES + _FILES_PER_WORKER * workers)
    loader = DataLoader(
        dataset,
        batch_size=None,  # an item is a batch already
        sampler=sampler,
        collate_fn=_as_is,
        num_workers=workers,
        worker_init_fn=_start_worker,
        # fork starts in milliseconds and shares the source; a worker runs no CUDA and one thread, so the locks
        # that a fork can leave behind are never taken.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=pin_memory,
        timeout=_TIMEOUT if workers else 0,
        # Otherwise the DataLoader draws from the global generator, and a resumed run would differ from then on.
        generator=torch.Generator().manual_seed(0),
    )
    batches: Any = None
    try:
        batches = iter(loader)
        for batch in batches:
            if isinstance(batch, FaceSSLError):
                raise batch
            yield batch
    except (RuntimeError, OSError) as error:
        raise worker_death(error) or error from None
    finally:
        for worker in getattr(batches, "_workers", ()):  # PyTorch waits for them when the process ends
            batches._shutdown_workers()
            worker.kill()


def _allow_files(needed: int) -> None:
    """Raise the limit of open files: a worker that meets it leaves the main process waiting. TrainingError where it
    cannot be raised."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        raise TrainingError(
            f"the loader processes need up to {needed} open files, and {hard} are allowed: raise the limit "
            "(ulimit -n 4096), or use fewer --workers"
        ) from None


def worker_death(error: RuntimeError | OSError) -> TrainingError | None:
    """What to tell a person where `error` says that a loader process failed; None where it says something else.

    PyTorch raises it in whatever the main process is doing at that moment, not only while it waits for a batch.
    """
    said = str(error)
    if getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE) or re.search("Too many open files|ancdata", said):
        return TrainingError(
            "the loader processes need more open files than are allowed: raise the limit (ulimit -n 4096), or use "
            "fewer workers"
        )
    if "shared memory" in said and "Caught" in said:
        return TrainingError(
            "the loader processes have too little shared memory (/dev/shm): enlarge it (docker run --shm-size 8g), or "
            "use fewer workers or a smaller batch"
        )
    if "DataLoader timed out" in said:
        return TrainingError(f"no batch came from the loader processes for {_TIMEOUT // 60} minutes: use fewer workers")
    if not re.search(r"DataLoader worker \(pid", said):
        return None
    return TrainingError(
        f"a loader process died ({said.splitlines()[0]}): most often memory ran out, or shared memory "
        "(/dev/shm) did; use fewer workers or a smaller batch"
    )


def _as_is(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """One thread per worker. Stop signals are the main process's business: `timeout` and SLURM send them to every
    process, and a worker that obeyed would end the run before it can save. One that is told to stop has a minute."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
