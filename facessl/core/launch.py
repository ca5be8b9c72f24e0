"""Start of a job: device and ranks, loader processes, one error for all ranks."""

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

from facessl.core import environment
from facessl.core.distributed import gathered, ranks
from facessl.core.errors import ConfigError, DataError, FaceSSLError, TrainingError
from facessl.core.precision import PRECISIONS

T = TypeVar("T")

#: Timeout of a collective: rank 0 may index a large source first. The launcher notices a rank that dies.
TIMEOUT = timedelta(hours=1)


class Autocast(MixedPrecision):
    """Mixed precision by autocast alone, on any number of ranks.

    With several ranks Fabric would also round the views, landmarks and crops of a batch to 16 bits.
    """

    def convert_input(self, data: Any) -> Any:
        """`data` as it is."""
        return data


def start_fabric(device: str, precision: str, strategy: str = "auto") -> Fabric:
    """Launch Fabric on the device and ranks of this process. ConfigError: no such device, or fp16 on a CPU."""
    for noisy in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    device = environment.device_of(device)
    if precision == "fp16" and device == "cpu":
        raise ConfigError("precision fp16 needs a GPU: use --precision bf16 or fp32 on a CPU")
    world, local = ranks()
    fabric_strategy: Any = "auto"
    if world > 1 and strategy == "fsdp":
        # Sharded by `fsdp.shard`, before the optimizer is built: Fabric has nothing left to do.
        fabric_strategy = ModelParallelStrategy(lambda module, mesh: module, world, 1, timeout=TIMEOUT)
    elif world > 1:
        fabric_strategy = DDPStrategy(broadcast_buffers=False, timeout=TIMEOUT)
    name, mixed = PRECISIONS[precision]
    plugins: list[Any] = [Autocast(name, device)] if mixed else []  # type: ignore[arg-type]
    if world == 1:
        plugins.append(LightningEnvironment())  # Fabric would take a batch script of SLURM for one of its tasks
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        strategy=fabric_strategy,
        precision=None if mixed else name,  # type: ignore[arg-type]
        plugins=plugins,
    )
    fabric.launch()
    return fabric


def loader_workers(workers: int | None) -> int:
    """Number of loader processes of this rank; None: from its cores."""
    return max(0, min(8, environment.cores() // ranks()[1] - 1)) if workers is None else workers


def one_after_another(fabric: Fabric, build: Callable[[], T]) -> T:
    """`build()` on rank 0, then on the first rank of every node, then on the others, so that caches are filled once.

    A FaceSSLError of one rank is raised on all.
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
        if any(reasons := gathered(str(failed or ""))):
            raise failed or DataError(next(reason for reason in reasons if reason))
    return built[0]


@contextlib.contextmanager
def expected_errors(
    again: str = "go on with --resume --out RUN, on any number of ranks that divides the batch",
) -> Iterator[None]:
    """Turn expected failures of a job into a `FaceSSLError`, which ends all ranks.

    `again` says how to continue after a broken connection.
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
            f"look at the launcher's and the other ranks' messages, then {again}"
        ) from None


def lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank or the network went away."""
    signs = ("onnection closed", "onnection reset", "onnection refused", "roken pipe", "imed out", "remote process")
    backend = any(name in str(error) for name in ("gloo", "Gloo", "NCCL", "nccl", "TCPStore"))
    return isinstance(error, torch.distributed.DistBackendError) or (backend and any(s in str(error) for s in signs))
