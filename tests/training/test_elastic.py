"""A rank that is killed ends the job with a sentence, and the run goes on with another number of ranks."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from facessl.cli import main
from tests.helpers import TINY, environment, losses, torchrun_command

#: Each rank tells its process; a little slower than TINY, so that there is a step to be killed in.
PROGRAM = """
import os, sys, time
from facessl.data import loader
from facessl.cli import main
print("rank", os.environ["RANK"], "is process", os.getpid(), file=sys.stderr, flush=True)
real = loader._Views.__getitem__
loader._Views.__getitem__ = lambda self, item: (time.sleep(0.3), real(self, item))[1]
sys.exit(main(sys.argv[1:]))
"""
WORDS = ["pretrain", *TINY, "--backbone", "test_resnet", "--method", "byol", "--optim.lr", "0.01", "--max-steps", "6"]


def start(words: list[str], cwd: Path, ranks: int) -> subprocess.Popen[str]:
    """The command line under torchrun."""
    program = cwd / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [*torchrun_command(ranks), str(program), *words],
        cwd=cwd,
        env=environment(),
        stderr=(cwd / "torchrun.err").open("w"),
        text=True,
        start_new_session=True,
    )


def said(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("*.err")))


def wait_for(condition: Callable[[], bool], seconds: float, what: str, folder: Path) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s: {said(folder)}"
        time.sleep(0.05)


def test_a_killed_rank_ends_the_job_and_one_process_goes_on(tmp_path: Path) -> None:
    words = [*WORDS, "--checkpoint-every", "1"]
    job = start([*words, "--out", "run"], tmp_path, 2)
    try:
        wait_for(lambda: (tmp_path / "run/checkpoints/step-00000003.ckpt").exists(), 240, "step 3", tmp_path)
        victim = int(re.findall(r"rank 1 is process (\d+)", said(tmp_path))[0])
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        assert job.wait(120) != 0
        assert time.monotonic() - killed < 60
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    sentence = [line for line in said(tmp_path).splitlines() if line.startswith("facessl: ")]
    assert len(sentence) == 1, said(tmp_path)
    assert re.search(r"connection to another rank broke .*--resume --out RUN", sentence[0])
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert main(["pretrain", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert len(losses(tmp_path / "run")) == 6
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
