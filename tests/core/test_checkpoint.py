"""Checkpoints: atomic, two kept, and what is broken or hostile is refused in one sentence."""

import errno
import functools
import os
import pickle
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml

from facessl.cli import main
from facessl.config.parse import parse
from facessl.core import checkpoint, environment, files
from facessl.core.errors import CheckpointError
from tests.helpers import TINY


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/facessl-was-here",)


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "hostile", "hostile pickle", "text", "list"])
def test_unusable_checkpoint_is_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    values = {"truncated": {"a": torch.randn(1000)}, "hostile": {"state_dict": Evil()}, "list": [1, 2, 3]}
    if kind in values:
        torch.save(values[kind], path)
        path.write_bytes(path.read_bytes()[: 1500 if kind == "truncated" else None])
    elif kind != "missing":
        path.write_bytes({"empty": b"", "hostile pickle": pickle.dumps(Evil()), "text": b"Not Found\n" * 20}[kind])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/facessl-was-here").exists()


def test_two_newest_are_kept_and_last_is_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save_run(tmp_path, step, {"config": {}, "method": {"w": torch.tensor(float(step))}})
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-00000002.ckpt", "step-00000003.ckpt"]
    assert checkpoint.read_run(tmp_path / "last.ckpt")["step"] == 3


@pytest.mark.fault("E15", "too little memory was told as a disk that is full, without a reason", now="One sentence")
@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        ("os.fsync", OSError(errno.ENOSPC, "No space left on device"), "No space left on device; .* free space, then"),
        ("torch.save", MemoryError(), "not enough memory; .* free memory, then --resume"),
    ],
)
def test_full_disk_or_memory_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception, told: str
) -> None:
    checkpoint.save_run(tmp_path, 1, {"config": {}, "method": {}})
    monkeypatch.setattr(call, Mock(side_effect=error))
    with pytest.raises(CheckpointError, match=told):
        checkpoint.save_run(tmp_path, 2, {"config": {}, "method": {}})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["last.ckpt", "step-00000001.ckpt"]
    assert checkpoint.read_run(tmp_path / "last.ckpt")["step"] == 1


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


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in platform.libc_ver(), reason="needs glibc")
def test_memory_is_kept_between_training_steps() -> None:
    """The kernel hands out no page anew when a tensor of 48 MiB takes the place of one that was freed."""
    script = """
import resource, torch
from facessl.core.environment import keep_memory
keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(48, 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    found = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 100


def numbers(code: str = "f4", state: tuple[Any, ...] = ("<", None, None, None), shape: Any = (2,)) -> type:
    """A class whose pickle is that of a numpy array, as a file that was made by hand may have it."""

    class Type:
        def __reduce__(self) -> Any:
            return np.dtype, (code, False, True), (3, *state, -1, -1, 0)

    class Array:
        def __reduce__(self) -> Any:
            rebuilt = np.zeros(0, np.uint8).__reduce__()[0]
            return rebuilt, (np.ndarray, (0,), b"b"), (1, shape, Type(), False, bytes(8))

    return Array


@pytest.mark.fault("B2", "checkpoints with numbers of numpy were refused, as numpy's own functions are dangerous")
def test_numbers_of_numpy_are_read_and_nothing_else_of_it(tmp_path: Path) -> None:
    wide, tall = np.arange(6, dtype=np.int32).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(3, 2))
    told = {"best": np.float64(0.75), "done": np.bool_(True), "wide": wide, "tall": tall, "none": np.zeros((0, 3))}
    torch.save({"state_dict": {}, **told}, tmp_path / "x.pth")
    found = checkpoint.read(tmp_path / "x.pth")
    for name, value in told.items():
        assert type(found[name]) is type(value) or isinstance(found[name], np.ndarray)
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    torch.save({"x": numbers()()}, tmp_path / "x.pth")
    assert checkpoint.read(tmp_path / "x.pth")["x"].tolist() == [0, 0]
    fields: Any = ("a", {"a": (np.dtype("f4"), 0)})
    for bad in (numbers("O8"), numbers("V8"), numbers("U2"), numbers(state=("<", None, *fields)), numbers(shape=(-2,)),
                numbers(state=("<", (np.dtype("f4"), (2,)), None, None)), numbers(shape=(2**40,)), numbers("f8"),
                numbers(shape=(True, 2)), numbers(state=("x", None, None, None))):  # fmt: skip
        torch.save({"x": bad()}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"holds a numpy .* refused"):
            checkpoint.read(tmp_path / "x.pth")


@pytest.mark.fault("E12", "a checkpoint of a few kilobytes took gigabytes of memory")
def test_a_checkpoint_larger_in_memory_than_on_the_disk_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as plain,
        zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in plain.namelist():
            deflated.writestr(name, plain.read(name))
    torch.save({"w": [torch.zeros(1).expand(10**9)]}, tmp_path / "repeated.pth")
    for name, why in (("deflated", r"is compressed, 4\d\d,\d+ bytes in"), ("repeated", "a tensor of 4,000,000,000")):
        with pytest.raises(CheckpointError, match=why):
            checkpoint.read(tmp_path / f"{name}.pth")
    assert len(checkpoint.read(tmp_path / "w.pth")["w"]) == 100_000


def doubled(levels: int) -> list[Any]:
    """A list of two lists that are the same one, and so on."""
    return functools.reduce(lambda inner, _: [inner, inner], range(levels), [])


def test_a_checkpoint_of_lists_that_repeat_each_other_is_refused(tmp_path: Path) -> None:
    torch.save({"x": doubled(34)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="repeats its values more often than it has bytes"):
        checkpoint.read(tmp_path / "x.pth")


def test_the_config_of_a_checkpoint_has_the_limits_of_yaml() -> None:
    deep: Any = functools.reduce(lambda inner, _: {"a": inner}, range(21), 1)
    for config in ({"a": doubled(34)}, deep):
        state = {"format": checkpoint.FORMAT, "step": 1, "method": {}, "config": config}
        with pytest.raises(CheckpointError, match="config has more than 10,000 values"):
            checkpoint.check_run(state, Path("x.ckpt"))


@pytest.mark.fault("E6", "`checkpoints` as a link deleted the checkpoints of the run it led to", now="Refused first")
@pytest.mark.parametrize("name", ["checkpoints", "regions", "tb", "metrics.csv", "skipped.csv"])
def test_a_run_does_not_write_through_links(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    for step in range(3):
        (other / "checkpoints" / f"step-{step:08d}.ckpt").write_bytes(b"precious")
    (other / "metrics.csv").write_bytes(b"precious")
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(parse([*TINY, "--out", str(run)]).to_dict()))
    (run / name).symlink_to(other / "metrics.csv" if name.endswith("csv") else other / "checkpoints")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    main(["pretrain", "--resume", "--out", str(run), "--max-steps", "3"])
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    if not name.endswith("csv"):
        assert f"{name} leads out of" in capsys.readouterr().err


@pytest.mark.fault("E16", "a run with `--out ~` removed temporary files of other programs")
def test_only_own_temporaries_of_a_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "deep").mkdir(parents=True)
    own = files.temporary_beside(tmp_path / "checkpoints" / "x")
    kept = [tmp_path / ".x.1234.tmp", tmp_path / ".facessl-x.tmp", tmp_path / "checkpoints" / "deep" / own.name]
    for path in (own, *kept):
        path.touch()
    files.remove_temporaries(tmp_path, tmp_path / "checkpoints", tmp_path / "regions")
    assert not own.exists()
    assert all(path.exists() for path in kept)
