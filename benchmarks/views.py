"""Speed of the views, as JSON: decode + two crops per core, and the photometric part per view.

Command: `python benchmarks/views.py [--sizes 112 224] [--batch 64] [--device cpu]`. The images are synthetic, with
the detail of photographs. On the CPU one thread is used and CPU time is counted, so a busy machine disturbs
little; on a GPU the wall time of a batch is counted, with its parameters on the host, as the loader leaves them.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

from facessl import environment
from facessl.data.decode import decode
from facessl.views.geometric import Geometric
from facessl.views.photometric import Photometric
from facessl.views.spec import FRA_VIEWS, VGGFACE2_MEAN, VGGFACE2_STD


def picture(size: int, seed: int) -> np.ndarray:
    """(size, size, 3) uint8 noise whose octaves have falling contrast, as in photographs."""
    rng = np.random.default_rng(seed)
    out = np.zeros((size, size, 3), np.float32)
    for octave in range(6):
        side = max(2, size >> octave)
        grid = rng.normal(size=(side, side, 3)).astype(np.float32) * 2.0**octave
        out += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 50 * out / out.std(), 0, 255).astype(np.uint8)


def seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `run`: CPU time of this process, or wall time where a GPU works."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for repeat in range(repeats + 2):
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()
        if repeat >= 2:  # the first two fill caches and memory pools
            times.append(clock() - start)
    return float(np.median(times))


def measure(size: int, batch: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Rates for images and views of `size` pixels."""
    files = [simplejpeg.encode_jpeg(picture(size, seed), quality=90) for seed in range(batch)]
    geometric, photometric = Geometric(FRA_VIEWS, size), Photometric(VGGFACE2_MEAN, VGGFACE2_STD)
    cpu = torch.device("cpu")

    def load() -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
        return [
            geometric(decode(data, key="synthetic"), np.random.default_rng((0, 0, index)))
            for index, data in enumerate(files)
        ]

    decoding = seconds(lambda: [decode(data, key="synthetic") for data in files], cpu, repeats)
    loading = seconds(load, cpu, repeats)
    samples = load()
    result: dict[str, Any] = {
        "size": size,
        "jpeg_kilobytes": round(sum(map(len, files)) / batch / 1000, 1),
        "decode_images_per_second_per_core": round(batch / decoding),
        "decode_and_two_crops_images_per_second_per_core": round(batch / loading),
    }
    for number, name in enumerate(("blur_always", "blur_rare_solarise")):
        view = torch.from_numpy(np.stack([images[number] for images, _ in samples])).permute(0, 3, 1, 2).to(device)
        params = torch.from_numpy(np.stack([drawn[number] for _, drawn in samples]))
        spent = seconds(lambda v=view, p=params: photometric.apply(v, p), device, repeats)  # type: ignore[misc]
        result[f"photometric_ms_per_view_{name}"] = round(1000 * spent / batch, 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    device = torch.device(args.device)
    report = {
        "benchmark": "views",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "photometric_device": args.device,
        "batch": args.batch,
        "results": [measure(size, args.batch, device, args.repeats) for size in args.sizes],
        "peak_memory_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "environment": environment.describe(),
    }
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
