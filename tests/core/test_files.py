"""Checkpoints: atomic, two kept, and what is broken or hostile is refused in one sentence."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch

from facessl.core import environment, files
from facessl.core.errors import CheckpointError


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/facessl-was-here",)


def broken(kind: str, path: Path) -> None:
    if kind == "truncated":
        torch.save({"a": torch.randn(1000)}, path)
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "empty":
        path.touch()
    elif kind == "hostile":
        torch.save({"state_dict": Evil()}, path)
    elif kind == "hostile pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "text":
        path.write_text("Not Found\n" * 20)
    elif kind == "list":
        torch.save([1, 2, 3], path)


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "hostile", "hostile pickle", "text", "list"])
def test_unusable_checkpoint_is_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    broken(kind, path)
    with pytest.raises(CheckpointError) as caught:
        files.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/facessl-was-here").exists()


def test_two_newest_are_kept_and_last_is_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        files.save_run(tmp_path, step, {"config": {}, "method": {"w": torch.tensor(float(step))}})
    assert [p.name for p in files.steps(tmp_path)] == ["step-00000002.ckpt", "step-00000003.ckpt"]
    assert files.read_run(tmp_path / "last.ckpt")["step"] == 3


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.save_run(tmp_path, 1, {"config": {}, "method": {}})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; earlier .*: free space, then --resume"):
        files.save_run(tmp_path, 2, {"config": {}, "method": {}})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["last.ckpt", "step-00000001.ckpt"]
    assert files.read_run(tmp_path / "last.ckpt")["step"] == 1


@pytest.mark.fault("E15", "too little memory was told as a disk that is full, without a reason", now="One sentence")
def test_too_little_memory_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "save", short)
    with pytest.raises(CheckpointError, match=r"ckpt: not enough memory; .* free memory, then"):
        files.save_run(tmp_path, 1, {"method": {}})


@pytest.mark.fault("C1", "a CPU with more threads than free cores was many times slower, without a word")
def test_more_threads_than_free_cores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cores", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.1, 0, 0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    told = environment.use_threads(None, "cpu")
    assert told == (
        "hint: torch computes with 4 threads, and of the 4 cores here 3 are busy: --threads 1 may be several times as "
        "fast"
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert environment.use_threads(None, "cpu") is None


@pytest.mark.fault("E16", "`predict` and `embed` that were killed left temporary files for good")
def test_the_next_call_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    dead, other = multiprocessing.Process(target=int), f".b.png.{os.getppid()}.tmp"
    dead.start()
    dead.join()
    left = {
        name: tmp_path / "out" / name for name in (f".a.png.{dead.pid}.tmp", f".b.png.{dead.pid}.tmp", other, "b.png")
    }
    for path in left.values():
        path.parent.mkdir(exist_ok=True)
        path.touch()
    files.check_output(tmp_path / "out" / "a.png")
    assert [name for name, path in left.items() if path.exists()] == [f".b.png.{dead.pid}.tmp", other, "b.png"]
    files.check_output(tmp_path / "out", folder=True)
    assert [name for name, path in left.items() if path.exists()] == [other, "b.png"]
