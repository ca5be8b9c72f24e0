"""What a killed process leaves is removed, and nothing else."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from facessl.core import files


@pytest.mark.fault("E16", "`predict` and `embed` that were killed left temporary files for good")
def test_the_next_call_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    dead = multiprocessing.Process(target=lambda: files.temporary_beside(tmp_path / "out" / "a.png").touch())
    kept = [files.temporary_beside(tmp_path / "a.png"), tmp_path / "b.png", tmp_path / ".facessl-0.tmp"]
    (tmp_path / "out").mkdir()
    dead.start()
    dead.join()
    for path in kept:
        path.touch()
    (left,) = (tmp_path / "out").iterdir()
    files.check_output(tmp_path / "c.png")
    assert left.exists()
    files.check_output(tmp_path / "out" / "c.png")
    assert not left.exists()
    left.mkdir()
    (left / "model.onnx").touch()
    start, digit = left.name[: len(".facessl-")], left.name[len(".facessl-")]
    other = left.with_name(left.name.replace(start + digit, start + f"{int(digit, 16) ^ 1:x}"))
    other.touch()
    files.check_output(tmp_path, folder=True)
    assert {*tmp_path.iterdir()} == {*kept, tmp_path / "out"}
    assert [*(tmp_path / "out").iterdir()] == [other], "another machine's, as the first of eight digits says"
