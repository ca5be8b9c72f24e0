"""Training from JPEGs, from decoded images in memory, from images on the device (`--cache none|ram|device`), as JSON.

    python benchmarks/cache.py                     # BYOL, ResNet-18, 112 px on a CPU: half a minute of one core
    python benchmarks/cache.py --device cuda --method fra --backbone resnet50 --image-size 224 --batch-size 256

Per cache: images/s of the loader alone (up to uint8 views on the device), images/s of whole training steps (loader,
photometric views, forward, loss, backward, optimiser, momentum network), and the share of the bare-backbone rate that
those reach: the same images as two forward and backward passes and two forward passes of the backbone, floor of
benchmarks/step.py. For each cache the three run in turn in one process, without another cache's loader; results are
medians over rounds, shares medians of the ratios within a round. On a CPU the seconds are CPU time of one process
without workers, so that a busy machine disturbs little. On a GPU they are wall time; the copy and the photometric views
of the next batch run beside the step, as in training, and every turn first drops the batches that its workers had
ready, without training on them (feeding.py). "draw" is what the loader processes still do where the device cuts the
views: milliseconds of one core per 1,024 images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import torch

sys.path.insert(0, str(Path(__file__).parent))
from feeding import READY, drained
from pipeline import Memory, jpegs
from step import Configuration, RealStep, ratio

from facessl.core import environment, plugins
from facessl.core.types import Batch
from facessl.data.cache import Cached, fill
from facessl.data.loader import TrainLoader
from facessl.data.prefetch import Prefetcher
from facessl.views.batched import Boxes, Cutter
from facessl.views.geometric import Geometric
from facessl.views.photometric import Photometric

CACHES = ("none", "ram", "device")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", default="byol", choices=plugins.names("methods"))
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--stored-size", type=int, help="side of the JPEGs; default: the image size times 8 / 7")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="per turn; default: 1 on a CPU, 30 on a GPU")
    parser.add_argument("--workers", type=int, help="default: 0 on a CPU, else the cores minus one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=environment.default_device())
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    args.steps = args.steps or (1 if args.device == "cpu" else 30)
    args.workers = (0 if args.device == "cpu" else environment.cores() - 1) if args.workers is None else args.workers
    args.stored_size = args.stored_size or round(args.image_size * 8 / 7)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(0)
    report = {
        "benchmark": "cache",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "environment": environment.describe(),
        "results": measure(args),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rates and shares of every cache."""
    device = torch.device(args.device)
    setting = Configuration(args, args.method, args.image_size, args.precision)
    step, floor = RealStep(setting), setting.floor()
    photometric = Photometric(step.method.mean, step.method.std)
    out: dict[str, Any] = {}
    floors: list[float] = []
    for cache in CACHES:
        source = batches(args, cache, step.method.views, device)
        ready = Prefetcher(source, device, photometric)
        sides: dict[str, Callable[[], Any]] = {
            "floor": floor,
            "load": lambda source=source: next(source).to(device),
            "step": lambda ready=ready: step(next(ready)),
        }
        seconds = in_turn(sides, lambda source=source: drained(source, READY * args.workers), args, device)  # type: ignore[misc]
        del source, ready, sides  # ends the loader's processes
        floors += seconds["floor"]
        load, whole = rate(args, seconds["load"]), rate(args, seconds["step"])
        share = ratio(seconds["floor"], seconds["step"])
        out[cache] = {"loader_images_per_second": load, "step_images_per_second": whole, "share_of_backbone": share}
    out["bare_backbone_images_per_second"] = rate(args, floors)
    out["draw_ms_per_1024_images"] = drawing(step.method.views, args)
    return out


def drawing(views: Any, args: argparse.Namespace, count: int = 256) -> float:
    """Milliseconds of CPU time in which one process draws the boxes and parameters of 1,024 images."""
    source: Any = Memory(jpegs(8, args.stored_size), repeats=count // 8)
    store = fill(source, side=args.stored_size)
    store.pixels = None
    assert store.size is not None
    boxes = Boxes(views, args.image_size, store.size)
    batches = iter(TrainLoader(Cached(source, store), boxes, batch_size=count, seed=0))
    spent = []
    for _ in range(args.rounds):
        start = time.process_time()
        next(batches)
        spent.append(time.process_time() - start)
    return round(1000 * 1024 / count * statistics.median(spent), 1)


def batches(args: argparse.Namespace, cache: str, views: Any, device: torch.device) -> Iterator[Batch]:
    """What a run with this cache trains on."""
    files = jpegs(min(args.images, 64), args.stored_size)
    source: Any = Memory(files, repeats=-(-args.images // len(files)))
    transform: Any = Geometric(views, args.image_size)
    cutter = None
    if cache != "none":
        store = fill(source, side=args.stored_size if cache == "device" else None, workers=args.workers, device=device)
        source = Cached(source, store)
        if store.size is not None:
            transform = Boxes(views, args.image_size, store.size)
            cutter = Cutter(store.tensor(device), transform.sizes)
    options = {"batch_size": args.batch_size, "workers": args.workers, "pin_memory": device.type == "cuda"}
    loader = TrainLoader(source, transform, seed=0, **options)
    return iter(loader) if cutter is None else cutter.over(loader)


def in_turn(
    sides: dict[str, Callable[[], Any]], drain: Callable[[], Any], args: argparse.Namespace, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of `args.steps` calls of every side in each round, after one that warms up.

    `drain` drops what a loader has ready. With workers half as many calls again come before those that count.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.rounds + 1):
        for name, work in sides.items():
            if name != "floor" and args.workers:
                drain()
                for _ in range(max(1, args.steps // 2)):
                    work()
            wait(device)
            start = clock()
            for _ in range(args.steps):
                work()
            wait(device)
            if turn:
                spent[name].append(clock() - start)
    return spent


def rate(args: argparse.Namespace, seconds: list[float]) -> float:
    """Median images/s."""
    return round(args.steps * args.batch_size / statistics.median(seconds), 1)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
