"""Fine-tuning goes on after any stop, with the same bits at its end."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from facessl.cli import main
from facessl.core import checkpoint
from facessl.training import finetune
from facessl.training.trainer import Trainer
from tests.finetune_runs import WORDS
from tests.helpers import UNUSED, as_ranks, assert_same, read_table, weights

#: Attributes: dropout and batch norm in the head; an average; uneven draws; a measurement every five steps.
STOPPED = [
    *WORDS, "--task", "attributes", "--ema", "0.9", "--balanced", "--checkpoint-every", "2", "--seed", "3",
]  # fmt: skip


#: What a run is about to call as it is killed, and with which arguments.
MOMENTS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "third step": (Trainer, "_one_step", lambda trainer, *_: trainer.step == 3),
    "between the best weights and their score": (checkpoint, "write_atomic", lambda path, _: path.name == "best.json"),
    "last scores": (finetune.Finetuning, "finish", lambda *_: True),
}


def killed(words: list[str], moment: str) -> None:
    """Run `words` in a process of its own that is killed at this moment."""
    assert as_ranks(partial(_run, words, moment), 1, start=UNUSED) == [-signal.SIGKILL], "the run ended by itself"


def _run(words: list[str], moment: str) -> int:
    target, name, when = MOMENTS[moment]
    real = getattr(target, name)

    def fatal(*values: Any, **named: Any) -> Any:
        if when(*values):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*values, **named)

    setattr(target, name, fatal)
    return main(words)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main([*STOPPED, "--out", str(run)]) == 0
    return run


def same_end(run: Path, whole: Path) -> None:
    assert_same(weights(run), weights(whole))
    assert_same(load_file(run / "model.safetensors"), load_file(whole / "model.safetensors"))
    for name in ("best.json", "results.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = ([row["step"] for row in read_table(folder / "metrics.csv")] for folder in (run, whole))
    assert first == second


def test_killed_run_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*STOPPED, "--out", str(run)]
    killed(words, "third step")
    assert weights(run)["step"] == 2
    killed([*words, "--resume"], "between the best weights and their score")
    assert (run / "best.safetensors").is_file()
    killed([*words, "--resume"], "last scores")
    assert not (run / "status.json").exists()
    assert main(["finetune", "--resume", "--out", str(run)]) == 0  # its settings come from the folder
    same_end(run, whole)


@pytest.mark.fault(
    "E16", "a run that began again without a checkpoint noted `resume: true`: its settings could start no other run"
)
def test_a_run_without_a_checkpoint_begins_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without a checkpoint begins again: its files are those of a new one."""
    run, real = tmp_path / "run", Trainer._one_step

    def stopping(self: Trainer, *rest: Any) -> None:
        if self.step == 7:
            raise KeyboardInterrupt
        real(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_step", stopping)
        other = [*STOPPED, "--out", str(run), "--checkpoint-every", "0", "--backbone", "resnet10t"]
        assert main(other) == 130
    assert (run / "best.json").is_file()
    (run / "best.json").write_text(json.dumps({"step": 5, "name": "mean_accuracy", "value": 2.0}))
    assert main([*STOPPED, "--out", str(run), "--resume"]) == 0
    same_end(run, whole)
    assert yaml.safe_load((run / "config.yaml").read_text())["resume"] is False


def test_interrupted_run_says_so_in_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Trainer._one_step

    def stopping(self: Trainer, *rest: Any) -> None:
        real(self, *rest)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_one_step", stopping)
    words = [w if w != "1" else "50" for w in WORDS]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert (told["finished"], told["steps"], told["out"]) == (False, 2, str(tmp_path / "run"))
    assert "step 1/15" in err, "the first step is shown, however rarely steps are logged"
    assert [row["step"] for row in read_table(tmp_path / "run" / "metrics.csv") if row.get("loss")] == ["1"]


def test_resume_reads_the_task_before_its_flags(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--resume", "--out", str(whole), "--task.head", "fra"]) == 0
    capsys.readouterr()
    assert main(["finetune", "--resume", f"--out={whole}", "--task.head", "linear"]) == 2
    assert "task.head: 'fra' -> 'linear'" in capsys.readouterr().err


@pytest.mark.fault("C4", "the comparison with the majority class stood in the HTML only")
def test_resume_of_a_finished_run_scores_again(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetune, "write_report", lambda folder: {"notes": ["not above the majority class"]})
    before = (whole / "results.json").read_bytes()
    (whole / "results.json").unlink()
    assert main(["finetune", "--resume", "--out", str(whole)]) == 0
    assert "not above the majority class" in capsys.readouterr().err
    assert (whole / "results.json").read_bytes() == before
    assert json.loads((whole / "status.json").read_text()) == {"finished": True, "steps": 15}
