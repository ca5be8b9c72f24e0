"""Speed of the views beside a torchvision and Pillow pipeline with the same parameters, as JSON.

    python benchmarks/pipeline.py [--sizes 256:224 112:112 1024:224] [--images 32] [--rounds 7] [--out FILE]

The reference does what the released code of FRA, LEWEL and BYOL in PyTorch does: it decodes with Pillow, once per
image, and for each of two views runs RandomResizedCrop, flip, color jitter, gray, Gaussian blur, solarization, tensor,
normalization. Beside it stands "reference_crops", the part of it that does the work of "worker" and no more: decoding,
two crops and flips, uint8. Everything runs alternating in one process on one thread, in CPU time, so that a busy
machine changes neither side alone; a rate is the median of the rounds, a ratio that of those within a round. The images
are noise with the detail of photographs (JPEG, quality 90, 4:2:0); a size is pixels stored : pixels of a view.
"scaling" is what N loader processes reach against one, in wall time, N the cores: it says nothing on a busy machine.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms as tv

from facessl.core import environment
from facessl.core.types import Sample
from facessl.data.decode import decode
from facessl.data.loader import TrainLoader
from facessl.data.order import view_rng
from facessl.data.source import Source
from facessl.views.geometric import Geometric
from facessl.views.normalize import VGGFACE2_MEAN, VGGFACE2_STD
from facessl.views.photometric import Photometric
from facessl.views.spec import FRA_VIEWS, View

Size = tuple[int, int]


class Memory(Source):
    """A source of encoded images in memory, so that no disk is measured."""

    def __init__(self, files: list[bytes], repeats: int = 1) -> None:
        self.files, self.repeats = files, repeats

    def __len__(self) -> int:
        return len(self.files) * self.repeats

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.files[index % len(self.files)], key=str(index))


def picture(size: int, seed: int) -> np.ndarray:
    """(size, size, 3) uint8 noise whose octaves have falling contrast, as in photographs."""
    rng = np.random.default_rng(seed)
    out = np.zeros((size, size, 3), np.float32)
    for octave in range(6):
        side = max(2, size >> octave)
        grid = rng.normal(size=(side, side, 3)).astype(np.float32) * 2.0**octave
        out += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 50 * out / out.std(), 0, 255).astype(np.uint8)


def jpegs(count: int, size: int) -> list[bytes]:
    """Photograph-like files: quality 90, 4:2:0, as cameras and data sets have them."""
    return [simplejpeg.encode_jpeg(picture(size, s), quality=90, colorsubsampling="420") for s in range(count)]


def reference(
    view: View, size: int, blur: Callable[[Image.Image], Image.Image] | None = None
) -> Callable[[Image.Image], Tensor]:
    """One view as torchvision and Pillow make it: (3, size, size) float32, normalized; `blur` in place of Pillow's."""
    brightness, contrast, saturation, hue = view.jitter
    return tv.Compose(
        [
            tv.RandomResizedCrop(size, scale=view.scale, ratio=view.ratio),
            tv.RandomHorizontalFlip(view.flip),
            tv.RandomApply([tv.ColorJitter(brightness, contrast, saturation, hue)], p=view.jitter_p),
            tv.RandomGrayscale(view.grayscale),
            tv.RandomApply([blur or PillowBlur(view.blur_sigma)], p=view.blur),
            tv.RandomApply([tv.Lambda(ImageOps.solarize)], p=view.solarize),
            tv.ToTensor(),
            tv.Normalize(VGGFACE2_MEAN, VGGFACE2_STD),
        ]
    )


def reference_crops(files: list[bytes], size: int) -> Callable[[], list[np.ndarray]]:
    """The geometric part of the reference alone: V arrays (B, size, size, 3) uint8, as `Parts.worker` makes them."""
    makers = [
        tv.Compose([tv.RandomResizedCrop(size, scale=view.scale, ratio=view.ratio), tv.RandomHorizontalFlip(view.flip)])
        for view in FRA_VIEWS
    ]
    room = [np.empty((len(files), size, size, 3), np.uint8) for _ in makers]

    def make() -> list[np.ndarray]:
        for row, data in enumerate(files):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            for out, maker in zip(room, makers, strict=True):
                out[row] = maker(image)
        return room

    return make


class PillowBlur:
    """Gaussian blur as MoCo v2 and its followers have it: Pillow's, with a sigma drawn uniformly.

    Pillow takes three box blurs for a Gaussian, which is fast, and weaker than one where sigma is 0.3 to 0.7.
    """

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


def reference_views(files: list[bytes], size: int) -> Callable[[], list[list[Tensor]]]:
    """All views of all files, as a data set's `__getitem__` and the loader's default collation make them."""
    makers = [reference(view, size) for view in FRA_VIEWS]

    def make() -> list[Tensor]:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
        return [torch.stack([maker(image) for image in images]) for maker in makers]

    return make


class Parts:
    """What is timed, for `files` and views of `size` pixels; every method does all files."""

    def __init__(self, files: list[bytes], size: int) -> None:
        self.files = files
        self.reference = reference_views(files, size)
        self.reference_crops = reference_crops(files, size)
        self.geometric = Geometric(FRA_VIEWS, size)
        self.room = [np.empty((size, size, 3), np.uint8) for _ in FRA_VIEWS]
        self.photometric = Photometric(VGGFACE2_MEAN, VGGFACE2_STD)
        self.batches = iter(TrainLoader(Memory(files), self.geometric, batch_size=len(files), seed=0))
        self.batch = next(self.batches)

    def decode(self) -> None:
        """Bytes to uint8 RGB, nothing else."""
        for data in self.files:
            decode(data, key="")

    def worker(self) -> None:
        """Decode and two crops, uint8, into memory that is there."""
        for index, data in enumerate(self.files):
            drawn = self.geometric.draw(view_rng(0, 0, index))
            sample = Sample(data, key="")
            drawn(sample, decode(data, key="", reduction=drawn.reduction), self.room)

    def loader(self) -> None:
        """The same through the loader, to a collated batch."""
        self.batch = next(self.batches)

    def photometric_part(self) -> None:
        """Colors, blur and normalization of a batch that the loader made."""
        self.photometric(self.batch)

    def complete(self) -> None:
        """Loader and photometric part: the finished views of a batch."""
        self.photometric(next(self.batches))


def alternate(works: dict[str, Callable[[], Any]], rounds: int, least: float = 0.1) -> dict[str, list[float]]:
    """CPU seconds of each work in each round; the works take turns.

    Each turn begins with an uncounted pass, or the work would pay for the memory that the one before it gave back;
    then it is repeated for about `least` seconds.
    """
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time()
            work()
            repeats = math.ceil(least / max(time.process_time() - began, 1e-6))
            began = time.process_time()
            for _ in range(repeats):
                work()
            spent[name].append((time.process_time() - began) / repeats)
    return spent


def measure(stored: int, size: int, images: int, rounds: int) -> dict[str, Any]:
    """Rates and ratios at one size."""
    images = max(8, images * 256 // max(stored, 256))
    files = jpegs(images, stored)
    parts = Parts(files, size)
    names = ("reference", "reference_crops", "decode", "worker", "loader", "photometric_part", "complete")
    spent = alternate({name: getattr(parts, name) for name in names}, rounds)

    def ratio(above: str, below: str) -> float:
        pairs = zip(spent[above], spent[below], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "view_pixels": size,
        "stored_pixels": stored,
        "kilobytes_per_file": round(sum(map(len, files)) / images / 1000, 1),
        "images_per_second_per_core": {name: round(images / statistics.median(spent[name]), 1) for name in names},
        "worker_times_reference_crops": ratio("reference_crops", "worker"),
        "worker_times_reference": ratio("reference", "worker"),
        "loader_times_reference": ratio("reference", "loader"),
        "complete_times_reference": ratio("reference", "complete"),
        "worker_share_of_decode_rate": ratio("decode", "worker"),
        "loader_share_of_decode_rate": ratio("decode", "loader"),
    }


def scaling(stored: int, size: int, images: int, workers: list[int], seconds: float) -> dict[str, Any]:
    """Images per second of wall time that a loader of N processes delivers."""
    source = Memory(jpegs(images, stored), repeats=64)
    rates = {}
    for count in workers:
        loader = TrainLoader(source, Geometric(FRA_VIEWS, size), batch_size=images, seed=0, workers=count)
        batches = iter(loader)
        for _ in islice(batches, 4 * count):  # what was made while the processes started
            pass
        began, made = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            made += len(next(batches))
        rates[count] = made / (time.perf_counter() - began)
        del batches
    return {
        "view_pixels": size,
        "stored_pixels": stored,
        "images_per_second": {str(n): round(rate, 1) for n, rate in rates.items()},
        "times_one_worker": {str(n): round(rate / rates[workers[0]], 3) for n, rate in rates.items()},
    }


def pair(text: str) -> Size:
    """`256:224` -> (256, 224)."""
    stored, size = text.split(":")
    return int(stored), int(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=pair, nargs="+", default=[(256, 224), (112, 112), (1024, 224)])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="*", default=sorted({1, environment.cores()}))
    parser.add_argument("--seconds", type=float, default=5.0, help="of wall time for each number of workers")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    random.seed(0)
    torch.manual_seed(0)
    report = {
        "benchmark": "pipeline",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"images": args.images, "rounds": args.rounds, "threads": 1},
        "results": [measure(*size, args.images, args.rounds) for size in args.sizes],
        "scaling": [scaling(*size, args.images, args.workers, args.seconds) for size in args.sizes[:2] if args.workers],
        "peak_memory_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "environment": environment.describe(),
    }
    text = json.dumps(report, indent=2)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
