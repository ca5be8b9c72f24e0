"""The files of docs/extending.md work as they are printed; what a task's file lacks is one sentence."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import facessl
import facessl.data.sources
import facessl.methods
import facessl.tasks
from facessl.cli import main
from facessl.core import plugins
from facessl.core.errors import PluginError
from facessl.tasks.base import Task, check_result, headline
from tests.data.layouts_labels import build_rafdb

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
WORDS = [
    "finetune", "none", "synthetic:?n=40&size=48", "--task", "pose", "--backbone", "test_resnet", "--image-size", "32",
    "--max-steps", "2", "--workers", "0", "--device", "cpu",
]  # fmt: skip


def install(folder: ModuleType, name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's file of the class `name`, in a folder that plug-ins of this kind are looked for in."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = [block for block in blocks if re.search(rf"^class {name}\b", block, re.MULTILINE)]
    file = place / folder.__name__.rsplit(".", 1)[-1] / f"{name.lower()}.py"
    file.parent.mkdir()
    file.write_text(text)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(file.parent)])
    monkeypatch.delitem(sys.modules, f"{folder.__name__}.{name.lower()}", raising=False)
    monkeypatch.setattr(
        plugins, "find", getattr(plugins.find, "__wrapped__", plugins.find)
    )  # without what earlier tests found
    return file


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(facessl.tasks, "Pose", tmp_path, monkeypatch)


def test_the_method_and_the_source_of_the_page_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(facessl.methods, "Toy", tmp_path, monkeypatch)
    install(facessl.data.sources, "Npz", tmp_path, monkeypatch)
    np.savez(tmp_path / "faces.npz", images=np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), np.uint8))
    words = [
        "pretrain", f"npz:{tmp_path}/faces.npz", "--method", "toy", "--method.dim", "8", "--backbone", "test_resnet",
        "--image-size", "32", "--batch-size", "4", "--max-steps", "2", "--workers", "0", "--device", "cpu",
        "--monitor.every", "0", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["finished"] is True


def test_the_task_of_the_page_trains_reports_and_predicts(
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


def test_the_python_of_readme_and_usage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    facessl.pretrain(
        "synthetic:?n=16&size=40", backbone="test_resnet", image_size=32, batch_size=8, max_steps=2, workers=0,
        device="cpu", monitor={"every": 0}, out="runs/mine",
    )  # fmt: skip
    for number in range(24):
        face = Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8))
        place = Path("labelled", "happy" if number % 2 else "sad")
        place.mkdir(parents=True, exist_ok=True)
        face.save(place / f"{number}.jpg")
    face.save("a.jpg")
    face.save("b.png")
    for page in ("README.md", "docs/usage.md"):
        (block,) = re.findall(r"```python\n(.*?)```", (root / page).read_text(encoding="utf-8"), re.DOTALL)
        names: dict[str, Any] = {}
        exec(block, names)
        if page == "README.md":
            assert names["vectors"].shape[0] == names["maps"].shape[0] == 2
            assert torch.allclose(names["regions"].sum(1), torch.ones(()), atol=1e-5)
            assert 0 <= names["scores"]["accuracy"] <= 1
    assert len(list(tmp_path.glob("*.jpg"))) == 101


@pytest.mark.fault(
    "C5", "there was no walk-through of a table row", now="docs/protocols.md has one, which is carried out"
)
def test_a_row_of_a_table_is_reproduced_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a few synthetic faces, with a small network."""
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    commands = re.findall(r"^facessl (.+)", page.split("## Reproduce a row")[1], re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["list", "list", "pretrain", "finetune", "report"]
    monkeypatch.chdir(tmp_path)
    toy = {"vggface2:/data/VGGFace2": "synthetic:?n=16&size=40", "rafdb:/data/RAF-DB": build_rafdb(tmp_path / "raf")}
    short = [
        "--image-size", "32", "--batch-size", "4", "--max-steps", "2", "--workers", "0", "--device", "cpu",
        "--precision", "fp32", "--backbone", "test_resnet",
    ]  # fmt: skip
    small = [*short, "--method.hidden", "8", "--method.dim", "8", "--monitor.every", "0"]
    flags = {"pretrain": small, "finetune": short}
    for command in commands:
        words = [toy.get(word, word) for word in command.split()]
        assert main([*words, *flags.get(words[0], [])]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "downstream/table2/rafdb-ft-byol " in said
    assert "score:     paper: accuracy 89.53" in said
    assert re.search(r"\| rafdb-byol \| rafdb \| finetune \| accuracy \|.*\| 89.53 \| BYOL \(FRA, Table 2\) \|", said)
    assert "max_steps is 2" in said


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
