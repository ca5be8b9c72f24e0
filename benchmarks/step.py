"""Cost of a training step relative to its floor and to a straightforward implementation, and where its time goes.

Three things run in turn within one process, so that a busy machine slows all of them; a result is the median of the
ratios within a round. On the CPU the seconds are CPU time (wall time times cores in use), on a GPU wall time.

    step    the library's whole step from normalized views on: forward, loss, backward, optimizer, momentum network
    floor   passes of the bare backbone that the method cannot avoid, in the same precision and layout. BYOL, FRA: both
            views forward and backward (online), both forward (target). MCF: the visible tokens forward and backward
            (online) and forward (target), and the frozen teacher on the image forward, on the painting forward and
            back to its pixels. Decoders and heads are no part of it; "floor with decoder" adds MCF's bare decoder.
    naive   the same step written the straightforward way (benchmarks/naive.py), from the same views, contiguous

`shares` says where the time of the real step goes, loading and photometric views included: it is fed by the loader with
one worker from JPEG in memory. With `--torch-compile` the step with compiled backbones runs beside the others.

    python benchmarks/step.py --method fra byol mcf --image-size 112 224 --precision bf16 fp32 --out step.json
    python benchmarks/step.py --quick
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import naive
import shares
from pipeline import Memory, jpegs

from facessl.config.optim import PretrainOptim
from facessl.core import environment, plugins
from facessl.core.types import Batch, Progress
from facessl.data.loader import TrainLoader
from facessl.models.backbone import Backbone
from facessl.models.layers.ema import frozen_copy
from facessl.models.layers.masking import encode_visible, fix_positions, random_mask
from facessl.pretrained.load import load_backbone
from facessl.training import optimizers
from facessl.views.geometric import Geometric
from facessl.views.photometric import Photometric

Work = Callable[[], None]
BACKBONES = {"mcf": "vit_base_patch16_224", "mae": "vit_base_patch16_224"}
BATCH = {112: 32, 224: 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", nargs="+", default=["fra", "byol", "mcf"])
    parser.add_argument("--backbone", help="default: ResNet-50, ViT-B/16 for MCF")
    parser.add_argument("--image-size", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--batch-size", type=int, help="default: 32 at 112 px, 16 at 224 px")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=75, help="no new round after so many of one configuration")
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--threads", type=int, default=environment.cores())
    parser.add_argument("--torch-compile", action="store_true", help="also the step with compiled backbones")
    parser.add_argument("--no-naive", action="store_true")
    parser.add_argument("--no-shares", action="store_true")
    parser.add_argument("--quick", action="store_true", help="FRA at 112 px in bf16, 8 images, two rounds")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    if args.quick:
        args.method, args.image_size, args.precision = ["fra"], [112], ["bf16"]
        args.batch_size, args.rounds = args.batch_size or 8, 2
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        environment.keep_memory()  # as a run does
    results = []
    for name in args.method:
        for size in args.image_size:
            for precision in args.precision:
                results.append(Configuration(args, name, size, precision).measure())
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    head = {"date": datetime.date.today().isoformat(), "benchmark": "step", "settings": settings}
    text = json.dumps(head | {"environment": environment.describe(), "results": results})
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def alternate(sides: dict[str, Work], *, rounds: int, seconds: float, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every side in each round, after one round that warms up; at least two rounds."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in sides}
    began = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 2 and time.perf_counter() - began > seconds:
            break
        for name, work in sides.items():
            _wait(device)
            start = clock()
            work()
            _wait(device)
            if turn:
                spent[name].append(clock() - start)
    return spent


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    """Median of the ratios within a round, and their range."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": round(statistics.median(each), 3), "range": [round(min(each), 3), round(max(each), 3)]}


class Configuration:
    """One method at one size in one precision."""

    def __init__(self, args: argparse.Namespace, name: str, size: int, precision: str) -> None:
        self.args, self.name, self.size, self.precision = args, name, size, precision
        self.device = torch.device(args.device)
        self.backbone = args.backbone or BACKBONES.get(name, "resnet50")
        self.batch = args.batch_size or BATCH.get(size, 16)
        count = len(plugins.find("methods", name).views)
        self.views = [torch.randn(self.batch, 3, size, size, device=self.device) for _ in range(count)]

    def measure(self) -> dict[str, Any]:
        """What the JSON holds of this configuration."""
        real = RealStep(self)
        sides: dict[str, Work] = {"floor": self.floor(), "step": lambda: real(self.batch_in_memory())}
        if hasattr(real.method, "teacher"):
            sides["floor with decoder"] = self.floor(decoder=True)
        if not self.args.no_naive and self.name in naive.METHODS:
            sides["naive"] = naive.step(self.name, self.backbone, self.size, self.views, self.autocast, lr=1e-4)
        compiled = self.args.torch_compile and shutil.which("c++") is not None
        if compiled:
            faster = RealStep(self, compiled=True)
            sides["compiled"] = lambda: faster(self.batch_in_memory())
        began = time.perf_counter()
        if compiled:
            sides["compiled"]()
        first = time.perf_counter() - began
        spent = alternate(sides, rounds=self.args.rounds, seconds=self.args.seconds, device=self.device)
        out: dict[str, Any] = {
            "method": self.name,
            "backbone": self.backbone,
            "image_size": self.size,
            "batch_size": self.batch,
            "precision": self.precision,
            "seconds": {name: round(statistics.median(values), 4) for name, values in spent.items()},
            "images_per_second": round(self.batch / statistics.median(spent["step"]), 2),
            "step_over_floor": ratio(spent["step"], spent["floor"]),
        }
        if "floor with decoder" in spent:
            out["step_over_floor_with_decoder"] = ratio(spent["step"], spent["floor with decoder"])
        if "naive" in spent:
            out["naive_over_step"] = ratio(spent["naive"], spent["step"])
        if compiled:
            out["step_over_compiled"] = ratio(spent["step"], spent["compiled"])
            out["compile_seconds"] = round(first, 1)
        elif self.args.torch_compile:
            out["step_over_compiled"] = "not measured: there is no C++ compiler"
        if not self.args.no_shares:
            out["shares"] = real.shares()
        return out

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What a run's precision means."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return contextlib.nullcontext() if half is None else torch.autocast(self.device.type, half)

    def batch_in_memory(self) -> Batch:
        """Normalized views, channels-last."""
        views = [v.contiguous(memory_format=torch.channels_last) for v in self.views]
        return Batch(views=views, params=[], index=torch.arange(self.batch))

    def network(self) -> Backbone:
        """The backbone as the library trains it."""
        return Backbone(self.backbone, image_size=self.size).to(self.device, memory_format=torch.channels_last)

    def floor(self, decoder: bool = False, compiled: bool = False) -> Work:
        """Passes of bare backbones."""
        online = self.network()
        target = frozen_copy(online)
        if compiled:
            online.compile_features()
            target.compile_features()
        views = self.batch_in_memory().views
        if self.name in ("mcf", "mae"):
            return self._masked_floor(online, target, views[0], decoder)

        def work() -> None:
            online.zero_grad(set_to_none=True)
            with self.autocast():
                loss = torch.stack([online(x).float().square().mean() for x in views]).sum()
                with torch.no_grad():
                    for x in views:
                        target(x)
            loss.backward()

        return work

    def _masked_floor(self, online: Backbone, target: Backbone, x: Tensor, decoder: bool) -> Work:
        fix_positions(online.model)
        method = plugins.find("methods", self.name)(self.network(), **_arguments(self)).to(self.device)
        if hasattr(method, "prepare"):
            method.prepare(load_backbone)
        teacher, painter = getattr(method, "teacher", None), method.decoder if decoder else nn.Identity()
        cells = math.prod(online.model.patch_embed.grid_size)
        mask = random_mask(torch.rand(len(x), cells, device=x.device), 0.75)

        def work() -> None:
            online.zero_grad(set_to_none=True)
            painter.zero_grad(set_to_none=True)
            with self.autocast():
                tokens = encode_visible(online.model, x, mask.keep)
                loss = tokens.float().square().mean()
                if decoder:
                    loss = loss + painter(tokens, mask.restore).float().square().mean()
                if teacher is not None:
                    painting = x.clone().requires_grad_()
                    loss = loss + torch.stack([f.float().square().mean() for f in teacher(painting)]).sum()
                    with torch.no_grad():
                        teacher(x)
                        encode_visible(target.model, x, mask.keep)
            loss.backward()

        return work


def _arguments(configuration: Configuration) -> dict[str, Any]:
    """What a method must be told for a benchmark: MCF's teacher is a file that is not at hand."""
    return {"teacher": f"timm:{configuration.backbone}?pretrained=false"} if configuration.name == "mcf" else {}


class RealStep:
    """A training step as `facessl.training.trainer` runs it."""

    def __init__(self, configuration: Configuration, compiled: bool = False) -> None:
        self.of = configuration
        self.method: Any = plugins.find("methods", configuration.name)(
            Backbone(configuration.backbone, image_size=configuration.size), **_arguments(configuration)
        )
        if hasattr(self.method, "prepare"):
            self.method.prepare(load_backbone)
        self.method.train().to(configuration.device, memory_format=torch.channels_last)
        if compiled:
            for module in self.method.modules():
                if isinstance(module, Backbone):
                    module.compile_features()
        settings = PretrainOptim(name="adamw" if configuration.name in ("mcf", "mae") else "lars")
        self.optimizer = optimizers.build_optimizer(self.method, settings, 1e-4)

    def __call__(self, batch: Batch) -> None:
        """Forward, loss, backward, optimizer, momentum network."""
        progress = Progress(step=0, total_steps=1)
        with self.of.autocast():
            loss = self.method.step(batch, progress).loss
        loss.backward()
        with shares.part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with shares.part("EMA"):
            self.method.after_step(progress)

    def shares(self, steps: int = 2) -> dict[str, float]:
        """Where the time goes, from the loader's batch on."""
        of = self.of
        source: Any = Memory(jpegs(of.batch, 256 if of.size > 128 else of.size), repeats=8)
        views = Geometric(self.method.views, of.size)
        batches = iter(
            TrainLoader(
                source, views, batch_size=of.batch, seed=0, workers=1, pin_memory=of.device.type == "cuda"
            )
        )  # fmt: skip
        photometric = Photometric(self.method.mean, self.method.std)

        def work() -> None:
            with shares.part("data wait"):
                batch = next(batches)
            with shares.part("photometric views"):
                batch = photometric(batch.to(of.device))
            self(batch)

        work()
        return shares.measure(self.method, work, steps, of.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
