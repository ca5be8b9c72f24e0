"""Shards of `facessl pack`: what comes back, the same bytes after any stop, refusals, near-duplicates."""

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import FIELDS, Sample
from facessl.data.decode import decode
from facessl.data.source import open_source
from facessl.data.sources.synthetic import Synthetic
from facessl.tools.pack import pack
from facessl.tools.phash import Near, phash
from facessl.tools.shards import verify
from tests.contract.test_sources import EXAMPLES
from tests.helpers import read_table

COUNT = 12


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic faces of 40 x 30 pixels as JPEG files."""
    root = tmp_path_factory.mktemp("pack") / "faces"
    drawn = Synthetic(n=COUNT, size=40)
    for i in range(COUNT):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[i % 2] / f"{i}.jpg").write_bytes(
            simplejpeg.encode_jpeg(np.ascontiguousarray(drawn[i].image[5:35]))
        )
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_source_comes_back_with_all_it_provides(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = open_source(EXAMPLES[name](tmp_path / "source"))
    pack(source, tmp_path / "packed", size=0, copy=True, workers=0, shard_size=4)
    again: Any = open_source(str(tmp_path / "packed"))
    assert len(again) == len(source)
    assert again.provides == source.provides
    assert (again.label_names, again.attribute_names) == (source.label_names, source.attribute_names)
    for member in ("layout", "mask_names", "group_names", "mask_flip"):
        assert list(getattr(again, member) or ()) == list(getattr(source, member) or ()), member
    for member in ("pairs", "same", "folds"):
        assert np.array_equal(getattr(again, member), getattr(source, member)), member
    assert {k: v.tolist() for k, v in again.subsets.items()} == {k: v.tolist() for k, v in source.subsets.items()}
    for i in range(len(source)):
        one, other = source[i], again[i]
        assert np.array_equal(shown(one), shown(other))
        for field in FIELDS & source.provides:
            a, b = getattr(one, field), getattr(other, field)
            assert np.array_equal(a, b), field
            assert not isinstance(a, np.ndarray) or a.dtype == b.dtype
    stream: Any = open_source(f"webdataset:{tmp_path / 'packed'}?streaming=true")
    assert stream.provides == source.provides
    assert stream.label_names == source.label_names


def shown(sample: Sample) -> np.ndarray:
    return decode(sample.image, key="x") if isinstance(sample.image, bytes) else sample.image


class Marked(Synthetic):
    """Synthetic faces of 96 x 64 pixels with what lies in pixels."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample.image, sample.mask = sample.image[:64].copy(), sample.mask[:64].copy()  # type: ignore[index]
        return sample


def test_what_lies_in_pixels_moves_along(tmp_path: Path) -> None:
    source = Marked(n=2, size=96)
    pack(source, tmp_path / "packed", size=32, workers=0)
    packed, stored = open_source(str(tmp_path / "packed"))[1], source[1]
    assert shown(packed).shape == (32, 48, 3)
    assert packed.mask.shape == (32, 48)
    # Pixel i of the small image covers 2 i - 0.5 .. 2 i + 1.5 of the large one.
    np.testing.assert_allclose(packed.landmarks, (stored.landmarks + 0.5) / 2 - 0.5, atol=1e-4)
    np.testing.assert_allclose(packed.box, (stored.box + 0.5) / 2 - 0.5, atol=1e-4)
    means = stored.image.reshape(32, 2, 48, 2, 3).mean((1, 3))  # type: ignore[union-attr]
    assert np.abs(shown(packed) - means).mean() < 6
    blocks = stored.mask.reshape(32, 2, 48, 2).transpose(0, 2, 1, 3).reshape(32, 48, 4)  # type: ignore[union-attr]
    assert (packed.mask[..., None] == blocks).any(2).all(), "each class is that of a pixel in its place"  # type: ignore[index]


def test_shards_do_not_depend_on_workers_or_stops(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also stopped between every two steps that change the disk."""
    settings: dict[str, Any] = {"size": 24, "shard_size": 5, "dedupe": 0}
    shutil.copytree(faces, tmp_path / "faces")
    shutil.copy(tmp_path / "faces/a/0.jpg", tmp_path / "faces/b/00.jpg")
    (tmp_path / "faces/a/1.jpg").write_bytes(b"no image")
    source = str(tmp_path / "faces")
    found = pack(source, tmp_path / "whole", workers=2, max_bad=0.5, **settings)
    assert (found.packed, found.skipped, found.duplicates, found.shards) == (COUNT, 1, 1, 3)
    expected = content(tmp_path / "whole")
    again = pack(source, tmp_path / "whole", workers=0, max_bad=0.5, **settings)
    assert (again.before, again.packed, content(tmp_path / "whole")) == (COUNT + 2, COUNT, expected)
    assert [row["key"] for row in read_table(tmp_path / "whole/skipped.csv")] == [str(tmp_path / "faces/a/1.jpg")]
    names = [(Path(row["key"]).name, Path(row["duplicate_of"]).name, row["distance"])
             for row in read_table(tmp_path / "whole/duplicates.csv")]  # fmt: skip
    assert names == [("00.jpg", "0.jpg", "0")]

    monkeypatch.setattr(os, "fsync", lambda _: None)
    for steps in range(100):
        left = [steps]
        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename"):
                patch.setattr(os, name, stopping(getattr(os, name), left))
            try:
                pack(source, tmp_path / "stopped", workers=0, max_bad=0.5, **settings)
                break
            except Stop:
                pass
        pack(source, tmp_path / "stopped", workers=0, max_bad=0.5, **settings)
        assert content(tmp_path / "stopped") == expected, f"stopped after {steps} steps"
        shutil.rmtree(tmp_path / "stopped")
    assert 20 < steps < 99


class Stop(Exception):
    """As if the process had been killed here."""


def stopping(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """`real`, which raises once it and its like were called `left[0]` times."""

    def step(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return real(*args)

    return step


def test_shards_of_a_size_in_bytes_keep_to_it(tmp_path: Path) -> None:
    pack("synthetic:?n=14&size=400", tmp_path / "packed", copy=True, shard_size="1MB", workers=0)
    sizes = [p.stat().st_size for p in sorted((tmp_path / "packed").glob("*.tar"))]
    assert len(sizes) > 2
    assert all(size > 750_000 for size in sizes[:-1])
    assert max(sizes) <= 1_000_000


def test_other_tools_can_read_the_tars(faces: Path, tmp_path: Path) -> None:
    pack(str(faces), tmp_path / "packed", workers=0)
    with tarfile.open(tmp_path / "packed/shard-000000.tar") as archive:
        names = archive.getnames()
        row = json.load(archive.extractfile("000000007.json"))  # type: ignore[arg-type]
    assert names[:4] == ["000000000.jpg", "000000000.json", "000000000.cls", "000000001.jpg"]
    assert row["key"] == str(faces / "b/11.jpg")
    assert row["label_name"] == "b"
    assert shown(open_source(str(tmp_path / "packed"))[0]).shape == (30, 40, 3), "not enlarged"


def test_other_settings_and_files_are_refused(faces: Path, tmp_path: Path) -> None:
    def again(name: str, **options: Any) -> None:
        pack(str(tmp_path / name), tmp_path / "packed", **({"size": 24, "workers": 0} | options))

    shutil.copytree(faces, tmp_path / "faces")
    shutil.copytree(faces, tmp_path / "other")
    again("faces")
    with pytest.raises(ConfigError, match=r"begun with quality=90, and now it is quality=80"):
        again("faces", quality=80)
    with pytest.raises(ConfigError, match=r"begun with source="):
        again("other")
    (tmp_path / "faces/a/0.jpg").rename(tmp_path / "faces/a/zz.jpg")
    with pytest.raises(ConfigError, match=r"the files or labels of .* have changed"):
        again("faces")


def test_other_peoples_files_are_left_alone(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/shard-000000.tar").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"full is not empty, and its files are not of an earlier pack"):
        pack(str(faces), tmp_path / "full", workers=0)
    assert content(tmp_path / "full") == {"shard-000000.tar": b"mine"}
    with pytest.raises(ConfigError, match=r"cannot lie inside the images"):
        pack(str(faces), faces / "packed", workers=0)


def test_verify_names_damaged_missing_and_foreign_shards(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack(str(faces), folder, shard_size=5, workers=0)
    assert verify(folder)["complete"]
    data = bytearray((folder / "shard-000001.tar").read_bytes())
    data[700] ^= 1
    (folder / "shard-000001.tar").write_bytes(data)
    (folder / "shard-000002.tar").unlink()
    (folder / "strange.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 shards .* shard-000001\.tar, shard-000002\.tar, strange\.tar"):
        verify(folder)


def test_too_many_unreadable_images_stop_it_and_a_larger_share_goes_on(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    (tmp_path / "faces/a/0.jpg").write_bytes(b"no image")
    source = str(tmp_path / "faces")
    with pytest.raises(
        DataError, match=r"1 image of 12 cannot be read, more than the 0 that max_bad allows .*a/0\.jpg"
    ):
        pack(source, tmp_path / "packed", workers=0, max_bad=0)
    assert pack(source, tmp_path / "packed", workers=0).skipped == 1


def test_near_duplicates_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for distance in (0, 3, 10):
        near, kept = Near(distance), []
        centers = rng.integers(0, 2**63, 20, dtype=np.uint64)
        for index in range(300):
            value = int(centers[index % 20])
            for bit in rng.choice(64, int(rng.integers(0, 8)), replace=False).tolist():
                value ^= 1 << bit
            apart = [((value ^ other).bit_count(), owner) for owner, other in kept]
            best = min((pair for pair in apart if pair[0] <= distance), default=None)
            assert near.find(value) == (None if best is None else best[::-1])
            if best is None:
                near.add(value, index)
                kept.append((index, value))


def test_hash_survives_resizing_and_jpeg_but_not_another_face() -> None:
    drawn = Synthetic(n=6, size=128)
    images = [np.asarray(drawn[i].image) for i in range(6)]
    for image in images:
        small = decode(simplejpeg.encode_jpeg(np.ascontiguousarray(image[::2, ::2]), quality=50), key="x")
        assert (phash(image) ^ phash(small)).bit_count() <= 6
    others = [(phash(a) ^ phash(b)).bit_count() for i, a in enumerate(images) for b in images[:i]]
    assert min(others) > 10
