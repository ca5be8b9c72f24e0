"""The task that the README writes in one file works as it is printed; what a task's file lacks is one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import facessl.tasks
from facessl.cli import main
from facessl.core import plugins
from facessl.core.errors import PluginError
from facessl.tasks.base import Task, check_result, headline

README = Path(__file__).parents[2] / "README.md"
WORDS = [
    "finetune", "none", "synthetic:?n=40&size=48", "--task", "pose", "--backbone", "test_resnet", "--image-size", "32",
    "--max-steps", "2", "--workers", "0", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The README's file in a folder that tasks are looked for in."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = [block for block in blocks if "class Pose(" in block]
    file = tmp_path / "tasks" / "pose.py"
    file.parent.mkdir()
    file.write_text(text)
    monkeypatch.setattr(facessl.tasks, "__path__", [*facessl.tasks.__path__, str(file.parent)])
    monkeypatch.delitem(__import__("sys").modules, "facessl.tasks.pose", raising=False)
    monkeypatch.setattr(plugins, "find", plugins.find.__wrapped__)  # without what earlier tests found
    return file


def test_the_task_of_the_readme_trains_reports_and_predicts(
    printed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*WORDS, "--task.scale", "20", "--out", str(run)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["headline"]["unit"] == "degrees"
    assert told["finished"] is True
    page = (run / "report.html").read_text()
    assert re.search(r"mean error.{0,400}\d degrees", page, re.DOTALL)
    assert main(["predict", str(run), str(Path(__file__).parents[2] / "docs" / "synthetic.png"), "--no-crop",
                 "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    (face,) = json.loads((tmp_path / "out" / "synthetic.json").read_text())["faces"]
    assert {"yaw", "pitch", "roll"} <= face.keys()
    assert isinstance(plugins.find("tasks", "pose"), type)
    assert all(hasattr(plugins.find("tasks", "pose"), name) for name in Task.__annotations__ if name != "backbone")


@pytest.mark.parametrize("member", ["needs", "defaults", "augments", "describe", "predict", "after_step"])
def test_a_missing_member_is_named(member: str, printed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub(rf"\b{member}\b(?=:|\()", f"{member}_gone", printed.read_text())
    printed.write_text(text)
    assert main(WORDS) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"has no {member}:" in said
    assert "tasks/pose.py" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"headline": None}, "no headline"),
        ({"headline": {"name": "error", "value": 1.0}}, "interval"),
        ({"error": None}, "under that name"),
        ({"images": None}, "number of images"),
        ({"headline": headline("error", 1.0, (0.0, 2.0), better="lowest")}, "lowest"),  # type: ignore[arg-type]
    ],
)
def test_missing_scores_are_named(change: dict[str, Any], says: str) -> None:
    whole = {"headline": headline("error", 1.0, (0.0, 2.0)), "error": 1.0, "images": 3}
    check_result(whole, object())
    with pytest.raises(PluginError, match=says):
        check_result({k: v for k, v in (whole | change).items() if v is not None}, object())
