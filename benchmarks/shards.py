"""Speed of `facessl pack`, of reading shards beside files, and what a folder of a million files costs, as JSON.

    python benchmarks/shards.py [--folder FACES] [--images 24000] [--files 1000000] [--parts pack read folder] [--out F]

pack: N processes that do nothing but decode, resize and encode images they have in memory (the first 4,000, with the
same functions, sizes and quality), in turn with packing all images with N workers. `wall_ratio` compares images per
wall second, from the call to the last file on the disk, with those of the bare work; `cpu_ratio` CPU seconds per image
of all processes. Both are medians over rounds. `pack_small` is the same for drawn images of `--small-side` pixels.
read: `TrainLoader` without workers (read, decode, two crops) over files and over shards with the same bytes,
alternating batch by batch, in CPU time, warm cache; the same without decoding.
folder: hard links to 1,000 small JPEGs in sub-folders of 10,000; time to open them without and with the index, to the
first batch, and memory of the loader's processes beside that for 1,000 files. Each in a fresh process.

Without --folder the images are noise with the detail of photographs, 500 different ones (`--side` pixels).
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import simplejpeg
import torch

from facessl.core import environment
from facessl.core.types import Sample
from facessl.data.decode import decode
from facessl.data.face_square import resize_to
from facessl.data.loader import TrainLoader
from facessl.data.source import Source, open_source
from facessl.tools.pack import pack
from facessl.views.geometric import Geometric
from facessl.views.spec import FRA_VIEWS

DIFFERENT, PER_FOLDER, LINKED = 500, 10_000, 1000
BATCH = 64
BARE = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="real images instead of drawn ones")
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--side", type=int, default=320, help="of drawn images")
    parser.add_argument("--small-side", type=int, default=112, help="of drawn images for pack_small; 0 leaves it out")
    parser.add_argument("--size", type=int, default=256, help="of packed images")
    parser.add_argument("--workers", type=int, default=environment.cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="+", default=["pack", "read", "folder"], choices=["pack", "read", "folder"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(args.probe[0], int(args.probe[1]))))
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="facessl-shards-") as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        folder = args.folder or drawn(Path(temporary) / "drawn", args.images, args.side)
        if "pack" in args.parts:
            results["pack"] = packing(folder, args, Path(temporary))
            if args.small_side and not args.folder:
                small = drawn(Path(temporary) / "small", args.images, args.small_side)
                results["pack_small"] = packing(small, args, Path(temporary))
        if "read" in args.parts:
            results["read"] = reading(folder, args, Path(temporary))
        if "folder" in args.parts:
            results["folder"] = million(Path(temporary) / "million", args.files)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("probe", "out")}
    settings["folder"] = "real faces" if args.folder else f"drawn, {DIFFERENT} different"
    head = {"date": datetime.date.today().isoformat(), "benchmark": "shards", "settings": settings}
    text = json.dumps(head | {"environment": environment.describe(), "results": results})
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


class Part(Source):
    """Images start .. stop of a source."""

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self.source, self.start = source, start
        self.stop = min(stop, len(source))
        self.provides, self.label_names = source.provides, source.label_names

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.start + index]

    def key(self, index: int) -> str:
        return self.source.key(self.start + index)


def drawn(root: Path, count: int, side: int) -> Path:
    """A folder of `count` JPEGs, links to `DIFFERENT` ones."""
    from pipeline import picture

    root.mkdir(parents=True)
    for i in range(min(count, DIFFERENT)):
        (root / f"{i:06d}.jpg").write_bytes(
            simplejpeg.encode_jpeg(picture(side, i), quality=90, colorsubsampling="420")
        )
    for i in range(DIFFERENT, count):
        os.link(root / f"{i % DIFFERENT:06d}.jpg", root / f"{i:06d}.jpg")
    return root


def cpu() -> float:
    """CPU seconds of this process and of those it has waited for."""
    use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in use)


def packing(folder: Path, args: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """Pack all images in each round, beside the bare work on the first of them."""
    source = Part(open_source(str(folder)), 0, args.images)
    files = [source[i].image for i in range(min(len(source), BARE))]  # no few that stay in the cores' caches
    rows = []
    for turn in range(args.rounds):
        out = temporary / f"packed-{turn}"
        one = bare_of_all(files, args.size, args.workers)
        began = cpu(), time.perf_counter()
        pack(source, out, size=args.size, workers=args.workers)
        whole = [(now - then) / len(source) for now, then in zip((cpu(), time.perf_counter()), began, strict=True)]
        shutil.rmtree(out)
        rows.append((*one, *whole, one[0] / whole[0], one[1] / whole[1]))
    bare_cpu, bare_wall, pack_cpu, pack_wall, cpu_ratio, wall_ratio = map(statistics.median, zip(*rows, strict=True))
    return {
        "images": len(source),
        "workers": args.workers,
        "kilobytes_per_image": round(sum(map(len, files)) / len(files) / 1000, 1),
        "bare_images_per_cpu_second": round(1 / bare_cpu),
        "pack_images_per_cpu_second": round(1 / pack_cpu),
        "cpu_ratio": round(cpu_ratio, 3),
        "cpu_ratios": [round(row[4], 3) for row in rows],
        "bare_images_per_second": round(1 / bare_wall),
        "pack_images_per_second": round(1 / pack_wall),
        "wall_ratio": round(wall_ratio, 3),
        "wall_ratios": [round(row[5], 3) for row in rows],
    }


def bare_of_all(files: list[Any], size: int, workers: int) -> tuple[float, float]:
    """CPU seconds and wall seconds per image where `workers` processes do the bare work on `files` at once, each on all
    of them: wall seconds from the first one's beginning to the last one's end."""
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    ready = context.Barrier(workers)

    def work() -> None:
        bare(files[:50], size)
        ready.wait()
        began = time.process_time(), time.perf_counter()
        bare(files, size)
        results.put((time.process_time() - began[0], began[1], time.perf_counter()))

    processes = [context.Process(target=work) for _ in range(workers)]
    for process in processes:
        process.start()
    each = [results.get() for _ in processes]
    for process in processes:
        process.join()
    spent, begun, ended = zip(*each, strict=True)
    done = workers * len(files)
    return sum(spent) / done, (max(ended) - min(begun)) / done


def bare(files: list[Any], size: int) -> None:
    """The work that nobody can avoid."""
    for data in files:
        image = decode(data, key="", min_side=size)
        height, width = image.shape[:2]
        if min(height, width) > size:
            image = resize_to(
                image, round(height * size / min(height, width)), round(width * size / min(height, width))
            )
        simplejpeg.encode_jpeg(image, 90, colorspace="RGB", colorsubsampling="420")


def reading(folder: Path, args: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """Batches of files and of shards in turn."""
    files = open_source(str(folder))
    pack(Part(files, 0, args.images), temporary / "copied", copy=True, workers=args.workers, shard_size=2000)
    sources = {"files": Part(files, 0, args.images), "shards": open_source(str(temporary / "copied"))}
    batches = min(60, len(sources["files"]) // BATCH)
    loaders = {name: iter(loader(source)) for name, source in sources.items()}
    order = list(next(iter(loader(sources["files"]))).index)
    loading: dict[str, list[float]] = {name: [] for name in sources}
    plain: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(batches):
        for name in sorted(sources, reverse=bool(turn % 2)):
            began = time.process_time()
            order = next(loaders[name]).index.tolist()
            loading[name].append(time.process_time() - began)
        for name in sorted(sources, reverse=bool(turn % 2)):
            began = time.process_time()
            for index in order * 4:
                sources[name][index]
            plain[name].append((time.process_time() - began) / 4)
    out: dict[str, Any] = {"batches": batches, "batch_size": BATCH}
    for kind, times in (("loader", loading), ("bytes_only", plain)):
        rates = {name: BATCH / statistics.median(values[2:]) for name, values in times.items()}
        out[kind] = {f"{name}_images_per_cpu_second": round(rate) for name, rate in rates.items()}
        pairs = zip(times["files"][2:], times["shards"][2:], strict=True)
        out[kind]["shards_to_files"] = round(statistics.median(a / b for a, b in pairs), 3)
    return out


def loader(source: Any, workers: int = 0) -> TrainLoader:
    return TrainLoader(source, Geometric(FRA_VIEWS, 112), batch_size=BATCH, seed=0, workers=workers)


def million(root: Path, files: int) -> dict[str, Any]:
    """A large folder beside a small one."""
    pictures = drawn(root / "seed", LINKED, 32)
    names = sorted(pictures.iterdir())
    free = os.statvfs(root)
    began = time.perf_counter()
    for i, place in enumerate(places(root / "large", files)):
        os.link(names[i % LINKED], place)
        if i % 10_000 == 0 and time.perf_counter() - began > 180:
            files = i + 1
            break
    made = time.perf_counter() - began
    out: dict[str, Any] = {"files": files, "made_in_seconds": round(made, 1), "free_inodes": free.f_favail}
    for name, folder in (("small", pictures), ("first_open", root / "large"), ("with_index", root / "large")):
        command = [sys.executable, __file__, "--probe", str(folder), "2"]
        out[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return out


def places(root: Path, count: int) -> Iterator[str]:
    for first in range(0, count, PER_FOLDER):
        folder = root / f"{first // PER_FOLDER:05d}"
        folder.mkdir(parents=True)
        yield from (f"{folder}/face_{i:08d}.jpg" for i in range(first, min(first + PER_FOLDER, count)))


def probe(folder: str, workers: int) -> dict[str, Any]:
    """What opening a folder and loading from it takes, in this process."""
    torch.set_num_threads(1)
    before = memory(os.getpid())
    began, clock = time.perf_counter(), time.process_time()
    source = open_source(folder)
    opened, opened_cpu = time.perf_counter() - began, time.process_time() - clock
    batches = iter(loader(source, workers))
    next(batches)
    first = time.perf_counter() - began
    for _ in range(10):
        next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    each = [memory(int(child)) for child in children]
    return {
        "images": len(source),
        "open_seconds": round(opened, 3),
        "open_cpu_seconds": round(opened_cpu, 3),
        "first_batch_seconds": round(first, 3),
        "main_resident_megabytes": memory(os.getpid())["Rss"],
        "main_resident_megabytes_before": before["Rss"],
        "worker_resident_megabytes": max(m["Rss"] for m in each),
        "worker_private_megabytes": max(m["Private"] for m in each),
    }


def memory(process: int) -> dict[str, int]:
    """MB that are resident, and of these private, of a process."""
    rows = [line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]]
    kilobytes = {row[0].rstrip(":"): int(row[1]) for row in rows}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"Rss": round(kilobytes["Rss"] / 1000), "Private": round(private / 1000)}


if __name__ == "__main__":
    main()
