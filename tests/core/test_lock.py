"""Two processes never write one folder."""

import contextlib
import errno
import fcntl
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from facessl.core.errors import ConfigError
from facessl.core.lock import only_writer


@contextlib.contextmanager
def held(out: Path, *, folder: bool = True) -> Iterator[int]:
    """Another process writes there, is named, and is killed at the end."""
    ready, written = os.pipe()
    child = os.fork()
    if child == 0:
        with only_writer(out, folder=folder):
            os.write(written, b"1")
            signal.pause()
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def like_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fcntl, and an msvcrt that locks bytes from the file's position on."""

    def locking(descriptor: int, mode: int, count: int) -> None:
        if os.lseek(descriptor, 0, os.SEEK_CUR) < 1000:
            raise AssertionError("nobody could read who writes")
        try:
            fcntl.lockf(descriptor, mode, count, 0, os.SEEK_CUR)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    fake = types.SimpleNamespace(locking=locking, LK_NBLCK=fcntl.LOCK_EX | fcntl.LOCK_NB)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setitem(sys.modules, "fcntl", None)


@pytest.mark.fault("A1", "both wrote, both exited 0, and the run was a mixture")
@pytest.mark.parametrize(("folder", "windows"), [(True, False), (False, False), (True, True)])
def test_the_second_writer_is_told_of_the_first_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, folder: bool, windows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if windows:
        like_windows(monkeypatch)
    out = tmp_path / "made" / "run"
    with held(out, folder=folder) as child:
        told = rf"run is being written by process {child} on \S+: wait"
        with pytest.raises(ConfigError, match=told), only_writer(out, folder=folder):
            pass
        with only_writer(out.with_name("other"), folder=folder):
            pass
        threading.Timer(0.1, os.kill, (child, signal.SIGKILL)).start()
        with only_writer(out, folder=folder, wait=True):
            pass
    with only_writer(out, folder=folder):
        (out / "file" if folder else out).touch()
    assert [p.name for p in (tmp_path / "made").rglob("*")] == (["run", "file"] if folder else ["run"])
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


@pytest.mark.fault("A1", "a second thread of the same process got in, and its end freed the first one's lock")
def test_a_process_writes_a_folder_once_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with only_writer(tmp_path / "run"):
        told = rf"link is being written by process {os.getpid()} on "
        with pytest.raises(ConfigError, match=told), only_writer(tmp_path / "link"):
            pass
        child = os.fork()
        if child == 0:
            with contextlib.suppress(ConfigError), only_writer(tmp_path / "run"):
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the lock still keeps others out"
    with only_writer(tmp_path / "link"):
        pass
