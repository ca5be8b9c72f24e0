"""Batches: the same for every number of workers and ranks, resumable at any step, robust against bad images."""

import copy
import multiprocessing
import resource
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from facessl.core.errors import ConfigError, DataError, TrainingError
from facessl.core.types import Batch, Sample
from facessl.data import workers as worker_module
from facessl.data.loader import EvalLoader, OneView, SampleViews, TrainLoader, view_rng
from facessl.data.skipped import MAX_BAD_IN_ROW
from facessl.data.source import Source, open_source
from facessl.data.sources.folder import Folder
from facessl.views.augment import Augment
from facessl.views.geometric import Geometric
from facessl.views.spec import View
from facessl.views.supervised import Supervised

from . import make

SHARED = Path(__file__).parents[2].parent / "shared"


class Views:
    """Two views of unlike size: a random corner, and the mean color plus a draw; parameters tell the draw."""

    sizes: tuple[int, ...] = ()
    reduction: Any = None
    rng: Any = None

    def draw(self, rng: np.random.Generator | None) -> Any:
        drawn = copy.copy(self)
        drawn.rng = rng
        return drawn

    def __call__(self, sample: Sample, image: np.ndarray, out: Sequence[np.ndarray] = ()) -> SampleViews:
        y, x = self.rng.integers(0, 8, 2)
        draw = self.rng.random(3, dtype=np.float32)
        small = np.full((4, 4, 3), image.mean() * draw[0], np.uint8)
        return sample, [image[y : y + 8, x : x + 8], small], [draw, draw[:1]], []


class Records(Source):
    """Images made in memory; `reads` counts them, those in `bad` are no images."""

    label_names = ("even", "odd")

    def __init__(self, n: int, bad: frozenset[int] = frozenset()) -> None:
        columns = {"label": np.arange(n) % 2, "landmarks": np.arange(n)[:, None, None].repeat(2, 1).repeat(2, 2)}
        super().__init__((f"image {index}" for index in range(n)), columns)
        self.bad, self.reads = bad, 0

    def image(self, index: int) -> bytes:
        self.reads += 1
        return b"broken" if index in self.bad else make.jpeg(index)


def loader(source: object, **options: object) -> TrainLoader:
    return TrainLoader(source, Views(), **({"batch_size": 4, "seed": 3} | options))  # type: ignore[arg-type]


def take(batches: TrainLoader, count: int) -> list[Batch]:
    return list(islice(batches, count))


def same(a: Batch, b: Batch) -> bool:
    tensors = zip([*a.views, *a.params, a.index, a.label], [*b.views, *b.params, b.index, b.label], strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and (a.keys, a.skipped) == (b.keys, b.skipped)


def joined(parts: list[Batch]) -> Batch:
    """The batches of all ranks as one."""
    cat = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("index", "label")}
    views = [torch.cat(v) for v in zip(*(p.views for p in parts), strict=True)]
    params = [torch.cat(v) for v in zip(*(p.params for p in parts), strict=True)]
    lists = {name: [x for p in parts for x in getattr(p, name)] for name in ("keys", "skipped")}
    return Batch(views=views, params=params, **cat, **lists)  # type: ignore[arg-type]


BAD = frozenset({2, 7, 8, 17})


class Noise(Records):
    """Pictures in which every crop looks different."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if index not in self.bad:
            sample.image = np.random.default_rng(index).integers(0, 256, (40, 40, 3), np.uint8)
        return sample


@pytest.mark.parametrize("workers", [0, 1])
def test_views_made_in_place_are_those_of_the_call(workers: int) -> None:
    geometric = Geometric((View(), View(size=0.5, scale=(0.05, 0.2))), 32)
    seen = 0
    for batch in islice(TrainLoader(Noise(18, BAD), geometric, batch_size=5, seed=3, workers=workers), 3):
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in batch.views)
        assert len(batch.views[0]) == len(batch) == 5
        for row, index in enumerate(batch.index.tolist()):
            if (index - 1) % 18 in BAD:  # perhaps a substitute, with the views of the image that it stands for
                continue
            sample = Noise(18)[index]
            expected = geometric.draw(view_rng(3, 0, index))(sample, np.asarray(sample.image))
            for made, view in zip(batch.views, expected[1], strict=True):
                assert np.array_equal(made[row].permute(1, 2, 0), view)
            for drawn, rows in zip((batch.params, batch.crops), expected[2:], strict=True):
                assert all(np.array_equal(a[row], b) for a, b in zip(drawn, rows, strict=True))
            seen += 1
    assert seen > 8


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_do_not_change_a_batch(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESSL_START_METHOD", start)
    expected = take(loader(Records(18, BAD)), 9)
    found = take(loader(Records(18, BAD), workers=2), 9)
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_ranks_together_see_the_batches_of_one() -> None:
    expected = take(loader(Records(18, BAD)), 9)
    parts = [take(loader(Records(18, BAD), rank=rank, world_size=2), 9) for rank in (0, 1)]
    assert all(len(batch) == 2 for part in parts for batch in part)
    assert all(same(a, joined(list(b))) for a, *b in zip(expected, *parts, strict=True))


@pytest.mark.parametrize("start", [1, 3, 4, 6, 9])
def test_a_start_in_the_middle_gives_the_same_batches_and_reads_no_others(start: int) -> None:
    expected = take(loader(Records(18)), start + 3)
    source = Records(18)
    found = take(loader(source, start_step=start), 3)
    assert all(same(a, b) for a, b in zip(expected[start:], found, strict=True))
    assert source.reads == 12


def test_an_epoch_shows_every_image_at_most_once_in_a_new_order() -> None:
    seen = [torch.cat([b.index for b in take(loader(Records(18), start_step=4 * e), 4)]).tolist() for e in (0, 1)]
    assert len(set(seen[0])) == len(set(seen[1])) == 16
    assert seen[0] != seen[1]
    assert seen[0] != torch.cat([b.index for b in take(loader(Records(18), seed=4), 4)]).tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    take(loader(Records(18), workers=workers), 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index,union-attr]


@pytest.mark.parametrize("workers", [0, 1])
def test_layout_of_a_batch(workers: int) -> None:
    (batch,) = take(loader(Records(18), workers=workers), 1)
    assert [tuple(v.shape) for v in batch.views] == [(4, 3, 8, 8), (4, 3, 4, 4)]
    assert all(v.dtype == torch.uint8 and v.is_contiguous(memory_format=torch.channels_last) for v in batch.views)
    assert [tuple(p.shape) for p in batch.params] == [(4, 3), (4, 1)]
    assert batch.keys == [f"image {i}" for i in batch.index]
    assert batch.label.tolist() == [i % 2 for i in batch.index]
    assert batch.landmarks[:, 0, 0].tolist() == batch.index.tolist()
    assert batch.text is None


def test_bad_images_are_replaced_by_the_next_and_reported() -> None:
    skipped = {}
    for batch in take(loader(Records(18, BAD), batch_size=9), 2):
        skipped |= dict(batch.skipped)
        assert not BAD & set(batch.index.tolist())
        assert len(batch) == 9
    assert set(skipped) == {f"image {i}" for i in BAD}
    assert "not a JPEG" in skipped["image 2"]


def test_a_substitute_that_is_in_the_batch_already_gets_views_of_its_own() -> None:
    (batch,) = take(loader(Records(4, frozenset({0}))), 1)
    twice = (batch.index == 1).nonzero().flatten()
    assert len(twice) == 2
    assert not torch.equal(batch.params[0][twice[0]], batch.params[0][twice[1]])


@pytest.mark.parametrize(("n", "tried"), [(6, 6), (300, MAX_BAD_IN_ROW)])
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_sentence(n: int, tried: int, workers: int) -> None:
    source = Records(n, frozenset(range(n)))
    with pytest.raises(DataError, match=rf"^{tried} images in a row could not be read: cannot read the image image"):
        take(loader(source, workers=workers), 1)


@pytest.mark.fault("E2", "a worker that was killed while the others started was waited for during twenty minutes")
@pytest.mark.fault("E2", "one that was killed while a checkpoint was saved was a traceback from there")
def test_a_worker_that_dies_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies is one sentence where a batch is waited for, and nothing elsewhere."""
    monkeypatch.setattr(worker_module, "_POLL", 0.1)
    batches = iter(loader(Records(18), workers=1))
    next(batches)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    with pytest.raises(TrainingError, match=r"a loader process died \(.*\): most often memory ran out.*fewer workers"):
        list(batches)


@pytest.mark.fault("E2", "one that was killed while it handed over a batch was a traceback")
def test_a_worker_that_dies_with_a_batch_in_its_hands_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Mock(side_effect=ConnectionResetError(104, "Connection reset by peer"))
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken)
    with pytest.raises(TrainingError, match=r"a loader process died \(.*reset by peer\): most often memory ran out"):
        take(loader(Records(18), workers=1), 1)


@pytest.mark.fault("B8", "a small /dev/shm ended in a traceback after 67 s, and `ulimit -f` in one at once")
@pytest.mark.parametrize(
    "said",
    ["unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
     "unable to resize file </torch_1> to the right size: File too large (27)"],
)  # fmt: skip
def test_too_little_shared_memory_is_explained_at_once(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little shared memory is one sentence, and no process stays."""

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", Mock(side_effect=RuntimeError(said)))
    with pytest.raises(TrainingError, match=r"too little shared memory \(/dev/shm.*\): enlarge it"):
        take(TrainLoader(Noise(18), Geometric((View(),), 8), batch_size=4, seed=0, workers=2), 1)
    assert not multiprocessing.active_children()


@pytest.mark.fault("E2", "a worker without descriptors left the command waiting for ever")
def test_too_few_open_files_are_told_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too low a limit of open files is one sentence before any worker starts."""

    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", Mock(side_effect=ValueError("not allowed to raise maximum limit")))
    with pytest.raises(TrainingError, match=r"need up to 160 open files, and 64 are allowed: .*ulimit -n"):
        take(loader(Records(18), workers=2), 1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 19}, "19 images is larger than the source, which has 18: use a batch size of 18"),
        ({"batch_size": 20, "world_size": 4}, "which has 18: use a batch size of 16"),
        ({"batch_size": 6, "world_size": 4}, "a batch of 6 images cannot be split evenly over 4 ranks: use 4"),
        ({"batch_size": 0}, "the batch size is 0, but it must be 1 or more"),
        ({"seed": -1}, "the seed is -1"),
        ({"workers": -1}, "the number of workers is -1"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        loader(Records(18), **options)


def test_the_reduction_of_the_transform_reaches_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(make.jpeg(50, size=(64, 96)))
    sizes: list[tuple[int, ...]] = []

    class Look(Views):
        def reduction(self, height: int, width: int) -> int:  # type: ignore[override]
            return 2

        def __call__(self, sample: Sample, image: np.ndarray, out: Sequence[np.ndarray] = ()) -> SampleViews:
            sizes.append(image.shape)
            return super().__call__(sample, image, out)

    take(TrainLoader(Folder(tmp_path), Look(), batch_size=1, seed=0), 1)
    assert sizes == [(48, 32, 3)]


def halved(image: np.ndarray) -> np.ndarray:
    return image[::2, ::2]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_every_readable_image_once_in_order(workers: int) -> None:
    evaluation = EvalLoader(Records(18, frozenset({0, 4, 5, 6, 7, 17})), OneView(halved), batch_size=4, workers=workers)
    for _ in range(2):  # a loader can be used again
        batches = list(evaluation)
        assert torch.cat([b.index for b in batches]).tolist() == [1, 2, 3, *range(8, 17)]
        assert [len(b) for b in batches] == [3, 4, 4, 1]
        assert [make.shade(i.permute(1, 2, 0).numpy()) for i in batches[1].views[0]] == [8, 9, 10, 11]
        assert batches[0].views[0].shape == (3, 3, 8, 8)
        assert batches[0].params == []
        assert [key for key, _ in batches[1].skipped] == ["image 4", "image 5", "image 6", "image 7"]
        assert [key for key, _ in evaluation.skipped] == [f"image {i}" for i in (0, 4, 5, 6, 7, 17)]


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_stops_at_too_many_unreadable_images(workers: int) -> None:
    bad = Records(20, frozenset({3, 7}))
    assert sum(map(len, EvalLoader(bad, OneView(halved), batch_size=4, max_bad=0.1, workers=workers))) == 18
    with pytest.raises(DataError, match=r"2 images of 20 cannot be read, more than the 1 .*\(the last: image 7: not a"):
        list(EvalLoader(bad, OneView(halved), batch_size=4, max_bad=0.05, workers=workers))


@pytest.fixture
def stream(tmp_path: Path) -> str:
    """Three shards of five images, one of them broken."""
    for n in range(3):
        members = {f"{i:03d}.jpg": make.jpeg(i) for i in range(5 * n, 5 * n + 5)}
        if n == 1:
            members["007.jpg"] = b"broken"
        make.shard(tmp_path / f"{n}.tar", members)
    return f"pipe:cat {tmp_path}/{{0..2}}.tar"


@pytest.mark.parametrize("workers", [0, 2, 8])
def test_a_stream_trains_without_end(stream: str, workers: int) -> None:
    found = take(loader(open_source(stream), workers=workers), 12)
    assert all(len(b) == 4 and b.index.tolist() == [-1] * 4 for b in found)
    keys = {key.rsplit("/", 1)[1] for b in found for key in b.keys}
    assert keys == {f"{i:03d}.jpg" for i in range(15) if i != 7}
    assert {key.rsplit("/", 1)[1] for b in found for key, _ in b.skipped} == {"007.jpg"}


def test_a_stream_says_what_its_views_show(stream: str) -> None:
    batch = next(iter(TrainLoader(open_source(stream), Geometric((View(), View()), 8), batch_size=4, seed=3)))
    assert [crop.shape for crop in batch.crops] == [(4, 5), (4, 5)]
    assert not torch.equal(*batch.crops)


def test_labels_of_a_stream_are_moved_in_evaluation(stream: str) -> None:
    for batch in EvalLoader(open_source(stream), Supervised(Augment(), 8, train=False), batch_size=4):
        assert batch.frame is not None
        assert batch.params == []


def test_a_stream_is_evaluated_once(stream: str) -> None:
    batches = list(EvalLoader(open_source(stream), OneView(halved), batch_size=4, workers=8))
    assert sorted(key.rsplit("/", 1)[1] for b in batches for key in b.keys) == [
        f"{i:03d}.jpg" for i in range(15) if i != 7
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"start_step": 5}, "cannot resume at step 5 of a stream: exact resume needs random access"),
        ({"world_size": 4}, "a stream of 3 shards cannot feed 4 ranks"),
    ],
)
def test_what_a_stream_cannot_do(stream: str, options: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        loader(open_source(stream), **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_breaks_names_the_shard(stream: str, tmp_path: Path, workers: int) -> None:
    source = open_source(stream)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"^cannot read the shard pipe:\.\.\. \(2 of 3\): "):
        take(loader(source, workers=workers), 12)


@pytest.mark.shared
def test_real_faces() -> None:
    shards, folder = open_source(f"{SHARED}/data/pretrain/*.tar"), open_source(f"{SHARED}/data/expression/train")
    assert (len(shards), len(folder), len(folder.label_names)) == (23_242, 10_079, 7)
    for source in (shards, folder):
        batches = take(TrainLoader(source, Views(), batch_size=256, seed=0), 2)
        assert all(len(set(b.keys)) == 256 and not b.skipped for b in batches)
