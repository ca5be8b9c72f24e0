"""`facessl pretrain photos/ --crop`: photos are cropped once, into the cache, and the run trains on the crops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facessl.cli import main
from facessl.core.errors import ConfigError, DataError
from facessl.core.yaml_file import read_yaml
from facessl.data.detect import Face
from facessl.data.source import open_source
from facessl.tools import crop as crop_module
from facessl.tools.crop import cached_crops, crop
from tests.data.make import folder, jpeg
from tests.helpers import TINY, as_ranks


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten photos, in each of which a detector finds a face at once; a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    face = Face(np.array([2, 2, 14, 14], np.float32), 0.9)
    monkeypatch.setattr(crop_module, "detect", lambda *_, **__: [face])
    return folder(tmp_path / "photos", *(f"{'ab'[number % 2]}/{number}.jpg" for number in range(10)))


def test_photos_are_cropped_once_and_the_run_is_resumed(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, run = ["pretrain", str(photos), "--crop", *TINY[1:]], str(tmp_path / "run")
    assert main([*words, "--max-steps", "2", "--max-minutes", "0.0001", "--out", run]) == 0
    (crops,) = (tmp_path / "cache" / "facessl").glob("crops-*/")
    said = capsys.readouterr().err
    assert f"10 faces of 10 photos -> {crops}\n" in said
    assert read_yaml(Path(run) / "config.yaml")["source"] == str(crops)
    assert len(open_source(str(crops))) == 10
    monkeypatch.setattr(crop_module, "detect", lambda *_, **__: pytest.fail("a photo was cropped again"))
    assert main(["pretrain", "--resume", "--out", run]) == 0
    monkeypatch.chdir(tmp_path)
    words[1] = "photos"
    assert main([*words, "--max-steps", "2", "--resume", "--out", run]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["finished"] is True
    assert main(["pretrain", str(crops), "--crop", *TINY[1:], "--max-steps", "2", "--out", str(tmp_path / "two")]) == 0
    assert f"{crops} has crops already\n" in capsys.readouterr().err
    assert main(["finetune", "none", "photos", "--crop"]) == 2


def test_changed_photos_get_other_crops_and_a_folder_of_crops_is_taken_as_it_is(photos: Path, tmp_path: Path) -> None:
    first, _ = cached_crops(str(photos))
    (photos / "a" / "new.jpg").write_bytes(jpeg(99))
    second, done = cached_crops(str(photos))
    assert first != second
    assert (done.faces, done.new_faces) == (11, 11)
    crop(photos, tmp_path / "faces", size=64)
    assert cached_crops(str(tmp_path / "faces")) == (str(tmp_path / "faces"), None)


def test_photos_without_a_face_are_one_sentence(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_module, "detect", lambda *_, **__: [])
    for _ in range(2):
        with pytest.raises(DataError, match=r"no face was found in the 10 photos of .*photos: name photos of people"):
            cached_crops(str(photos))


def test_every_rank_waits_for_the_crops_of_all(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job() -> None:
        crops, done = cached_crops(str(photos))
        assert done.faces == len(open_source(crops)) == 10

    for _ in range(2):
        assert as_ranks(job, 3) == [0, 0, 0]
    (crops,) = (tmp_path / "cache" / "facessl").glob("crops-*/")
    assert not list(crops.glob(".ranks*"))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="ranks on several machines"):
        cached_crops(str(photos))


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        ({"dedupe": 4}, {}, "was made with --dedupe 4, and this call is without --dedupe"),
        (
            {"all_faces": True},
            {"min_size": 60},
            "was made with --all-faces, with --min-size 0, and this call is without --all-faces, with --min-size 60",
        ),
        ({}, None, "crop.json does not hold the settings of this version"),
    ],
)
def test_a_folder_of_other_settings_is_refused_by_those_that_differ(
    first: dict[str, Any], second: dict[str, Any] | None, differs: str, photos: Path, tmp_path: Path
) -> None:
    crop(photos, tmp_path / "faces", **first)
    if second is None:
        (tmp_path / "faces" / "crop.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"{differs}.*: (use the same flags, or )?name another folder$"):
        crop(photos, tmp_path / "faces", **(second or {}))
