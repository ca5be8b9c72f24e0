"""Processes that make batches: how they start, stop, and what is said when one dies."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from facessl.core.errors import FaceSSLError, TrainingError


def worker_batches(dataset: Any, sampler: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    """What a dataset gives for each item of a sampler (None: for all of itself), in order.

    Args:
        dataset: gives a batch, or an error that is raised here.
        sampler: items, or None where the dataset is iterable.
        workers: processes; 0 works in this one.
        pin_memory: put tensors into page-locked memory.

    Raises:
        FaceSSLError: what the dataset gave.
        TrainingError: a worker process died.
    """
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
        # Otherwise the DataLoader draws from the global generator, and a resumed run would differ from then on.
        generator=torch.Generator().manual_seed(0),
    )
    try:
        for batch in loader:
            if isinstance(batch, FaceSSLError):
                raise batch
            yield batch
    except RuntimeError as error:
        raise worker_death(error) or error from None


def worker_death(error: RuntimeError) -> TrainingError | None:
    """What to tell a person where `error` says that a loader process died; None where it says something else.

    PyTorch raises it in whatever the main process is doing at that moment, not only while it waits for a batch.
    """
    if "DataLoader worker" not in str(error):
        return None
    return TrainingError(
        f"a loader process died ({str(error).splitlines()[0]}): most often memory ran out, or shared memory "
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
