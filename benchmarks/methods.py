"""Cost of every method's step relative to BYOL's: time, peak memory, images per second.

A step is forward, backward, optimizer (SGD with momentum for all) and `after_step`, on random views of the sizes that
the method itself declares; the cost of loading and cutting images is not in it. A ResNet carries the methods that take
any backbone, a ViT those that leave patches out, with BYOL and SimCLR beside them. The methods of a backbone alternate
within one run, so that a busy machine slows all; ratios are medians over the rounds. On the CPU seconds are CPU time
and memory is the growth of the resident set of a fresh process over two steps; on a GPU they are wall time and
`max_memory_allocated`. Memory holds weights, gradients, optimizer and activations.

    python benchmarks/methods.py --threads 1 --out methods.json

Prints JSON: date, hardware, versions, commit, a row per backbone, precision and method, and FRA over PCL.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facessl.core import environment, plugins
from facessl.core.types import Batch, Progress
from facessl.models.backbone import Backbone
from facessl.pretrained.load import load_backbone
from facessl.training.optimizers import parameter_groups

#: Methods that are measured on a ViT as well as on other backbones; the rest of those that take any backbone are not.
ON_BOTH = ("byol", "simclr")
#: A frozen network without a file; it costs what the paper's costs.
TEACHER = "timm:vit_base_patch16_224?pretrained=false"
CAPTION = "a young happy face with glasses and dark hair, seen from the side"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", nargs="+", default=["resnet50", "vit_base_patch16_224"])
    parser.add_argument("--methods", nargs="+", default=plugins.names("methods"), choices=plugins.names("methods"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default=TEACHER, help="frozen network of MCF")
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--threads", type=int, default=environment.cores())
    parser.add_argument("--out", type=Path, help="file for the JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [row for name in args.backbone for precision in args.precision for row in measure(args, name, precision)]
    head = {"date": datetime.date.today().isoformat(), "benchmark": "methods", "settings": vars(args)}
    found = head | {"environment": environment.describe(), "results": results, "fra_over_pcl": fra_over_pcl(results)}
    text = json.dumps(found, default=str)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def chosen(args: argparse.Namespace, backbone: str) -> list[str]:
    """The methods of `args` that belong on this backbone, BYOL first."""
    vit = "vit" in backbone
    both = len({"vit" in name for name in args.backbone}) == 2
    patches = {name: getattr(plugins.find("methods", name), "patches_only", False) for name in args.methods}
    fits = [name for name in args.methods if (vit and (not both or name in ON_BOTH)) or patches[name] == vit]
    return ["byol", *(name for name in fits if name != "byol")]


def measure(args: argparse.Namespace, backbone: str, precision: str) -> list[dict[str, Any]]:
    """A row for each method on this backbone."""
    names = chosen(args, backbone)
    memory = {name: peak_mib(args, name, backbone, precision) for name in names}
    work = {name: step_of(args, name, backbone, precision) for name in names}
    device = torch.device(args.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.rounds + 1):  # the first round warms up
        for name in names:
            began = clock()
            work[name]()
            wait(device)
            if turn:
                seconds[name].append(clock() - began)
    rows = []
    for name in names:
        ratios = [own / byol for own, byol in zip(seconds[name], seconds["byol"], strict=True)]
        rows.append(
            {
                "method": name,
                "backbone": backbone,
                "precision": precision,
                "views": views_of(name, args.image_size),
                "step_seconds": round(statistics.median(seconds[name]), 4),
                "images_per_second": round(args.batch_size / statistics.median(seconds[name]), 2),
                "peak_mib": round(memory[name]),
                "time_to_byol": round(statistics.median(ratios), 3),
                "time_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "memory_to_byol": round(memory[name] / memory["byol"], 3),
                "seconds": [round(s, 4) for s in seconds[name]],
            }
        )
    work.clear()
    gc.collect()
    return rows


def fra_over_pcl(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Step of FRA over step of PCL, round by round, wherever both were measured."""
    found = []
    for fra in (row for row in rows if row["method"] == "fra"):
        for pcl in rows:
            if (pcl["method"], pcl["backbone"], pcl["precision"]) == ("pcl", fra["backbone"], fra["precision"]):
                ratios = [f / p for f, p in zip(fra["seconds"], pcl["seconds"], strict=True)]
                found.append(
                    {
                        "backbone": fra["backbone"],
                        "precision": fra["precision"],
                        "ratio": round(statistics.median(ratios), 3),
                        "range": [round(min(ratios), 3), round(max(ratios), 3)],
                        "memory_ratio": round(fra["peak_mib"] / pcl["peak_mib"], 3),
                    }
                )
    return found


def views_of(name: str, image_size: int) -> str:
    """The method's own views of an image, e.g. "2 x 224 + 6 x 96"."""
    sizes = Counter(round(view.size * image_size) for view in plugins.find("methods", name).views)
    return " + ".join(f"{count} x {size}" for size, count in sizes.items())


def step_of(args: argparse.Namespace, name: str, backbone: str, precision: str) -> Callable[[], None]:
    """One optimizer step of a new method on random images."""
    device = torch.device(args.device)
    kind = plugins.find("methods", name)
    values = {"teacher": args.teacher} if name == "mcf" else {}
    method: Any = kind(Backbone(backbone, image_size=args.image_size), **values)
    method.to(device, memory_format=torch.channels_last)
    if hasattr(method, "prepare"):
        method.prepare(load_backbone)
    optimizer = torch.optim.SGD(parameter_groups(method, 1e-4), lr=1e-3, momentum=0.9)
    batch = Batch(
        views=[images(args, view.size, device) for view in kind.views],
        params=[],
        index=torch.arange(args.batch_size),
        text=[CAPTION] * args.batch_size if "text" in kind.needs else None,
    )

    def work() -> None:
        progress = Progress(step=0, total_steps=100)
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            loss: Tensor = method.step(batch, progress).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(progress)

    return work


def images(args: argparse.Namespace, size: float, device: torch.device) -> Tensor:
    side = round(size * args.image_size)
    x = torch.randn(args.batch_size, 3, side, side, device=device)
    return x.contiguous(memory_format=torch.channels_last)


def peak_mib(args: argparse.Namespace, name: str, backbone: str, precision: str) -> float:
    """MiB that the second step of a method needs at its peak; on the CPU measured in a process of its own."""
    if torch.device(args.device).type == "cuda":
        gc.collect()  # methods hold themselves in cycles
        before = torch.cuda.memory_allocated()
        work = step_of(args, name, backbone, precision)
        work()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(grown_mib, (args, name, backbone, precision))


def grown_mib(args: argparse.Namespace, name: str, backbone: str, precision: str) -> float:
    """Growth of this process's largest resident set over two steps."""
    torch.set_num_threads(args.threads)
    warm = nn.Linear(8, 8)(torch.zeros(8, 8))  # the libraries behind torch are loaded when they are first used
    warm.sum().backward()
    before = peak_resident_mib(reset=True)
    work = step_of(args, name, backbone, precision)
    work()
    work()
    return peak_resident_mib() - before


def peak_resident_mib(*, reset: bool = False) -> float:
    """Largest resident set of this process, since the last `reset` where the system can do that (Linux).

    `ru_maxrss` alone begins with the peak of the process that started this one.
    """
    if sys.platform == "linux":
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
