"""Runs of the command line on forked ranks of one process, in float64: `python forked.py JOBS.json`.

JOBS is a list of [ranks, [words, words, ...]], the words of `facessl pretrain`: for each entry so many ranks run one
command after the other in one process group. Imports and settings are paid once. What a method draws on the device
(masks) is drawn by image here, as it would otherwise differ with the number of ranks by design.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import connector
from torch import Tensor

from facessl.config import parse
from facessl.config.pretrain import PretrainConfig
from facessl.core import launch
from facessl.core.errors import FaceSSLError
from facessl.core.types import Batch
from facessl.methods.farl import FaRL
from facessl.methods.mae import MAE
from facessl.methods.mcf import MCF
from facessl.training import fsdp
from facessl.training.pretrain import Pretraining
from facessl.training.run import run_job
from facessl.views.photometric import Photometric
from tests.helpers import free_port

real = Photometric.__call__


def double(self: Photometric, batch: Batch) -> Batch:
    batch = real(self, batch)
    batch.views = [view.double() for view in batch.views]
    return batch


def noise(self: Any, batch: Batch, salt: int = 0) -> Tensor:
    tokens = self.grid[0] * self.grid[1]
    seeds = [torch.Generator().manual_seed(1000 * salt + int(i)) for i in batch.index]
    return torch.stack([torch.rand(tokens, generator=seed) for seed in seeds])


def patch() -> None:
    Photometric.__call__ = double  # type: ignore[method-assign]
    launch.PRECISIONS["fp32"] = ("64-true", None)
    connector.ModelParallelStrategy = type("Nothing", (), {})  # type: ignore[misc]  # it refuses float64
    fsdp.UNIT = 0  # every block for itself, also the smallest
    Pretraining.finish = lambda *_, **__: None  # type: ignore[assignment, method-assign]  # exports are float32
    MAE.noise = FaRL.noise = noise  # type: ignore[method-assign, assignment]
    MCF.noise = lambda self, batch: (noise(self, batch), noise(self, batch, 1))  # type: ignore[method-assign]


def one_rank(rank: int, ranks: int, port: int, configs: list[PretrainConfig]) -> int:
    if ranks > 1:
        sizes = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
        os.environ |= {key: str(value) for key, value in sizes.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for config in configs:
        try:
            run_job(Pretraining(config))
        except FaceSSLError as error:
            print(f"rank {rank} of {ranks}: {config.out}: {error}", file=sys.stderr, flush=True)
            return 1
    return 0


def run(ranks: int, configs: list[PretrainConfig]) -> bool:
    port = free_port()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = one_rank(rank, ranks, port, configs)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    fine = True
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and fine:
            fine = False
            for other in children:
                os.kill(other, signal.SIGTERM)
    return fine


if __name__ == "__main__":
    patch()
    for ranks, commands in json.loads(Path(sys.argv[1]).read_text()):
        if not run(ranks, [parse.parse(words) for words in commands]):
            sys.exit(1)
