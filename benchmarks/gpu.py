"""Training speed on a GPU, as JSON: rates, utilisation, memory, data wait, compiled and captured optimiser steps.

    benchmarks/gpu.sh                                   # the whole, under 8 minutes, into $OUT or gpu-out/
    python benchmarks/gpu.py --device cpu --tiny        # every section on small networks, to see that it works

Parts run in the order of their worth and each is written as soon as it is measured, so that a run that is cut short
leaves what it has; a part that fails says why and does not stop the others.

    ceiling     TFLOP/s of large bf16 matrix products on random numbers, a second of each; the largest counts as 100 %
    methods     images/s of the whole step, of the bare-backbone floor and of the straightforward step (step.py), and
                model FLOP utilisation: counted products and convolutions of the step over its time and the ceiling
    compiled    the same step with compiled backbones
    data        the step fed from JPEG shards by loader processes, against the same step, copy and photometric views on
                one batch that stays in memory; what the processes had ready is dropped first (feeding.py)
    batches     images/s of that step from memory by batch size, as `facessl plan --gpu-images-per-second` takes it
    messages    with several GPUs: latency of the messages of synchronised batch norm, and a step with it (ranks.py)
    update      optimiser and momentum network as they are, compiled, and captured in a CUDA graph: an upper bound, as
                the graph has the learning rate and the momentum of one step in it
    memory      what a FRA step adds to the memory in use, by batch size
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
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import feeding
import naive
import ranks
import step
from feeding import READY
from pipeline import Memory, jpegs

from facessl.core import environment
from facessl.core.types import Batch, Progress
from facessl.data.loader import TrainLoader
from facessl.data.prefetch import Prefetcher
from facessl.data.sources.webdataset import WebDataset
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
        for part in (
            self.ceiling,
            self.methods,
            self.data,
            self.batches,
            self.messages,
            self.update,
            self.memory,
            self.compiled,
        ):
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
        copy = self.seconds({"copy": lambda: other.copy_(big)}, rounds=5, inner=5)["copy"]
        return {
            "matrix_tflops": max(found.values()),
            "matrix_tflops_by_shape": found,
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
        """FRA fed by the loader from shards, against the same on one batch."""
        config = self.configuration("fra")
        real, workers = step.RealStep(config), self.args.workers
        photometric = Photometric(real.method.mean, real.method.std)
        steps = 4 if self.args.tiny else 120
        kept = self.kept(real, config.batch)
        memory = feeding.timed(
            Prefetcher(itertools.repeat(kept), self.device, photometric), real, steps // 2, self.wait
        )
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            feeding.write_shards(Path(folder), self.args.images, workers=workers, size=96 if self.args.tiny else 256)
            writing = time.perf_counter() - start
            source: Any = WebDataset(f"{folder}/*.tar", cache=False)
            loader = TrainLoader(
                source, Geometric(real.method.views, config.size), batch_size=config.batch, seed=0, workers=workers,
                pin_memory=self.device.type == "cuda",
            )  # fmt: skip
            batches: Any = iter(loader)
            alone = feeding.drained(batches, READY * workers, count=max(4, 4 * READY * workers))
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

    def kept(self, real: step.RealStep, batch: int) -> Batch:
        """A batch as the loader makes it, in page-locked memory."""
        source: Any = Memory(jpegs(8, 96 if self.args.tiny else 256), repeats=-(-batch // 8))
        found = next(iter(TrainLoader(source, Geometric(real.method.views, real.of.size), batch_size=batch, seed=0)))
        return found.pin_memory() if self.device.type == "cuda" else found

    def batches(self) -> dict[str, Any]:
        """FRA from memory by images per GPU, norms not synchronised."""
        rates = {}
        for batch in (2, 4) if self.args.tiny else (8, 32, 64, 256):
            real = step.RealStep(self.configuration("fra", batch=batch))
            photometric = Photometric(real.method.mean, real.method.std)
            ready = Prefetcher(itertools.repeat(self.kept(real, batch)), self.device, photometric)
            rates[batch] = feeding.timed(ready, real, 4 if self.args.tiny else 60, self.wait).rate * batch
        return {
            "images_per_second": {str(batch): round(rate, 1) for batch, rate in rates.items()},
            "for_plan": ",".join(f"{batch}:{rate:.4g}" for batch, rate in rates.items()),
        }

    def messages(self) -> dict[str, Any]:
        """Latency over all GPUs of this machine, and FRA's step with synchronised norms beside plain ones."""
        if self.device.type == "cuda" and torch.cuda.device_count() < 2:
            return {"skipped": "one GPU sends no messages"}
        count = torch.cuda.device_count() if self.device.type == "cuda" else 2
        return ranks.measure(count, self.args.device, self.args.image_size, (2,) if self.args.tiny else (8, 64))

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
            sides["both, captured (upper bound)"] = captured(update)
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
            gc.collect()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()  # what other parts left
            config = self.configuration("fra", batch=batch)
            views = config.batch_in_memory()
            config.views = []  # or they would be there twice
            real = step.RealStep(config)
            torch.cuda.reset_peak_memory_stats()
            for _ in range(2):
                real(views)
            out[str(batch)] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)
            del real, config, views
        return {"gibibytes_by_batch_size": out, "note": "a run has the next batch's views in memory as well"}

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


if __name__ == "__main__":
    main()
