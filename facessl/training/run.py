"""What every training command needs around its loop: devices and ranks, run folders, saved states, one error."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy

from facessl.config.run import RunConfig
from facessl.core import environment, files
from facessl.core.errors import ConfigError, DataError, FaceSSLError, TrainingError
from facessl.methods.base import Method

T = TypeVar("T")

#: Of a collective. Ranks wait so long for rank 0's first index of a large source; one that dies is noticed by the
#: launcher.
TIMEOUT = timedelta(hours=1)
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def say(text: str) -> None:
    """A line for people, on standard error so that standard output stays readable by scripts."""
    print(text, file=sys.stderr, flush=True)


def start_fabric(device: str, precision: str, strategy: str = "auto") -> Fabric:
    """Fabric on the device and ranks of this process, launched.

    Raises:
        ConfigError: a device that is not there, or fp16 on a CPU.
    """
    for noisy in ("lightning", "lightning.fabric", "lightning.fabric.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    device = environment.default_device() if device == "auto" else device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch sees no CUDA device: use --device cpu or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps was asked for, but torch sees no Apple GPU: use --device cpu or auto")
    if precision == "fp16" and device == "cpu":
        raise ConfigError("precision fp16 needs a GPU: use --precision bf16 or fp32 on a CPU")
    world, local = ranks()
    over: Any = "auto"
    if world > 1 and strategy == "fsdp":
        # Sharded by `fsdp.shard`, before the optimiser is made: Fabric has nothing left to do.
        over = ModelParallelStrategy(lambda module, mesh: module, world, 1, timeout=TIMEOUT)
    elif world > 1:
        over = DDPStrategy(broadcast_buffers=False, timeout=TIMEOUT)
    fabric = Fabric(
        accelerator=device,
        devices=local if world > 1 else 1,
        num_nodes=world // local if world > 1 else 1,
        strategy=over,
        precision=PRECISION[precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def ranks() -> tuple[int, int]:
    """World size and ranks per node as `torchrun` or SLURM set them; 1, 1 otherwise."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:
        return int(env.get("WORLD_SIZE", "1")), int(env["LOCAL_WORLD_SIZE"])
    if "SLURM_NTASKS" in env and "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        world = int(env["SLURM_NTASKS"])
        return world, world // int(env.get("SLURM_NNODES", "1"))
    return 1, 1


def run_folder(out: str | None, resume: bool, name: str, fabric: Fabric) -> Path:
    """`out`, or `runs/<name>`, numbered where taken; the same on every rank."""
    if out is not None:
        return Path(out)
    if resume:
        raise ConfigError("--resume needs --out RUN: the folder of the run to go on with")
    base = Path("runs") / name
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return Path(fabric.broadcast(str(folder)))


def make_folder(folder: Path) -> None:
    """The run folder and those above it. ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {folder} cannot be made ({error.strerror}): name a folder where you may write"
        ) from None


def saved_state(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """The state to resume from; None for a fresh run. A run that is already there is never overwritten."""
    last = folder / "checkpoints" / "last.ckpt"
    if resume:
        if not last.is_file():
            if (folder / "config.yaml").is_file():
                return None  # stopped before its first checkpoint: begin again
            what = "it has no checkpoints/last.ckpt" if folder.exists() else "there is no such folder"
            raise ConfigError(f"nothing to resume in {folder}: {what}; leave out --resume, or name the run with --out")
        return files.read_run(last)
    if last.exists() or (folder / "metrics.csv").exists():
        raise ConfigError(f"{folder} already holds a run: add --resume to go on with it, or choose another --out")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file: name a folder")
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "may not be written to" if above.is_dir() else "is a file"
        raise ConfigError(f"--out {folder} cannot be made, as {above} {why}: name a folder where you may write")
    return None


def loader_workers(asked: int | None) -> int:
    """Loader processes of this rank."""
    if asked is not None:
        return asked
    _, local = ranks()
    return max(0, min(8, environment.cores() // local - 1))


def one_after_another(fabric: Fabric, build: Callable[[], T]) -> T:
    """`build()` on every rank: first on rank 0, then on the first rank of every node, then on the others.

    What the first call leaves in a cache (the index of a source) is so built once, whether the nodes share it or not.

    Raises:
        FaceSSLError: what `build` raised, on every rank.
    """
    if fabric.world_size == 1:
        return build()
    turn = 0 if fabric.global_rank == 0 else 1 if fabric.local_rank == 0 else 2
    built: list[T] = []
    failed: FaceSSLError | None = None
    for current in range(3):
        if turn == current:
            try:
                built.append(build())
            except FaceSSLError as error:
                failed = error
        reasons: list[str] = [""] * fabric.world_size
        torch.distributed.all_gather_object(reasons, str(failed or ""))
        if any(reasons):
            raise failed or DataError(next(reason for reason in reasons if reason))
    return built[0]


def check_accumulation(method: Method, settings: RunConfig, world_size: int) -> None:
    """Refuse what would silently be another loss, or leave images out.

    Raises:
        ConfigError: a loss that spans the batch, or a batch that does not divide.
    """
    parts = settings.accumulate
    if parts == 1:
        return
    batch = settings.batch_size or 0
    if batch % (parts * world_size):
        fitting = max(1, batch // (parts * world_size)) * parts * world_size
        raise ConfigError(
            f"a batch of {batch} images on {world_size} ranks cannot be cut in {parts} equal micro-batches: use "
            f"{fitting}"
        )
    wide = getattr(method, "batch_wide", "")
    if wide and not settings.accumulate_approximate:
        raise ConfigError(
            f"accumulate = {parts} would change the loss of {settings.method['name']}: {wide} would span "
            f"{batch // parts} images instead of {batch}; use more GPUs or a smaller batch, or accept it with "
            "--accumulate-approximate"
        )


@contextmanager
def one_error_in_distributed() -> Iterator[None]:
    """An expected error leaves the process group, so that the launcher ends the other ranks instead of a hang.

    A broken connection to another rank is one sentence that says how to go on.
    """
    try:
        yield
    except FaceSSLError:
        if torch.distributed.is_available() and torch.distributed.is_initialized() and ranks()[0] > 1:
            torch.distributed.destroy_process_group()
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "batch norm cannot be trained on a batch of one image: use --batch-size 2 or more, and more images"
        ) from None
    except RuntimeError as error:
        if ranks()[0] == 1 or not lost_connection(error):
            raise
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, on its way: the sentence comes first
        raise TrainingError(
            f"the connection to another rank broke ({' '.join(str(error).split())[:160]}): the job ends; "
            "look at the launcher's and the other ranks' messages, then go on with --resume --out RUN, on any number "
            "of ranks that divides the batch"
        ) from None


def lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank or the network went away."""
    signs = ("onnection closed", "onnection reset", "onnection refused", "roken pipe", "imed out", "remote process")
    backend = any(name in str(error) for name in ("gloo", "Gloo", "NCCL", "nccl", "TCPStore"))
    return isinstance(error, torch.distributed.DistBackendError) or (backend and any(s in str(error) for s in signs))
