"""A run that is killed goes on with the same batches, views and random state: the weights are bit-exact."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facessl.cli import main
from facessl.data.source import open_source
from facessl.models.layers.color_regions import LAYOUT_STEPS
from facessl.training.pretrain import pretrain
from facessl.training.trainer import Trainer
from tests.helpers import TINY, UNUSED, assert_same, losses, weights


def slow_steps() -> None:
    real = Trainer._one_step
    Trainer._one_step = lambda *values: (time.sleep(0.3), real(*values))  # type: ignore[assignment, method-assign]


def slow_disk(mark: Path) -> None:
    """The first checkpoint that is written leaves a mark, and takes long."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if "/checkpoints/.facessl-" in os.readlink(f"/proc/self/fd/{handle}"):
            mark.touch()
            time.sleep(30)
        real(handle)

    os.fsync = fsync  # type: ignore[assignment]


def start(words: list[str], slow: Callable[[], None]) -> BaseProcess:
    """A run in a process, and process group, of its own."""
    child = UNUSED.Process(target=_run, args=(words, slow))
    child.start()
    return child


def _run(words: list[str], slow: Callable[[], None]) -> None:
    code = 1
    try:
        os.setsid()
        slow()
        code = main(words)
    finally:
        os._exit(code)


def wait_for(path: Path, child: BaseProcess) -> None:
    until = time.monotonic() + 300
    while not path.exists():
        assert child.exitcode is None, f"the run ended before {path.name} appeared"
        assert time.monotonic() < until
        time.sleep(0.01)


def kill_when(child: BaseProcess, ready: Path, after: float = 0.0) -> None:
    wait_for(ready, child)
    time.sleep(after)
    child.kill()
    child.join()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(["pretrain", *TINY, "--out", str(run)]) == 0
    return weights(run)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_run_ends_with_the_same_bits(whole: dict[str, object], tmp_path: Path, workers: str) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    words = ["pretrain", *TINY, "--workers", workers, "--out", str(run)]
    moment = random.Random(workers).uniform(0, 0.6)
    kill_when(start(words, slow_steps), run / "checkpoints" / "step-00000002.ckpt", moment)
    kill_when(start([*words, "--resume"], partial(slow_disk, mark)), mark)
    assert list((run / "checkpoints").glob(".*.tmp")), "the kill was meant to hit a checkpoint in the middle"
    kill_when(start([*words, "--resume"], slow_steps), run / "checkpoints" / "step-00000006.ckpt", moment)
    other = "2" if workers == "0" else "0"
    assert main(["pretrain", "--resume", "--out", str(run), "--workers", other]) == 0
    assert_same(weights(run), whole)
    steps = [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == [str(s) for s in range(1, 11)], "metrics.csv must neither lose nor repeat a step"
    assert len(list((run / "checkpoints").glob("step-*.ckpt"))) == 2
    assert not list(run.rglob(".*.tmp")), "what was left by the kill is removed"


@pytest.mark.fault("E16", "after a resume the first log row averaged fewer steps", now="Rows are those of a whole run")
def test_pcl_stopped_after_every_step_weighs_its_contrasts_alike(tmp_path: Path) -> None:
    """Dynamic weight averaging needs the losses of two whole epochs, which no single part of this run has seen."""
    method = {"name": "pcl", "width": 4, "hidden": 16, "dim": 8, "decoder_width": 8, "decoder_size": 8}
    stop_after_first_steps(tmp_path, 5, 6, method)
    whole = weights(tmp_path / "whole")
    assert (whole["balance.means"] > 0).all(), "two epochs are complete"


def test_layout_of_a_stopped_run_is_that_of_the_whole_run(tmp_path: Path) -> None:
    """`targets: color` finds its layout from the first `LAYOUT_STEPS` batches, and the network learns after them."""
    method = {"name": "fra", "variant": "official", "targets": "color", "num_regions": 3, "mask_embeddings": "free"}
    sizes = {"hidden": 16, "dim": 8, "memax_weight": 0.0, "use_global": False, "use_local": False}
    stop_after_first_steps(tmp_path, 2, LAYOUT_STEPS + 2, method | sizes)
    assert (weights(tmp_path / "whole")["colors.layout"] > 0).all(), "the layout was found"


def stop_after_first_steps(folder: Path, stops: int, steps: int, method: dict[str, Any]) -> None:
    """A run that stops after each of its first steps equals the whole run, bit for bit."""
    settings: dict[str, Any] = {
        **{"source": "synthetic:?n=16&size=40", "backbone": "test_resnet", "image_size": 32, "batch_size": 8},
        **{"max_steps": steps, "log_every": 3, "workers": 0, "monitor": {"every": 0}, "method": method},
    }
    pretrain(**settings, device="cpu", out=str(folder / "whole"))
    for part in range(stops):
        pretrain(**settings, device="cpu", out=str(folder / "parts"), max_minutes=1e-9, resume=part > 0)
    pretrain(**settings, device="cpu", out=str(folder / "parts"), resume=True)
    assert_same(weights(folder / "parts"), weights(folder / "whole"))
    assert losses(folder / "parts") == losses(folder / "whole")


@pytest.mark.fault("A4", "a run whose images had changed went on with another schedule, without a word")
@pytest.mark.fault("B11", "a run was resumed from the folder it was started in alone, and never with moved images")
def test_a_run_goes_on_with_its_images_alone_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    faces = open_source("synthetic:?n=9&size=40")
    for i in range(9):
        Path(f"photos/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(faces[i].image)).save(f"photos/{i % 2}/{i}.png")
    tuned = ["finetune", "none", "photos", "--backbone", "test_resnet", "--image-size", "32", "--workers", "0"]
    begun = {"run": ["pretrain", "photos", *TINY[1:], "--max-steps", "2"], "tuned": [*tuned, "--max-steps", "2"]}
    for out, words in begun.items():
        assert main([*words, "--device", "cpu", "--out", out, "--max-minutes", "1e-9"]) == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = ["pretrain", "--resume", "--out", "../run"], ["finetune", "--resume", "--out", "../tuned"]
    for words in again:
        assert main(words) == 0
    shutil.move("../photos", "moved")
    assert main([*again[0], "--source", "moved"]) == 0
    assert main(again[0]) == 0, "config.yaml knows the new place"
    Path("moved/0/0.png").unlink()
    capsys.readouterr()
    assert [main(again[0]), main([*again[1], "--source", "moved"])] == [2, 2]
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("facessl: ")]
    assert "started with other images (source: 9 images -> 8)" in first
    assert "images -> " in second
    shutil.copy("moved/0/2.png", "moved/0/0.png")
    assert main(again[0]) == 2
    assert "of its 9 images changed" in capsys.readouterr().err


def test_sigterm_to_all_processes_saves_and_exits(whole: dict[str, object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = start(["pretrain", *TINY, "--out", str(run), "--checkpoint-every", "0", "--workers", "1"], slow_steps)
    wait_for(run / "metrics.csv", child)
    os.killpg(child.pid, signal.SIGTERM)  # as `timeout`, and SLURM before it takes a node away
    child.join()
    assert child.exitcode == 0
    assert 0 < weights(run)["step"] < 10
    assert main(["pretrain", "--resume", "--out", str(run)]) == 0
    assert_same(weights(run), whole)
