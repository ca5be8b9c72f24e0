"""Training speed on a GPU, as JSON: rates beside the bare backbone, utilization, memory, data wait, a profile.

    benchmarks/gpu.sh                                   # the whole, in four minutes, into $OUT or gpu-out/
    python benchmarks/gpu.py --device cpu --tiny        # every part on small networks, to see that it works

Parts run in the order of their worth and each is written as soon as it is measured, so that a run that is cut short
leaves what it has; a part that fails says why and does not stop the others.

    ceiling     TFLOP/s of large bf16 matrix products on random numbers, a second of each; the largest counts as 100 %
    methods     FRA and BYOL at 224 and 112 px, MCF at 224 px: images/s of the whole step, of the bare-backbone floor
                and of the straightforward step (step.py), peak memory, and FLOP utilization: counted products and
                convolutions of the step over its time and the ceiling
    profile     one FRA step at 224 px: the ten most expensive kernels, and the time in which no kernel ran
    data        FRA fed from JPEG shards by loader processes, against the same step, copy and photometric views on one
                batch that stays in memory; what the processes had ready is dropped first (feeding.py)
    embed       `embed` from shards, against the bare forward pass
    batches     FRA's images/s from memory by batch size, as `facessl plan --gpu-images-per-second` takes it
    compiled    FRA's and BYOL's step with compiled backbones, and in fp16 (without the loss scaler)
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import feeding
import naive
import step
from feeding import READY
from pipeline import Memory, jpegs

from facessl.core import environment
from facessl.core.types import Batch
from facessl.data.loader import TrainLoader
from facessl.data.prefetch import Prefetcher
from facessl.data.sources.webdataset import WebDataset
from facessl.inference.embed import embedding_batches
from facessl.views.geometric import Geometric
from facessl.views.photometric import Photometric

Work = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--tiny", action="store_true", help="small networks, few images: a test of this script")
    parser.add_argument("--batch-size", type=int, default=256, help="images at 224 px; four times as many at 112 px")
    parser.add_argument("--workers", type=int, default=environment.cores())
    parser.add_argument("--images", type=int, default=20480, help="JPEG files in the shards")
    parser.add_argument("--seconds", type=float, default=230, help="no new part after so many")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder of gpu.json")
    args = parser.parse_args()
    if args.tiny:
        args.batch_size, args.workers, args.images = 4, 1, 64
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
        for name in self.args.parts:
            self.guarded(name, getattr(self, name))
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
        self.empty()

    # ---- parts -----------------------------------------------------------------------------------------------------

    def ceiling(self) -> dict[str, Any]:
        """TFLOP/s of matrix products, each for a second, so that clocks settle; bytes/s of a copy."""
        shapes = [(8192, 8192, 8192), (4096, 4096, 4096), (16384, 2048, 4096)]
        found: dict[str, float] = {}
        for m, n, k in [(512, 512, 512)] if self.args.tiny else shapes:
            a = torch.randn(m, k, device=self.device, dtype=torch.bfloat16)
            b = torch.randn(k, n, device=self.device, dtype=torch.bfloat16)
            once = 1 / self.rate(lambda a=a, b=b: torch.mm(a, b), 3)  # type: ignore[misc]
            seconds = 0.01 if self.args.tiny else 1.0
            rate = self.rate(lambda a=a, b=b: torch.mm(a, b), round(seconds / once))  # type: ignore[misc]
            found[f"{m} x {k} x {n}"] = round(2 * m * n * k * rate / 1e12, 3)
        big = torch.randn(2**20 if self.args.tiny else 2**30, device=self.device)
        other = torch.empty_like(big)
        copy = self.seconds({"copy": lambda: other.copy_(big)}, inner=5)["copy"]
        return {
            "matrix_tflops": max(found.values()),
            "matrix_tflops_by_shape": found,
            "copy_gigabytes_per_second": round(2 * 4 * big.numel() / copy / 1e9, 1),
        }

    def methods(self) -> list[dict[str, Any]]:
        """Step, floor and straightforward step of every method and size, alternating."""
        found = []
        for name, size in (("fra", 224), ("byol", 224), ("mcf", 224), ("fra", 112), ("byol", 112)):
            found.append(self.method(name, size))
            self.empty()
        return found

    def method(self, name: str, size: int) -> dict[str, Any]:
        """One method, its backbones not compiled."""
        config = self.configuration(name, size)
        real, batch = step.RealStep(config), config.batch_in_memory()
        config.views = batch.views  # or they would be there twice
        with FlopCounterMode(display=False) as counter:
            real(batch)
        memory = self.peak(lambda: real(batch))
        straight = naive.step(name, config.backbone, config.size, config.views, config.autocast, 1e-4)
        sides: dict[str, Work] = {"floor": config.floor(), "step": lambda: real(batch), "naive": straight}
        if name == "mcf":
            sides["floor with decoder"] = config.floor(decoder=True)
        spent = self.seconds(sides)
        flops = counter.get_total_flops()
        found: dict[str, Any] = {
            "method": name,
            "backbone": config.backbone,
            "batch_size": config.batch,
            "image_size": config.size,
            "precision": config.precision,
            "images_per_second": {side: round(config.batch / value, 1) for side, value in spent.items()},
            "share_of_floor_rate": round(spent["floor"] / spent["step"], 3),
            "naive_over_step": round(spent["naive"] / spent["step"], 3),
            "gigaflop_per_image": round(flops / config.batch / 1e9, 2),
            "utilization": self.utilization(flops / spent["step"]),
            "peak_gibibytes": memory,
        }
        if name == "mcf":
            found["step_over_floor_with_decoder"] = round(spent["step"] / spent["floor with decoder"], 3)
        if self.device.type == "cuda":
            found["shares"] = step.shares.measure(real.method, lambda: real(batch), 2, self.device)
        return found

    def profile(self) -> dict[str, Any]:
        """Kernels of FRA's steps at 224 px, and the time between them."""
        if self.device.type != "cuda":
            return {"skipped": "there are no kernels on a CPU"}
        config = self.configuration("fra")
        real, batch = step.RealStep(config), config.batch_in_memory()
        real(batch)
        steps = 3
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as run:
            for _ in range(steps):
                real(batch)
            self.wait()
        kernels = [e for e in run.events() or [] if e.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [e for e in kernels if not e.name.startswith(("part: ", "Optimizer"))]
        times: dict[str, list[float]] = {}
        for event in kernels:
            times.setdefault(event.name, []).append(event.time_range.elapsed_us())
        largest = sorted(times.items(), key=lambda item: -sum(item[1]))[:10]
        busy, end = 0.0, 0.0
        for event in sorted(kernels, key=lambda e: e.time_range.start):
            busy += max(0.0, event.time_range.end - max(end, event.time_range.start))
            end = max(end, event.time_range.end)
        whole = end - min(e.time_range.start for e in kernels)
        return {
            "milliseconds_per_step": round(whole / steps / 1e3, 2),
            "idle": round(1 - busy / whole, 4),
            "kernels_per_step": round(len(kernels) / steps),
            "largest": [
                {
                    "kernel": name[:160],
                    "calls": len(found) // steps,
                    "milliseconds": round(sum(found) / steps / 1e3, 2),
                    "share": round(sum(found) / busy, 4),
                }
                for name, found in largest
            ],
        }

    def data(self) -> dict[str, Any]:
        """FRA fed by the loader from shards, against the same on one batch."""
        config = self.configuration("fra")
        real, workers = step.RealStep(config), self.args.workers
        photometric = Photometric(real.method.mean, real.method.std)
        steps = 4 if self.args.tiny else 60
        kept = self.kept(real, config.batch)
        memory = feeding.timed(
            Prefetcher(itertools.repeat(kept), self.device, photometric), real, steps // 2, self.wait
        )
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            source = self.shards(folder)
            writing = time.perf_counter() - start
            loader = TrainLoader(
                source, Geometric(real.method.views, config.size), batch_size=config.batch, seed=0, workers=workers,
                pin_memory=self.device.type == "cuda",
            )  # fmt: skip
            batches: Any = iter(loader)
            alone = feeding.drained(batches, READY * workers, count=max(4, 2 * READY * workers))
            ready: Any = Prefetcher(batches, self.device, photometric)
            shards = feeding.timed(ready, real, steps, self.wait)
            ready = batches = None  # ends the loader's processes before the files go
        again = feeding.timed(
            Prefetcher(itertools.repeat(kept), self.device, photometric), real, steps // 3 + 1, self.wait
        )
        reference = (memory.rate + again.rate) / 2
        return {
            "workers": workers,
            "images": self.args.images,
            "shard_writing_seconds": round(writing, 1),
            "loader_alone_images_per_second": round(alone * config.batch, 1),
            "images_per_second_from_memory": [round(part.rate * config.batch, 1) for part in (memory, again)],
            "images_per_second_from_shards": round(shards.rate * config.batch, 1),
            "data_wait": round(shards.waited, 4),
            "rate_lost": round(1 - shards.rate / reference, 4),
        }

    def embed(self) -> dict[str, Any]:
        """`embed` of the shards' images in bf16, against the bare forward pass."""
        config = self.configuration("byol")
        backbone, x = config.network().eval(), config.batch_in_memory().views[0]
        with torch.no_grad(), config.autocast():
            bare = self.rate(lambda: backbone(x), 2 if self.args.tiny else 30) * config.batch
        with tempfile.TemporaryDirectory() as folder:
            options = {"batch_size": config.batch, "workers": self.args.workers, "precision": "bf16"}
            parts = embedding_batches(backbone, self.shards(folder), **options)
            next(parts)  # the processes have begun
            self.wait()
            start = time.perf_counter()
            count = sum(len(part) for part in parts)
            seconds = time.perf_counter() - start
        return {
            "bare_images_per_second": round(bare, 1),
            "embed_images_per_second": round(count / seconds, 1),
            "ratio": round(count / seconds / bare, 3),
        }

    def shards(self, folder: str) -> Any:
        """A source of JPEG shards."""
        side = 96 if self.args.tiny else 256
        feeding.write_shards(Path(folder), self.args.images, workers=self.args.workers, size=side)
        return WebDataset(f"{folder}/*.tar", cache=False)

    def kept(self, real: step.RealStep, batch: int) -> Batch:
        """A batch as the loader makes it, in page-locked memory."""
        source: Any = Memory(jpegs(8, 96 if self.args.tiny else 256), repeats=-(-batch // 8))
        found = next(iter(TrainLoader(source, Geometric(real.method.views, real.of.size), batch_size=batch, seed=0)))
        return found.pin_memory() if self.device.type == "cuda" else found

    def batches(self) -> dict[str, Any]:
        """FRA from memory by images per GPU, norms not synchronized."""
        rates = {}
        for batch in (2, 4) if self.args.tiny else (8, 32, 128, 512):
            real = step.RealStep(self.configuration("fra", batch=batch))
            photometric = Photometric(real.method.mean, real.method.std)
            ready = Prefetcher(itertools.repeat(self.kept(real, batch)), self.device, photometric)
            rates[batch] = feeding.timed(ready, real, 4 if self.args.tiny else 30, self.wait).rate * batch
            del real, ready
            self.empty()
        return {
            "images_per_second": {str(batch): round(rate, 1) for batch, rate in rates.items()},
            "for_plan": ",".join(f"{batch}:{rate:.4g}" for batch, rate in rates.items()),
        }

    def compiled(self) -> list[dict[str, Any]]:
        """FRA and BYOL: step with compiled backbones beside the plain one. (MCF's blocks are not what it compiles.)"""
        if self.args.tiny and self.device.type == "cpu":
            return [{"skipped": "the C++ compiler takes minutes"}]
        out = []
        for name in ("fra", "byol"):
            config = self.configuration(name)
            batch, plain = config.batch_in_memory(), step.RealStep(config)
            half, faster = (
                step.RealStep(self.configuration(name, precision="fp16")),
                step.RealStep(config, compiled=True),
            )
            start = time.perf_counter()
            faster(batch)
            self.wait()
            first = time.perf_counter() - start
            sides: dict[str, Work] = {
                "plain": lambda p=plain, b=batch: p(b),  # type: ignore[misc]
                "fp16": lambda h=half, b=batch: h(b),  # type: ignore[misc]
                "compiled": lambda f=faster, b=batch: f(b),  # type: ignore[misc]
                "floor, compiled": config.floor(compiled=True),
                "floor": config.floor(),
            }
            spent = self.seconds(sides)
            out.append(
                {
                    "method": name,
                    "compile_seconds": round(first, 1),
                    "images_per_second": {side: round(config.batch / value, 1) for side, value in spent.items()},
                    "gain": round(spent["plain"] / spent["compiled"], 3),
                    "gain_of_fp16": round(spent["plain"] / spent["fp16"], 3),
                    "share_of_floor_rate": round(spent["floor"] / spent["compiled"], 3),
                    "share_of_compiled_floor_rate": round(spent["floor, compiled"] / spent["compiled"], 3),
                }
            )
            self.report["compiled"] = out  # what there is, should the time end
            (self.args.out / "gpu.json").write_text(json.dumps(self.report, indent=1) + "\n")
            if time.perf_counter() - self.began > self.args.seconds:
                break
        return out

    # ---- helpers ---------------------------------------------------------------------------------------------------

    def configuration(
        self, name: str, size: int = 224, batch: int | None = None, precision: str = "bf16"
    ) -> step.Configuration:
        """A method whose views are in channels-last memory."""
        tiny = {"mcf": "vit_tiny_patch16_224"}.get(name, "resnet10t")
        args = argparse.Namespace(
            backbone=tiny if self.args.tiny else None,
            batch_size=batch or self.args.batch_size * (1 if size == 224 or self.args.tiny else 4),
            device=self.args.device,
        )
        return step.Configuration(args, name, size // 2 if self.args.tiny and name != "mcf" else size, precision)

    def utilization(self, flops_per_second: float) -> float | None:
        """Share of the measured ceiling."""
        ceiling = self.report.get("ceiling", {}).get("matrix_tflops")
        return round(flops_per_second / 1e12 / ceiling, 4) if ceiling else None

    def peak(self, work: Work) -> float | None:
        """GiB in use at the most during a call, everything that is there included."""
        if self.device.type != "cuda":
            return None
        self.empty()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.wait()
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)

    def empty(self) -> None:
        """Give back the memory of what is gone."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, sides: dict[str, Any], rounds: int = 3, inner: int = 4) -> dict[str, float]:
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

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


PARTS = ["ceiling", "methods", "profile", "data", "embed", "batches", "compiled"]

if __name__ == "__main__":
    main()
