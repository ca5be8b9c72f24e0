"""Cost of a method's step relative to its floor, the passes of the bare backbone that it cannot avoid.

The floor of a Siamese method with two views is two forward and backward passes (online network) and two forward
passes (target network) of the backbone alone, in the same precision. Step and floor alternate within one run, so
that a busy machine slows both; the median of the ratios is the result. On the CPU the seconds are CPU time (wall time
times cores in use), on a GPU wall time.

    python benchmarks/step.py --method fra --backbone resnet50 --image-size 224 --batch-size 8 --precision fp32 bf16

Prints JSON: date, hardware, versions, commit, seconds and ratio per precision.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from facessl import environment, plugins
from facessl.backbones import Backbone
from facessl.batch import Batch
from facessl.methods.base import Progress
from facessl.nn.ema import frozen_copy


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", nargs="+", default=["fra"], choices=plugins.names("methods"))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--threads", type=int, default=environment.cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [measure(args, name, precision) for name in args.method for precision in args.precision]
    head = {"date": datetime.date.today().isoformat(), "benchmark": "step", "settings": vars(args)}
    print(json.dumps(head | {"environment": environment.describe(), "results": results}))


def measure(args: argparse.Namespace, name: str, precision: str) -> dict[str, Any]:
    """Median seconds of floor and step, alternating, and their ratio."""
    device = torch.device(args.device)
    views = [_images(args, device) for _ in range(2)]
    step = _step(args, name, precision, views, device)
    floor = _floor(args, precision, views, device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"floor": [], "step": []}
    for turn in range(args.rounds + 2):
        for label, work in (("floor", floor), ("step", step)):
            began = clock()
            work()
            _wait(device)
            if turn >= 2:
                seconds[label].append(clock() - began)
    ratios = [s / f for s, f in zip(seconds["step"], seconds["floor"], strict=True)]
    return {
        "method": name,
        "precision": precision,
        "floor_seconds": round(statistics.median(seconds["floor"]), 4),
        "step_seconds": round(statistics.median(seconds["step"]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def _images(args: argparse.Namespace, device: torch.device) -> Tensor:
    x = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    return x.contiguous(memory_format=torch.channels_last)


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def _step(
    args: argparse.Namespace, name: str, precision: str, views: list[Tensor], device: torch.device
) -> Callable[[], None]:
    """Loss and gradients of the whole method, as the trainer runs them."""
    backbone = Backbone(args.backbone, image_size=args.image_size)
    method: nn.Module = plugins.find("methods", name)(backbone).to(device, memory_format=torch.channels_last)
    batch = Batch(views=views, params=[], index=torch.arange(args.batch_size))

    def work() -> None:
        method.zero_grad(set_to_none=True)
        with _autocast(precision, device):
            result = method.step(batch, Progress(step=0, total_steps=1))  # type: ignore[operator]
        result.loss.backward()

    return work


def _floor(args: argparse.Namespace, precision: str, views: list[Tensor], device: torch.device) -> Callable[[], None]:
    """Two forward and backward passes and two forward passes of the backbone alone."""
    online = Backbone(args.backbone, image_size=args.image_size).to(device, memory_format=torch.channels_last)
    target = frozen_copy(online)

    def work() -> None:
        online.zero_grad(set_to_none=True)
        with _autocast(precision, device):
            loss = torch.stack([online(x).float().square().mean() for x in views]).sum()
            with torch.no_grad():
                for x in views:
                    target(x)
        loss.backward()

    return work


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
