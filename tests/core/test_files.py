"""What a killed process leaves is removed, and nothing else; what is not written to stays as it is."""

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


@pytest.mark.fault("E6", "a file with a second name was emptied before it was refused")
@pytest.mark.parametrize("link", ["hardlink_to", "symlink_to"])
def test_a_file_that_is_not_written_to_keeps_its_content(link: str, tmp_path: Path) -> None:
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    yours.write_text("kept")
    getattr(mine, link)(yours)
    with pytest.raises(OSError, match="mine is a link"):
        files.open_own(mine, "wb")
    assert yours.read_text() == "kept"
    mine.unlink()
    for text in (b"longer", b"new"):
        with files.open_own(mine, "wb") as file:
            file.write(text)
    assert mine.read_bytes() == b"new"
