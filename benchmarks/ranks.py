"""Messages of batch norm between the GPUs of this machine: their latency, and what they cost a step. Used by gpu.py."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import step
import torch
import torch.distributed as dist
from torch import multiprocessing

from facessl.models.layers.sync_batch_norm import convert_sync_batchnorm

#: Channels of the widest norms of ResNet-50: a message holds two numbers for each, and a count.
CHANNELS = 2048


def measure(count: int, device: str, size: int, batches: tuple[int, ...]) -> dict[str, Any]:
    """What `count` ranks find, rank 0's numbers.

    Returns:
        `ranks`; `microseconds`: of a small all-reduce; `milliseconds`: by images per rank, FRA's forward and backward
        pass and optimiser with "plain" and "synchronised" norms, gradients not exchanged.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        multiprocessing.spawn(_rank, (count, device, size, batches, folder), nprocs=count)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def _rank(rank: int, count: int, kind: str, size: int, batches: tuple[int, ...], folder: str) -> None:
    cuda = kind.startswith("cuda")
    if cuda:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count
    )
    device = f"cuda:{rank}" if cuda else "cpu"
    message = torch.zeros(2 * CHANNELS + 1, device=device)
    found: dict[str, Any] = {
        "ranks": count,
        "microseconds": round(1e6 * _seconds(lambda: dist.all_reduce(message), 500 if cuda else 50), 1),
        "milliseconds": {str(batch): _steps(device, size, batch, 20 if cuda else 2) for batch in batches},
    }
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _steps(device: str, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a FRA step with plain and with synchronised norms."""
    cuda = device.startswith("cuda")
    args = argparse.Namespace(backbone=None if cuda else "resnet10t", batch_size=batch, device=device)
    config = step.Configuration(args, "fra", size, "bf16")
    views, out = config.batch_in_memory(), {}
    for name in ("plain", "synchronised"):
        real = step.RealStep(config)
        if name == "synchronised":
            convert_sync_batchnorm(real.method)
        out[name] = round(1e3 * _seconds(lambda real=real: real(views), repeats), 2)  # type: ignore[misc]
    return out


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of a call, after some that are not counted."""
    for _ in range(max(1, repeats // 5)):
        work()
    _wait()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait()
    return (time.perf_counter() - began) / repeats


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
