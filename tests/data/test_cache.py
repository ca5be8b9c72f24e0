"""Decoded images in memory: the same run as without (ram), the same crops to within rounding (device), one copy."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import FIELDS, Batch, Sample
from facessl.data.cache import Cached, Store, fill
from facessl.data.loader import TrainLoader
from facessl.data.order import uniforms, view_rng
from facessl.data.sources.folder import Folder
from facessl.data.sources.synthetic import Synthetic
from facessl.training import pretrain
from facessl.views.batched import Boxes, Cutter, resample
from facessl.views.geometric import DRAWS, Geometric, crop_box, photometric_params
from facessl.views.spec import FRA_VIEWS, View
from tests.helpers import assert_same, weights

#: Enlarged and shrunk crops, the whole image, small crops of their own size (SwAV's).
VIEWS = (*FRA_VIEWS, View(scale=(1.0, 1.0), ratio=(1.0, 1.0)), View(size=0.4, scale=(0.05, 0.14)))


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 with detail at every scale."""
    rng, out = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32)
    for octave in range(5):
        grid = rng.normal(size=(max(2, height >> octave), max(2, width >> octave), 3)).astype(np.float32)
        out += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 2**octave
    return np.clip(128 + 50 * out / out.std(), 0, 255).astype(np.uint8)


class Pictures:
    """Pictures of given sizes with a caption and landmarks each; `reads` counts what was asked for."""

    provides = frozenset({"text", "landmarks"})
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    streaming = False

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.images, self.reads = [picture(h, w, k) for k, (h, w) in enumerate(sizes)], 0

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return f"picture {index}"

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        points = np.full((2, 2), index, np.float32)
        return Sample(self.images[index], key=self.key(index), text=f"caption {index}", landmarks=points)


def folder(path: Path) -> Folder:
    """JPEGs of unlike shapes, one so large that the loader decodes it smaller, a PNG, one that is no image."""
    for k, size in enumerate([(40, 40), (33, 52), (400, 360), (48, 41), (61, 30), (45, 45), (40, 70)]):
        (path / f"{k}.jpg").write_bytes(simplejpeg.encode_jpeg(picture(*size, k), quality=90))
    cv2.imwrite(str(path / "7.png"), picture(300, 300, 9))
    (path / "3.jpg").write_bytes(b"\xff\xd8\xff broken")
    return Folder(path, cache=False)


def batches(source: Any, transform: Any, count: int = 4, **options: Any) -> Iterator[Batch]:
    return islice(TrainLoader(source, transform, **({"batch_size": 4, "seed": 3} | options)), count)


def assert_equal(a: Batch, b: Batch, without: tuple[str, ...] = ()) -> None:
    for name in (f.name for f in fields(Batch) if f.name not in without):
        mine, other = getattr(a, name), getattr(b, name)
        if name in ("views", "params"):
            same = all(torch.equal(x, y) for x, y in zip(mine, other, strict=True))
        else:
            same = torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        assert same, name


@pytest.mark.parametrize("workers", [0, 2])
def test_ram_gives_the_same_batches_and_reads_no_file_again(tmp_path: Path, workers: int) -> None:
    source = folder(tmp_path)
    transform = Geometric(FRA_VIEWS, 24)
    expected = list(batches(source, transform))
    store = fill(source, encoded_from=72, workers=workers)
    assert store.unreadable == 1
    for file in tmp_path.iterdir():
        file.unlink()
    assert any(batch.skipped for batch in expected)
    for a, b in zip(batches(Cached(source, store), transform, workers=workers), expected, strict=True):
        assert_equal(a, b)


def test_device_cuts_what_the_worker_cuts() -> None:
    source = Pictures([(50, 44)] * 16)
    expected = list(batches(source, Geometric(VIEWS, 32)))
    store = fill(source, side=36)
    assert store.size == (50, 44), "images that are all alike are not resized"
    boxes = Boxes(VIEWS, 32, store.size)
    cutter = Cutter(store.tensor(torch.device("cpu")), boxes.sizes)
    for a, b in zip(cutter.over(batches(Cached(source, store), boxes)), expected, strict=True):
        assert_equal(a, b, without=("views",))
        assert a.text is not None
        for mine, other in zip(a.views, b.views, strict=True):
            assert mine.is_contiguous(memory_format=torch.channels_last)
            assert int((mine.int() - other.int()).abs().max()) <= 2


def test_device_shows_the_same_parts_of_images_that_it_resizes() -> None:
    sizes = [(60 + 7 * (k % 5), 90 - 9 * (k % 4)) for k in range(32)]
    source = Pictures(sizes)
    expected = list(batches(source, Geometric(FRA_VIEWS, 24), 8))
    store = fill(source, side=64)
    assert store.size == (64, 64)
    boxes = Boxes(FRA_VIEWS, 24, store.size)
    cutter = Cutter(store.tensor(torch.device("cpu")), boxes.sizes)
    mine, other = [], []
    for a, b in zip(cutter.over(batches(Cached(source, store), boxes, 8)), expected, strict=True):
        mine += [view.float() for view in a.views]
        other += [view.float() for view in b.views]
    x, y = torch.cat(mine), torch.cat(other)
    assert float((x - y).abs().mean()) < 0.1 * float(y.std()), "resampled twice, but the same picture"
    torch.testing.assert_close(x.mean((0, 2, 3)), y.mean((0, 2, 3)), atol=0.5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), y.std((0, 2, 3)), atol=0, rtol=0.05)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (3, 70), (2**32 - 1, 1), (2**32, 1)])
def test_numbers_drawn_at_once_are_those_of_each_generator(seed: int, epoch: int) -> None:
    indices = np.concatenate([np.arange(300), [2**31, 2**32 - 1]])
    expected = [view_rng(seed, epoch, index).random(70) for index in indices.tolist()]
    assert np.array_equal(uniforms(seed, epoch, indices, 70), expected)
    assert uniforms(seed, epoch, indices[:0], 70).shape == (0, 70)


def test_a_batch_is_drawn_as_its_images_are_one_by_one() -> None:
    odd = View(scale=(0.9, 1.0), ratio=(0.5, 3.0), jitter=(1.5, 0.0, 0.2, 0.5), blur=0.5, solarise=0.5, jitter_p=0.5)
    views = (*VIEWS, odd, View(ratio=(2.0, 2.0), scale=(1.0, 1.0)), View(ratio=(0.5, 0.5), scale=(1.0, 1.0)))
    shapes = np.array([(40, 40), (33, 52), (8, 200), (200, 8), (31, 30)] * 40)
    draws = np.random.default_rng(0).random((len(shapes), DRAWS * len(views)))
    rows = Boxes(views, 32, (50, 44)).rows(shapes, draws)
    for image, (height, width) in enumerate(shapes.tolist()):
        factor = np.tile([50 / height, 44 / width], 2)
        for place, view in enumerate(views):
            numbers = draws[image, DRAWS * place : DRAWS * (place + 1)]
            box = np.array([*crop_box(view, height, width, numbers) * factor, numbers[22] < view.flip], np.float32)
            assert np.array_equal(rows[len(views) + place][image], box)
            assert np.array_equal(rows[place][image], photometric_params(view, numbers[23:]))


def test_half_precision_on_a_gpu_rounds_to_the_same_pixels() -> None:
    planes = torch.from_numpy(np.stack([picture(80, 80, k) for k in range(8)])).permute(0, 3, 1, 2).contiguous().float()
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 30, (8, 2)), rng.uniform(10, 50, (8, 2))
    boxes = torch.from_numpy(np.concatenate([corner, side, rng.integers(0, 2, (8, 1))], 1)).float()
    full, half = (resample(x, boxes, 32).int() for x in (planes, planes.half()))
    assert int((full - half).abs().max()) <= 1


@pytest.mark.parametrize("cache", ["ram", "device"])
def test_every_field_of_a_sample_arrives(cache: str) -> None:
    source = Synthetic("", n=8, size=48, captions=True)
    transform: Any = Geometric(FRA_VIEWS, 24)
    expected = next(batches(source, transform))
    store = fill(source, side=None if cache == "ram" else 24, size=None if cache == "ram" else 32)
    if cache == "device":
        assert store.size == (32, 32)
        transform = Boxes(FRA_VIEWS, 24, store.size)
        store.tensor(torch.device("cpu"))
    found = next(batches(Cached(source, store), transform))
    assert_equal(found, expected, without=() if cache == "ram" else ("views", "params"))
    assert source.provides == Cached(source, store).provides
    assert {name for name in FIELDS if getattr(found, name) is not None} >= source.provides


def test_a_size_reduces_the_shorter_side_only() -> None:
    source = Pictures([(60, 90), (100, 50), (30, 40)])
    store = fill(source, size=40)
    assert [store.image(k).shape[:2] for k in range(3)] == [(40, 60), (80, 40), (30, 40)]


def test_what_does_not_fit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    source = Pictures([(100, 100)] * 300)
    with pytest.raises(DataError, match=r"300 decoded images need .*--cache-size 64.*facessl pack --size"):
        fill(source, free=int(300 * 3 * 64**2 / 0.9) + 100)
    assert source.reads <= 256
    fill(source, size=64, free=int(300 * 3 * 64**2 / 0.9) + 100_000)
    with pytest.raises(ConfigError, match="has nothing to size"):
        pretrain.pretrain("synthetic:?n=8", out=str(tmp_path / "run"), cache_size=64)


class Resident:
    """Not views, but MiB of memory: this process's own, and of what is shared with others."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
        assert int(image.max()) >= 0, "every pixel is touched"
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return [], [np.array([int(lines[k].split()[0]) / 1024 for k in ("RssAnon", "RssShmem")], np.float32)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_one_store() -> None:
    source = Pictures([(512, 512)] * 48)
    cached = Cached(source, fill(source))
    whole = 48 * 0.75
    rows = torch.cat([b.params[0] for b in batches(cached, Resident(), 24, batch_size=4, workers=2)])
    for worker in (rows.view(-1, 8, 2)[:, :4], rows.view(-1, 8, 2)[:, 4:]):  # they take turns, batch by batch
        own, shared = worker.flatten(0, 1).unbind(1)
        assert float(shared.max() - shared.min()) > 0.5 * whole, "the test was meant to touch the store"
        assert float(own.max() - own.min()) < 0.25 * whole


def test_another_process_opens_the_same_pixels() -> None:
    store = fill(Pictures([(20, 30)] * 3))
    other: Store = pickle.loads(pickle.dumps(store))
    store.image(1)[...] = 77  # in one, seen in the other
    assert (other.image(1) == 77).all()
    assert other.note(2).text == "caption 2"


def run(out: Path, **settings: Any) -> dict[str, Any]:
    """State after a run of four steps on the smallest ResNet."""
    options = {"hidden": 16, "dim": 8}
    small: dict[str, Any] = {"image_size": 32, "batch_size": 8, "max_steps": 4, "workers": 0, "device": "cpu"}
    parts: dict[str, Any] = {"backbone": "resnet10t", "monitor": {"every": 0}, "method": {"name": "byol", **options}}
    pretrain.pretrain("synthetic:?n=20&size=40", out=str(out), **small, **parts, **settings)
    return weights(out)


def test_a_run_goes_on_to_the_bit_with_its_cache_or_with_ram_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_finish", lambda *_: {})  # exports and report take longer than the run
    whole = {cache: run(tmp_path / cache, cache=cache) for cache in ("none", "device")}
    for cache in ("none", "device"):
        parts = tmp_path / f"{cache}-parts"
        assert run(parts, cache=cache, max_minutes=1e-9)["step"] == 1
        if cache == "device":
            with pytest.raises(ConfigError, match=r"cache: 'device' -> 'none'"):
                run(parts, resume=True)
        assert_same(run(parts, cache="ram" if cache == "none" else cache, resume=True), whole[cache])
    step = max(float((a - b).abs().max()) for a, b in zip(*map(_floats, whole.values()), strict=True))
    assert 0 < step < math.inf


def _floats(state: dict[str, Any]) -> list[torch.Tensor]:
    return [v for v in state.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
