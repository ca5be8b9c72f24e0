"""Rate of `facessl embed` beside the bare backbone's forward pass in the same run, and its memory, as JSON.

    python benchmarks/embed.py [--backbone resnet50] [--image-size 224] [--images 24000] [--precision fp32] [--out FILE]
    python benchmarks/embed.py --backbone resnet18 --image-size 112 --images 4000      # two minutes on a small CPU

Embedding is what the command does: JPEG files -> Parquet file. On a CPU it is interrupted `--rounds` times by the bare
forward pass on images that are in memory already, and CPU seconds per image (loader processes included) are compared;
on a GPU the forward pass runs before and after, and wall seconds count. Memory is what is resident in the main process,
and private to the loader's processes, when a quarter, half, three quarters and all of the images are done.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from shards import Part, drawn, memory
from torch import Tensor

from facessl.core import environment
from facessl.core.launch import loader_workers
from facessl.data.source import open_source
from facessl.inference import embed, embedding_formats
from facessl.models.backbone import Backbone
from facessl.models.forward import autocast


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--folder", type=Path, help="real images instead of drawn ones")
    parser.add_argument("--side", type=int, default=256, help="of drawn images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=loader_workers(None))
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--threads", type=int, default=environment.cores())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="facessl-embed-") as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        folder = args.folder or drawn(Path(temporary) / "drawn", args.images, args.side)
        results = Run(args, Part(open_source(str(folder)), 0, args.images)).measure(Path(temporary) / "e.parquet")
    settings = {k: v for k, v in vars(args).items() if k not in ("folder", "out")}
    settings["folder"] = "real faces" if args.folder else "drawn"
    head = {"date": datetime.date.today().isoformat(), "benchmark": "embed", "settings": settings}
    text = json.dumps(head | {"environment": environment.describe(), "results": results})
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


class Run:
    """One embedding of a source with interruptions.

    Attributes:
        spent: seconds of the forward passes alone, per image, one for each interruption.
        lost: seconds that the interruptions took altogether.
    """

    def __init__(self, args: argparse.Namespace, source: Any) -> None:
        self.args, self.source = args, source
        self.device = torch.device(args.device)
        self.backbone = Backbone(args.backbone, image_size=args.image_size).eval()
        self.backbone.to(self.device, memory_format=torch.channels_last)
        x = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=self.device)
        self.x: Tensor = x.contiguous(memory_format=torch.channels_last)
        self.spent: list[float] = []
        self.lost = 0.0
        self.memory: list[dict[str, Any]] = []

    def measure(self, path: Path) -> dict[str, Any]:
        """Rates, their ratio, and memory."""
        args, gpu = self.args, self.device.type == "cuda"
        for _ in range(3):
            self.forward()
        self.spent.clear()
        if gpu:
            self.forward(50)
        parts = embed.embedding_batches(
            self.backbone, self.source, batch_size=args.batch_size, workers=args.workers, precision=args.precision
        )
        self.lost, began, wall = 0.0, self.seconds(), time.perf_counter()
        count, _ = embedding_formats.write_embeddings(path, self.interrupted(parts))
        each = (self.seconds() - began - self.lost) / count
        wall = time.perf_counter() - wall
        if gpu:
            self.forward(50)
        floor = sum(self.spent) / len(self.spent)
        return {
            "images": count,
            "clock": "wall" if gpu else "cpu",
            "bare_images_per_second": round(1 / floor, 1),
            "embed_images_per_second": round(1 / each, 1),
            "ratio": round(floor / each, 3),
            "wall_seconds_with_interruptions": round(wall, 1),
            "memory": self.memory,
            "memory_growth_quarter_to_end": round(
                self.memory[-1]["main_megabytes"] / self.memory[0]["main_megabytes"], 3
            ),
        }

    def interrupted(self, parts: Iterator[Any]) -> Iterator[Any]:
        total = len(self.source)
        pauses = [total * turn // self.args.rounds for turn in range(self.args.rounds, 0, -1)]
        quarters = [total * turn // 4 for turn in (4, 3, 2, 1)]
        done = 0
        for part in parts:
            yield part
            done += len(part)
            began = self.seconds(own=True)
            if quarters and done >= quarters[-1]:
                quarters.pop()
                self.memory.append({"images": done, **self.resident()})
            if pauses and done >= pauses[-1]:
                pauses.pop()
                if self.device.type != "cuda":
                    self.forward(5)
            self.lost += self.seconds(own=True) - began

    def forward(self, times: int = 1) -> None:
        """The bare backbone, which adds to `spent`."""
        began = self.seconds(own=True)
        for _ in range(times):
            with torch.no_grad(), autocast(self.device, self.args.precision):
                self.backbone(self.x)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.spent.append((self.seconds(own=True) - began) / times / len(self.x))

    def seconds(self, own: bool = False) -> float:
        """Wall time on a GPU; else CPU time, with that of ended loader processes unless `own`."""
        if self.device.type == "cuda":
            return time.perf_counter()
        who = (resource.RUSAGE_SELF,) if own else (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, who))

    def resident(self) -> dict[str, int]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        private = []
        for child in children:
            try:
                private.append(memory(int(child))["Private"])
            except (OSError, KeyError):  # it has just ended
                continue
        return {"main_megabytes": memory(os.getpid())["Rss"], "workers_private_megabytes": sum(private)}


if __name__ == "__main__":
    main()
