"""`torchrun --nproc-per-node 2` gives what one process gives on the same global batch, through the whole trainer."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from facessl.running import ranks
from tests.helpers import TINY, environment, weights

#: More than TINY's 1x1 maps; no warm-up, so that the first step already moves.
WORDS = ["pretrain", *TINY, "--image-size", "64", "--optim.warmup_epochs", "0", "--optim.lr", "0.45"]

#: float64, so that what is compared is the arithmetic of the ranks and not how rounding grows through batch norm
#: (float32 is held to 1e-5 of each tensor's largest entry in tests/methods/test_ranks.py).
PROGRAM = """
import sys
from facessl import pretraining, running
from facessl.cli import main
from facessl.views.photometric import Photometric
real = Photometric.__call__
def double(self, batch):
    batch = real(self, batch)
    batch.views = [view.double() for view in batch.views]
    return batch
Photometric.__call__ = double
running.PRECISION["fp32"] = "64-true"
pretraining._finish = lambda *_: {}  # exports and pictures are float32
sys.exit(main(sys.argv[1:]))
"""


def torchrun(*words: str, cwd: Path, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """The command line on `ranks` processes of this machine, in float64."""
    program = cwd / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"]
    whole = [*launcher, str(program), *words]
    return subprocess.run(whole, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=400)


@pytest.mark.parametrize(
    "method",
    [
        ["--method", "byol"],
        ["--method", "fra", "--method.dropout", "0"],
        ["--method", "fra", "--method.variant", "official", "--method.dropout", "0"],
    ],
    ids=["byol", "fra", "fra-official"],
)
def test_two_ranks_equal_one_process(method: list[str], tmp_path: Path) -> None:
    method = [*method, "--max-steps", "2"]
    one = torchrun(*WORDS, *method, "--out", "one", cwd=tmp_path, ranks=1)
    assert one.returncode == 0, one.stderr
    two = torchrun(*WORDS, *method, "--out", "two", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], torch.Tensor) and a[key].is_floating_point():
            torch.testing.assert_close(b[key], a[key], rtol=1e-8, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("one", "two")]
    column = rows[0][0].split(",").index("loss")
    for first, second in zip(*(r[1:] for r in rows), strict=True):
        assert float(first.split(",")[column]) == pytest.approx(
            float(second.split(",")[column]), rel=1e-5
        )  # as printed


def test_ranks_resume_and_refuse_a_batch_they_cannot_share(tmp_path: Path) -> None:
    words = [*WORDS, "--max-steps", "2", "--checkpoint-every", "1", "--out", "run"]
    assert torchrun(*words, cwd=tmp_path).returncode == 0
    whole = weights(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.unlink()
    (tmp_path / "run" / "checkpoints" / "step-00000002.ckpt").unlink()
    (tmp_path / "run" / "checkpoints" / "step-00000001.ckpt").rename(last)
    again = torchrun("pretrain", "--resume", "--out", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    resumed = weights(tmp_path / "run")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole if isinstance(whole[k], torch.Tensor))
    odd = torchrun(*WORDS, "--batch-size", "7", "--out", "odd", cwd=tmp_path)
    assert odd.returncode != 0
    assert "facessl: " in odd.stderr
    assert "7" in odd.stderr.split("facessl: ")[1].splitlines()[0]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, 1)),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, (16, 8)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}, (8, 4)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, (1, 1)),
    ],
)
def test_ranks_are_those_of_the_launcher(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks() == expected
