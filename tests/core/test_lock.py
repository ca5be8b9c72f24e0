"""Two processes never write one folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from facessl.core.errors import ConfigError
from facessl.core.lock import only_writer


@pytest.mark.fault("A1", "both wrote, both exited 0, and the run was a mixture")
def test_the_second_writer_is_told_of_the_first_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    folder, (ready, written) = tmp_path / "run", os.pipe()
    child = os.fork()
    if child == 0:
        with only_writer(folder):
            os.write(written, b"1")
            signal.pause()
    os.read(ready, 1)
    with (
        pytest.raises(ConfigError, match=rf"run is being written by process {child} on \S+: wait"),
        only_writer(folder),
    ):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with only_writer(folder):
        (folder / "file").touch()
    assert folder.exists()
    with only_writer(tmp_path / "unused"):
        assert (tmp_path / "unused").exists()
    assert not (tmp_path / "unused").exists()


@pytest.mark.fault("E6", "`.lock` as a link emptied the file it led to")
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_not_written_through(link: Callable[..., None], tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("kept")
    folder.mkdir()
    link(victim, folder / ".lock")
    with pytest.raises(ConfigError, match="run cannot be used"), only_writer(folder):
        pass
    assert victim.read_text() == "kept"
