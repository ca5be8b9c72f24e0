"""What crop and pack do alike: one writer, a killed process, nothing written outside the output folder."""

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facessl.cli.main import main
from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data.detect import Face
from facessl.data.skipped import ImageError
from facessl.data.source import open_source
from facessl.data.sources.synthetic import Synthetic
from facessl.tools import crop as crop_module
from facessl.tools import ranks
from facessl.tools.crop import crop as crop_photos
from facessl.tools.jobs import in_order, output_folder
from facessl.tools.pack import pack
from tests.core.test_lock import held
from tests.helpers import as_ranks

COUNT = 12


class Faces(Synthetic):
    """Faces in two folders, the tenth like the fourth; the process that reads the sixth is killed where `deadly`, or
    finds it `damaged`."""

    deadly = damaged = False

    def __init__(self) -> None:
        super().__init__(n=COUNT, size=32)

    def key(self, index: int) -> str:
        return f"photos/{'ab'[index % 2]}/{index}.jpg"

    def __getitem__(self, index: int) -> Sample:
        if self.deadly and index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.damaged and index == 5:
            raise ImageError(self.key(index), "damaged")
        return super().__getitem__(3 if index == 9 else index)


Job = Callable[..., Any]


@pytest.fixture(params=["crop", "pack"])
def job(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Crop, with a detector that finds a face in every photo at once, or pack."""
    face = Face(np.array([4, 4, 28, 28], np.float32), 0.9)
    monkeypatch.setattr(crop_module, "detect", lambda *_, **__: [face])
    if request.param == "crop":
        return lambda out, **options: crop_photos(Faces(), out, size=16, dedupe=0, **options)
    return lambda out, **options: pack(
        Faces(), out, **{"size": 16, "shard_size": 4, "dedupe": 0, "workers": 0} | options
    )


def stop_after(count: int) -> Callable[[int, int], None]:
    def stop(done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return stop


def written(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.fault("E3", "it waited without end")
def test_a_killed_process_is_one_sentence_and_the_next_call_goes_on(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faces, "deadly", True)
    with pytest.raises(DataError, match=r"a worker process died.* with fewer --workers goes on"):
        job(tmp_path / "out", workers=2)
    monkeypatch.setattr(Faces, "deadly", False)
    found = vars(job(tmp_path / "out", workers=2))
    assert (found.get("faces", found.get("packed")), found["duplicates"]) == (COUNT - 1, 1)


@pytest.mark.fault("E3", "one that was killed while it handed over its results was waited for without end")
def test_a_process_killed_in_the_middle_of_a_message_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, real = os.getpid(), Connection._send

    def send(self: Connection, data: bytes) -> None:
        if os.getpid() == parent:
            return real(self, data)
        os.write(self.fileno(), data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Connection, "_send", send)
    with pytest.raises(DataError, match="a worker process died"):
        list(in_order(str, range(4), 2))
    assert not multiprocessing.active_children()


def test_spawned_processes_do_what_forked_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in ("fork", "spawn"):
        monkeypatch.setenv("FACESSL_START_METHOD", start)
        pack(Faces(), tmp_path / start, size=16, shard_size=4, workers=2)
    assert written(tmp_path / "fork") == written(tmp_path / "spawn")
    monkeypatch.setenv("FACESSL_START_METHOD", "thread")
    with pytest.raises(ConfigError, match=r"METHOD=thread is not a way to start a process here: use .*spawn"):
        pack(Faces(), tmp_path / "thread", size=16, workers=2)


def test_two_jobs_at_once_are_refused(job: Job, tmp_path: Path) -> None:
    with held(tmp_path / "out"), pytest.raises(ConfigError, match=r"out is being written by process"):
        job(tmp_path / "out")
    job(tmp_path / "out")


@pytest.mark.fault("E6", "the target of a link was overwritten")
@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize(
    "name",
    [".lock", "faces.csv", "skipped.csv", "b", "b/11.jpg", "duplicates.csv", ".hashes", ".shard-000001.tar.part",
     "shard-000001.tar", "traits.json", "pack.json"],
)  # fmt: skip
def test_links_and_pipes_in_the_output_are_not_written_to(job: Job, tmp_path: Path, name: str, kind: str) -> None:
    out, victim, folder = tmp_path / "out", tmp_path / "victim", tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        job(out, progress=stop_after(8))
    folder.mkdir()
    victim.write_bytes(b"precious")
    link = out / name
    if name == "b" and link.is_dir():
        link.rename(tmp_path / "away")
    else:
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
    os.mkfifo(link) if kind == "pipe" else link.symlink_to(folder if name == "b" else victim)
    with contextlib.suppress(ConfigError, DataError):  # what is in the way; others are replaced
        job(out)
    assert victim.read_bytes() == b"precious"
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"tables": {"../victim": 0}},
        {"tables": {"skipped.csv": -1, "duplicates.csv": 0, ".hashes": 0}},
        {"tables": {"skipped.csv": True, "duplicates.csv": 0, ".hashes": 0}},
        {"tables": []},
        {"shards": [{"name": "../victim", "images": 1, "bytes": 8, "sha256": ""}]},
        {"shards": [1]},
        {"settings": None},
        {"next": "0"},
    ],
)
def test_a_manifest_that_pack_did_not_write_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    pack(Faces(), tmp_path / "out", dedupe=0, workers=0)
    known = json.loads((tmp_path / "out/pack.json").read_text())
    (tmp_path / "out/pack.json").write_text(json.dumps(known | change))
    with pytest.raises(DataError, match=r"pack\.json is not of `facessl pack`, or damaged"):
        pack(Faces(), tmp_path / "out", dedupe=0, workers=0)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_crops_of_odd_names_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [" lead.jpg", "lead.jpg", "lead.png", "lead.bmp", "caf\udce9.jpg", "../up.jpg", "=1.jpg", 'a "b", c.jpg']
    monkeypatch.setattr(crop_module, "detect", lambda *_, **__: [Face(np.array([4, 4, 28, 28], np.float32), 0.9)])
    monkeypatch.setattr(Faces, "key", lambda self, index: f"photos/{keys[index]}")
    monkeypatch.setattr(Faces, "__len__", lambda self: len(keys))
    crop_photos(Faces(), tmp_path / "out", size=16)
    assert crop_photos(Faces(), tmp_path / "out", size=16).new_photos == 0
    again = open_source(f"imagelist:{tmp_path / 'out' / 'faces.csv'}")
    assert len({again.key(i) for i in range(len(again))}) == len(keys)
    assert all(again[i].image for i in range(len(again)))


def test_ranks_write_what_one_process_writes_also_when_one_is_killed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path / "one")
    monkeypatch.setattr(Faces, "deadly", True)
    assert as_ranks(partial(job, tmp_path / "out"), 4) == [0, -signal.SIGKILL, 0, 0]
    assert not list((tmp_path / "out").glob("*.tar"))
    assert as_ranks(partial(job, tmp_path / "out"), 4) == [0, -signal.SIGKILL, 0, 0]
    monkeypatch.setattr(Faces, "deadly", False)
    for _ in range(2):  # the second time there is nothing left to do
        assert as_ranks(partial(job, tmp_path / "out"), 4) == [0, 0, 0, 0]
        assert written(tmp_path / "out") == written(tmp_path / "one")


def kill_writer(done: int, total: int) -> None:
    if total == COUNT:  # a rank of two reports half of the images
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault("E16", "it did its whole part again and left it, all its images, in the output for ever")
def test_a_rank_that_is_overtaken_by_the_one_that_writes_leaves_nothing(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path / "one")
    out, waiting = tmp_path / "out", [0]
    assert -signal.SIGKILL in as_ranks(partial(job, out, progress=kill_writer), 2)
    assert len(list(out.glob(".ranks.*.parts/0*"))) == 3

    @contextlib.contextmanager
    def overtaken(*args: Any, **options: Any) -> Iterator[Path]:
        with output_folder(*args, **options) as path:
            yield path
        if waiting:  # rank 1 has seen what is left, and rank 0 does all of it
            assert as_ranks(partial(job, out), 2, only=[waiting.pop()]) == [0]

    monkeypatch.setattr(ranks, "output_folder", overtaken)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    job(out)
    assert written(out) == written(tmp_path / "one")


@pytest.mark.fault("E16", "what the ranks had left, up to the size of the images, stayed in the output for ever")
def test_one_process_that_ends_the_job_of_ranks_removes_their_files(job: Job, tmp_path: Path) -> None:
    job(tmp_path / "one")
    as_ranks(partial(job, tmp_path / "out", progress=kill_writer), 2)
    job(tmp_path / "out")
    assert written(tmp_path / "out") == written(tmp_path / "one")


@pytest.mark.fault("E9", "a changed file of a rank was a traceback")
@pytest.mark.parametrize("values", [{}, {"rows": 5, "hash": "x"}, 3, {"rows": [[1]], "hash": None, "unreadable": 1}])
def test_what_a_rank_left_is_checked(values: Any, job: Job, tmp_path: Path) -> None:
    job(tmp_path / "one")
    out = tmp_path / "out"
    as_ranks(partial(job, out, progress=kill_writer), 2)
    (block,) = out.glob(f".ranks.*.parts/{0:012d}")
    about, line, rest = block.read_bytes().split(b"\n", 2)
    head = json.loads(line)
    changed = json.dumps({**head, "values": values}).encode()
    block.write_bytes(b"\n".join([about, changed, rest]))
    assert as_ranks(partial(job, out), 2) == [0, 0]
    assert written(out) == written(tmp_path / "one")


@pytest.mark.fault("A6", "an image that ranks could not read was the same error after it was corrected")
def test_an_image_that_was_corrected_is_read_again(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job(tmp_path / "one")
    monkeypatch.setattr(Faces, "damaged", True)
    assert 1 in as_ranks(partial(job, tmp_path / "out", max_bad=0), 2)
    with pytest.raises(DataError, match="1 image of 12 cannot be read"):
        job(tmp_path / "single", max_bad=0)
    monkeypatch.setattr(Faces, "damaged", False)
    assert as_ranks(partial(job, tmp_path / "out", max_bad=0), 2) == [0, 0]
    job(tmp_path / "single", max_bad=0)
    assert written(tmp_path / "out") == written(tmp_path / "single") == written(tmp_path / "one")


@pytest.mark.fault("C2", "each of the others said that it had found no face, or packed no image")
@pytest.mark.parametrize("command", ["crop", "pack"])
def test_one_rank_tells_the_result(command: str, job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        Image.fromarray(np.full((32, 32, 3), 60 * i, np.uint8)).save(photos / f"{i}.png")
    for _ in range(2):  # the second time there is nothing left to do
        as_ranks(lambda: main([command, str(photos), "--out", str(tmp_path / "out"), "--workers", "0"]), 3)
        (told,) = map(json.loads, capfd.readouterr().out.splitlines())
        assert told[{"crop": "faces", "pack": "packed"}[command]] == 4


@pytest.mark.parametrize("stopped", [4, 9, 10])
def test_a_near_duplicate_is_left_out_and_named_also_after_a_stop(job: Job, tmp_path: Path, stopped: int) -> None:
    job(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "out", progress=stop_after(stopped))
    assert job(tmp_path / "out").duplicates == 1
    _, (key, first, bits) = [line.split(",") for line in (tmp_path / "out/duplicates.csv").read_text().splitlines()]
    assert key == "photos/b/9.jpg"
    assert first.removeprefix("photos/") == "b/3.jpg"
    assert bits == "0"
    assert written(tmp_path / "out") == written(tmp_path / "one")
