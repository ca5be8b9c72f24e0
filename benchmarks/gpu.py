"""Training speed on a GPU, as JSON: rates, utilisation, memory, data wait, compiled and captured optimiser steps.

    benchmarks/gpu.sh                                   # the whole, under 8 minutes, into $OUT or gpu-out/
    python benchmarks/gpu.py --device cpu --tiny        # every section on small networks, to see that it works

Parts run in the order of their worth and each is written as soon as it is measured, so that a run that is cut short
leaves what it has; a part that fails says why and does not stop the others.

    ceiling     TFLOP/s of a large bf16 matrix product on random numbers, the largest rate that counts as 100 %
    methods     images/s of the whole step, of the bare-backbone floor and of the straightforward step (step.py), and
                model FLOP utilisation: counted products and convolutions of the step over its time and the ceiling
    compiled    the same step with compiled backbones
    data        the step fed from JPEG shards by loader processes, against the same step on views that stay in memory
    update      optimiser and momentum network as they are, compiled, and captured in a CUDA graph
    memory      largest memory of a FRA step by batch size
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import simplejpeg
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import naive
import step
from pipeline import picture

from facessl import environment
from facessl.data.loader import TrainLoader
from facessl.data.prefetch import Prefetcher
from facessl.data.sources.webdataset import WebDataset
from facessl.methods.base import Progress
from facessl.views.geometric import Geometric
from facessl.views.photometric import Photometric

Work = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--tiny", action="store_true", help="small networks, few images: a test of this script")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=environment.cores())
    parser.add_argument("--images", type=int, default=20480, help="JPEG files in the shards")
    parser.add_argument("--seconds", type=float, default=430, help="no new part after so many")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder of gpu.json")
    args = parser.parse_args()
    if args.tiny:
        args.batch_size, args.image_size, args.workers, args.images = 4, 64, 1, 32
    torch.set_float32_matmul_precision("high")
    Run(args).all()


class Run:
    """All parts, and the file they are written to."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.began = time.perf_counter()
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        self.report: dict[str, Any] = {
            "benchmark": "gpu",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": settings,
            "environment": environment.describe(),
        }

    def all(self) -> None:
        """Every part, as long as there is time."""
        for part in (self.ceiling, self.methods, self.data, self.update, self.memory, self.compiled):
            self.guarded(part.__name__, part)
        print(json.dumps(self.report))

    def guarded(self, name: str, part: Callable[[], Any]) -> None:
        """One part: its result, or why there is none."""
        if time.perf_counter() - self.began > self.args.seconds:
            self.report[name] = {"error": "no time was left"}
        else:
            start = time.perf_counter()
            try:
                self.report[name] = part()
            except Exception as error:  # the other parts are still worth having
                traceback.print_exc()
                self.report[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            self.report.setdefault("part_seconds", {})[name] = round(time.perf_counter() - start, 1)
        self.args.out.mkdir(parents=True, exist_ok=True)
        (self.args.out / "gpu.json").write_text(json.dumps(self.report, indent=1) + "\n")
        print(f"{name}: {json.dumps(self.report[name])}", file=sys.stderr, flush=True)

    # ---- parts -----------------------------------------------------------------------------------------------------

    def ceiling(self) -> dict[str, float]:
        """TFLOP/s of a matrix product, and bytes/s of a copy."""
        side = 512 if self.args.tiny else 8192
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        product = self.seconds({"product": lambda: torch.mm(a, b)}, rounds=5, inner=10)["product"]
        big = torch.randn(2**20 if self.args.tiny else 2**30, device=self.device)
        other = torch.empty_like(big)
        copy = self.seconds({"copy": lambda: other.copy_(big)}, rounds=5, inner=5)["copy"]
        return {
            "matrix_tflops": round(2 * side**3 / product / 1e12, 3),
            "copy_gigabytes_per_second": round(2 * 4 * big.numel() / copy / 1e9, 1),
        }

    def methods(self) -> list[dict[str, Any]]:
        """FRA, BYOL, MCF: step, floor and straightforward step, alternating."""
        return [self.method(name) for name in ("fra", "byol", "mcf")]

    def method(self, name: str) -> dict[str, Any]:
        """One method, its backbones not compiled."""
        config = self.configuration(name)
        real, batch = step.RealStep(config), config.batch_in_memory()
        with FlopCounterMode(display=False) as counter:
            real(batch)
        straight = naive.step(name, config.backbone, config.size, config.views, config.autocast, 1e-4)
        sides: dict[str, Work] = {"floor": config.floor(), "step": lambda: real(batch), "naive": straight}
        if name == "mcf":
            sides["floor with decoder"] = config.floor(decoder=True)
        spent = self.seconds(sides)
        flops = counter.get_total_flops()
        return {
            "method": name,
            "backbone": config.backbone,
            "batch_size": config.batch,
            "image_size": config.size,
            "precision": config.precision,
            "images_per_second": {side: round(config.batch / value, 1) for side, value in spent.items()},
            "share_of_floor_rate": round(spent["floor"] / spent["step"], 3),
            "naive_over_step": round(spent["naive"] / spent["step"], 3),
            "gigaflop_per_image": round(flops / config.batch / 1e9, 2),
            "tflops": round(flops / spent["step"] / 1e12, 3),
            "utilisation": self.utilisation(flops / spent["step"]),
            "shares": self.on_gpu(lambda: step.shares.measure(real.method, lambda: real(batch), 2, self.device)),
        }

    def compiled(self) -> list[dict[str, Any]]:
        """FRA and BYOL: step with compiled backbones beside the plain one. (MCF's blocks are not what it compiles.)"""
        if self.args.tiny and self.device.type == "cpu":
            return [{"skipped": "the C++ compiler takes minutes"}]
        out = []
        for name in ("fra", "byol"):
            config = self.configuration(name)
            batch, plain, faster = config.batch_in_memory(), step.RealStep(config), step.RealStep(config, compiled=True)
            start = time.perf_counter()
            faster(batch)
            self.wait()
            first = time.perf_counter() - start
            with FlopCounterMode(display=False) as counter:
                plain(batch)
            floor = config.floor(compiled=True)
            spent = self.seconds(
                {"plain": lambda p=plain, b=batch: p(b), "compiled": lambda f=faster, b=batch: f(b), "floor": floor}  # type: ignore[misc]
            )
            out.append(
                {
                    "method": name,
                    "compile_seconds": round(first, 1),
                    "images_per_second": {side: round(config.batch / value, 1) for side, value in spent.items()},
                    "gain": round(spent["plain"] / spent["compiled"], 3),
                    "share_of_compiled_floor_rate": round(spent["floor"] / spent["compiled"], 3),
                    "utilisation": self.utilisation(counter.get_total_flops() / spent["compiled"]),
                }
            )
            if time.perf_counter() - self.began > self.args.seconds:
                break
        return out

    def data(self) -> dict[str, Any]:
        """FRA fed by the loader from shards, against the same step, photometric views included, on one batch."""
        config = self.configuration("fra")
        real = step.RealStep(config)
        views, photometric = Geometric(real.method.views, config.size), Photometric(real.method.mean, real.method.std)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write_shards(Path(folder), self.args.images, workers=self.args.workers, size=96 if self.args.tiny else 256)
            writing = time.perf_counter() - start
            source: Any = WebDataset(f"{folder}/*.tar", cache=False)
            loader = TrainLoader(
                source, views, batch_size=config.batch, seed=0, workers=self.args.workers,
                pin_memory=self.device.type == "cuda",
            )  # fmt: skip
            batches: Any = iter(loader)
            kept = next(batches)
            steps = max(2, min(100, len(source) // config.batch - 20))
            alone = self.rate(lambda: next(batches), steps // 2) * config.batch
            ready: Any = Prefetcher(batches, self.device, photometric)
            sides: dict[str, Work] = {
                "memory": lambda: real(photometric(kept.to(self.device))),
                "shards": lambda: real(next(ready)),
            }
            for work in sides.values():
                for _ in range(3):
                    work()
            memory = self.rate(sides["memory"], steps // 2)
            waited, start = ready.waited, time.perf_counter()
            rate = self.rate(sides["shards"], steps)
            share = (ready.waited - waited) / (time.perf_counter() - start)
            ready = batches = None  # ends the loader's processes before the files go
        return {
            "workers": self.args.workers,
            "images": self.args.images,
            "shard_writing_seconds": round(writing, 1),
            "loader_alone_images_per_second": round(alone, 1),
            "images_per_second_from_memory": round(memory * config.batch, 1),
            "images_per_second_from_shards": round(rate * config.batch, 1),
            "data_wait": round(max(0.0, 1 - rate / memory), 4),
            "time_in_loader": round(share, 4),
        }

    def update(self) -> dict[str, Any]:
        """Milliseconds of optimiser and momentum network of FRA: as they are, compiled, captured."""
        config = self.configuration("fra")
        real = step.RealStep(config)
        for p in real.method.parameters():
            p.grad = torch.randn_like(p) if p.requires_grad else None

        def update() -> None:
            real.optimizer.step()
            real.method.after_step(Progress(step=0, total_steps=1))

        sides: dict[str, Work] = {
            "optimiser": real.optimizer.step,
            "EMA": lambda: real.method.after_step(Progress(step=0, total_steps=1)),
            "both": update,
        }
        update()
        if self.device.type == "cuda":
            sides["both, captured"] = captured(update)
        found = {k: round(1000 * v, 3) for k, v in self.seconds(sides, inner=5).items()}
        if not self.args.tiny:
            try:
                group = real.optimizer.param_groups[0]
                params = [p for p in group["params"] if p.grad is not None]
                fast = torch.compile(lambda: real.optimizer._update_together(group, params))  # type: ignore[attr-defined]
                with torch.no_grad():
                    each = {"plain": lambda: real.optimizer._update_together(group, params), "compiled": fast}  # type: ignore[attr-defined]
                    spent = self.seconds(each, inner=5)
                found |= {f"weights, {name}": round(1000 * value, 3) for name, value in spent.items()}
            except Exception as error:
                found["weights, compiled"] = f"failed: {type(error).__name__}"  # type: ignore[assignment]
        return {"milliseconds": found}

    def memory(self) -> dict[str, Any]:
        """Gigabytes of a FRA step by images in the batch."""
        if self.device.type != "cuda":
            return {"skipped": "torch counts memory on a GPU only"}
        out: dict[str, float] = {}
        for batch in (64, 128, 256, 512):
            config = self.configuration("fra", batch=batch)
            real = step.RealStep(config)
            torch.cuda.reset_peak_memory_stats()
            for _ in range(2):
                real(config.batch_in_memory())
            out[str(batch)] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            del real, config
            torch.cuda.empty_cache()
        return {"gibibytes_by_batch_size": out}

    # ---- helpers ---------------------------------------------------------------------------------------------------

    def configuration(self, name: str, batch: int | None = None) -> step.Configuration:
        """A method at this run's size in bf16, its views in channels-last memory."""
        tiny = {"mcf": "vit_tiny_patch16_224"}.get(name, "resnet10t")
        args = argparse.Namespace(
            backbone=tiny if self.args.tiny else None,
            batch_size=batch or self.args.batch_size,
            device=self.args.device,
        )
        return step.Configuration(args, name, self.args.image_size, "bf16")

    def utilisation(self, flops_per_second: float) -> float | None:
        """Share of the measured ceiling."""
        ceiling = self.report.get("ceiling", {}).get("matrix_tflops")
        return round(flops_per_second / 1e12 / ceiling, 4) if ceiling else None

    def seconds(self, sides: dict[str, Any], rounds: int = 4, inner: int = 5) -> dict[str, float]:
        """Median seconds of a call, the sides in turn."""
        if self.args.tiny:
            rounds, inner = 2, 1
        repeated = {name: lambda w=work: [w() for _ in range(inner)] for name, work in sides.items()}  # type: ignore[misc]
        spent = step.alternate(repeated, rounds=rounds, seconds=60, device=self.device)  # type: ignore[arg-type]
        return {name: sorted(values)[len(values) // 2] / inner for name, values in spent.items()}

    def rate(self, work: Callable[[], Any], count: int) -> float:
        """Calls per second of wall time."""
        self.wait()
        start = time.perf_counter()
        for _ in range(max(1, count)):
            work()
        self.wait()
        return max(1, count) / (time.perf_counter() - start)

    def on_gpu(self, measure: Callable[[], dict[str, float]]) -> dict[str, float] | None:
        """Shares by kernels; on a CPU they are step.py's."""
        return measure() if self.device.type == "cuda" else None

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def captured(work: Work) -> Work:
    """`work`, which runs on static tensors, as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def write_shards(folder: Path, images: int, *, workers: int, size: int, per_shard: int = 1024) -> None:
    """Tars of noise JPEGs with the detail of photographs; 16 to 512 different ones, over and over."""
    different = max(16, min(512, images // 4))
    with ThreadPool(min(workers, 16)) as pool:  # OpenCV and the encoder release the interpreter's lock
        files = pool.map(lambda seed: jpeg(size, seed), range(different))
    for shard, start in enumerate(range(0, images, per_shard)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(start, min(images, start + per_shard)):
                info = tarfile.TarInfo(f"{number:08d}.jpg")
                data = files[number % len(files)]
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def jpeg(size: int, seed: int) -> bytes:
    """One encoded picture, quality 90, 4:2:0."""
    return simplejpeg.encode_jpeg(picture(size, seed), quality=90, colorsubsampling="420")


if __name__ == "__main__":
    main()
