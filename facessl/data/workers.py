"""Loader processes: starting, stopping, and errors when one dies."""

import errno
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from facessl.core.environment import start_method
from facessl.core.errors import FaceSSLError, TrainingError

#: Open files that this process and each worker may need: every tensor of a batch on its way is one.
_FILES, _FILES_PER_WORKER = 64, 48
#: Seconds to wait for a batch.
_TIMEOUT = 1200
#: Seconds between two checks that the loader processes live.
_POLL = 5


def worker_batches(dataset: Any, sampler: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    """Yield what a dataset gives for each item of a sampler (None: for all of itself), in order; raise its errors.

    TrainingError: a worker process died, or there is too little memory or too few open files for them.
    """
    if workers:
        _allow_files(_FILES + _FILES_PER_WORKER * workers)
    loader = DataLoader(
        dataset,
        batch_size=None,  # an item is a batch already
        sampler=sampler,
        collate_fn=_identity,
        num_workers=workers,
        worker_init_fn=_start_worker,
        multiprocessing_context=start_method() if workers else None,
        pin_memory=pin_memory,
        timeout=_TIMEOUT if workers else 0,
        # Otherwise the DataLoader draws from the global generator, and a resumed run would differ from then on.
        generator=torch.Generator().manual_seed(0),
    )
    batches: Any = None
    try:
        batches = iter(loader)
        if workers:
            _watch_workers(batches)
        for batch in batches:
            if isinstance(batch, FaceSSLError):
                raise batch
            yield batch
    except (RuntimeError, OSError) as error:
        raise _worker_error(error) or error from None
    finally:
        for worker in getattr(batches, "_workers", ()):  # PyTorch waits for them when the process ends
            batches._shutdown_workers()
            worker.kill()


def _watch_workers(batches: Any) -> None:
    """Detect dead workers only while waiting for a batch: PyTorch's signal handler raises in any code, such as the
    saving of a checkpoint, and does not work while the workers start."""
    signal_handling._remove_worker_pids(id(batches))
    batches._worker_pids_set = False
    get = batches._try_get_data  # checks the workers after a timeout

    def wait(timeout: float) -> tuple[bool, Any]:
        end = time.monotonic() + timeout
        while True:
            try:
                batch = get(_POLL)
            except (ConnectionError, EOFError) as error:  # it died while sending a batch
                raise _worker_died(str(error) or "it hung up") from None
            if batch[0] or time.monotonic() >= end:
                return batch

    batches._try_get_data = wait


def _allow_files(needed: int) -> None:
    """Raise the limit of open files: a worker that meets it leaves the main process waiting. TrainingError if it
    cannot be raised."""
    if sys.platform == "win32":
        return
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


def _worker_error(error: RuntimeError | OSError) -> TrainingError | None:
    """Return an error with a fix if `error` says that a loader process failed, else None."""
    message = str(error)
    if getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE) or re.search("Too many open files|ancdata", message):
        return TrainingError(
            "the loader processes need more open files than are allowed: raise the limit (ulimit -n 4096), or use "
            "fewer workers"
        )
    if "Caught" in message and re.search(r"shared memory|</torch_\w+> to the right size", message):
        return TrainingError(
            "the loader processes have too little shared memory (/dev/shm, or ulimit -f): enlarge it (docker run "
            "--shm-size 8g), or use fewer workers or a smaller batch"
        )
    if "DataLoader timed out" in message:
        return TrainingError(f"no batch came from the loader processes for {_TIMEOUT // 60} minutes: use fewer workers")
    return _worker_died(message.splitlines()[0]) if "DataLoader worker (pid" in message else None


def _worker_died(reason: str) -> TrainingError:
    return TrainingError(
        f"a loader process died ({reason}): most often memory ran out, or shared memory (/dev/shm) did; use fewer "
        "workers or a smaller batch"
    )


def _identity(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """Use one thread per worker. Only the main process handles stop signals: `timeout` and SLURM send them to every
    process, and a worker that stops would end the run before it can save. A stopped worker has a minute."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
