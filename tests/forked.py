"""Runs of the command line on forked ranks of one process, in float64: `python forked.py JOBS.json`.

JOBS is a list of [ranks, [words, words, ...]], the words of `facessl pretrain`: for each entry so many ranks run one
command after the other in one process group. Imports and settings are paid once. What a method draws on the device
(masks) is drawn by image here, as it would otherwise differ with the number of ranks by design.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import connector
from torch import Tensor

from facessl.config import parse
from facessl.config.run import RunConfig
from facessl.core.errors import FaceSSLError
from facessl.core.types import Batch
from facessl.methods.farl import FaRL
from facessl.methods.mae import MAE
from facessl.methods.mcf import MCF
from facessl.training import fsdp, pretrain
from facessl.training import run as module
from facessl.views.photometric import Photometric

real = Photometric.__call__
from_dict = pretrain.from_dict


@functools.cache
def built(text: str) -> RunConfig:
    config: RunConfig = from_dict(json.loads(text))
    return config


def cached(values: Mapping[str, Any]) -> RunConfig:
    """`from_dict`, which takes longer than the steps of such a run: every rank would repeat it."""
    return dataclasses.replace(built(json.dumps({**values, "out": None})), out=values["out"])


def parsed(words: list[str]) -> RunConfig:
    config: RunConfig = parse.parse(words)
    if not config.resume:
        cached(pretrain._resolve(config, None, None))  # type: ignore[arg-type]
    return config


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
    module.PRECISION["fp32"] = "64-true"
    connector.ModelParallelStrategy = type("Nothing", (), {})  # type: ignore[misc]  # it refuses float64
    fsdp.UNIT = 0  # every block for itself, also the smallest
    pretrain.from_dict = cached  # type: ignore[assignment]
    pretrain._finish = lambda *_: {}  # type: ignore[assignment]  # exports and pictures are float32
    MAE.noise = FaRL.noise = noise  # type: ignore[method-assign, assignment]
    MCF.noise = lambda self, batch: (noise(self, batch), noise(self, batch, 1))  # type: ignore[method-assign]


def one_rank(rank: int, ranks: int, port: int, configs: list[RunConfig]) -> int:
    if ranks > 1:
        sizes = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
        os.environ |= {key: str(value) for key, value in sizes.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for config in configs:
        try:
            pretrain.run(config)
        except FaceSSLError as error:
            print(f"rank {rank} of {ranks}: {config.out}: {error}", file=sys.stderr, flush=True)
            return 1
    return 0


def run(ranks: int, configs: list[RunConfig]) -> bool:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
        if not run(ranks, [parsed(words) for words in commands]):
            sys.exit(1)
