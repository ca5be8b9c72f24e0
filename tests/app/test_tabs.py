"""What the tabs show, without a browser."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `app` is not installed")
pytest.importorskip("plotly", reason="the extra `app` is not installed")

from facessl.app import errors, map, training
from facessl.app.workspace import Workspace, picked
from facessl.cli import main
from facessl.core.errors import CheckpointError, DataError
from facessl.evaluation.mistakes import Mistakes
from facessl.report.folder import read_run_folder
from facessl.tasks.base import Example, headline


def cpu() -> str:
    return "cpu"


@pytest.mark.parametrize(("classes", "offered"), [(("happy", ""), True), (("happy", "Ada"), False), (("", ""), False)])
def test_errors_are_offered_where_the_labels_are_classes_of_the_model(classes: Any, offered: bool) -> None:
    faces: Any = SimpleNamespace(classes=list(classes), source=object())
    model: Any = SimpleNamespace(task=SimpleNamespace(names=("happy", "sad")))
    assert ("error" in map.ways_to_color(Workspace("run", cpu, {"expression": model}, faces))) == offered


@pytest.mark.parametrize(
    ("at", "before", "last", "place"), [(0, 0, 0, 0), (0, 0, 7, 7), (5, 5, 6, 6), (2, 5, 6, 2), (4, 5, 3, 3)]
)
def test_new_pictures_leave_an_older_one_that_is_looked_at(at: int, before: int, last: int, place: int) -> None:
    assert training.place_of(at, before, last) == place


@pytest.mark.parametrize(
    ("config", "status", "steps"),
    [
        ("max_steps: 1000\n", {"finished": False, "steps": 500, "source_images": 64}, 1000),
        ("epochs: 3\nbatch_size: 20\n", {"finished": False, "steps": 2, "source_images": 64}, 9),
        ("epochs: 3\nbatch_size: 20\n", {"finished": True, "steps": 9}, 9),
        ("epochs: 3\nbatch_size: 20\n", {"finished": False, "steps": 2}, None),
    ],
)
def test_the_steps_of_a_run_are_those_planned(tmp_path: Path, config: str, status: Any, steps: int | None) -> None:
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert training.total_steps(read_run_folder(tmp_path)) == steps


def test_a_picture_that_is_not_a_png_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "regions").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "regions" / "step-1.png", format="TIFF")
    shown = training._picture(read_run_folder(tmp_path), 0)
    assert shown["value"] is None
    assert "regions/step-1.png cannot be read" in shown["label"]


def test_a_damaged_checkpoint_is_not_a_run_without_regions(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    words = "pretrain synthetic:?n=8&size=32 --method simclr --max-steps 1 --backbone test_resnet --image-size 32"
    assert not main([*words.split(), "--batch-size", "4", "--workers", "0", "--device", "cpu", "--out", run])
    assert "this method finds none" in str(Workspace(run, cpu).method)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert "last.ckpt" in str(Workspace(run, cpu).method)


def test_what_a_checkpoint_says_is_not_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: str) -> None:
        raise CheckpointError("method '`![x](http://example.com/a.png)<img src=x>\n\n![y](y)' is not known")

    monkeypatch.setattr("facessl.pretrained.load.load_method", refuse)
    told = Workspace("run", cpu).method
    assert isinstance(told, str)
    assert (told[0], told.count("`"), told[-1], "\n" in told) == ("`", 2, "`", False)


@pytest.mark.parametrize("index", [2, -1, 10**30, "0", None, [0]])
def test_only_what_is_shown_can_be_clicked(index: Any) -> None:
    import gradio as gr

    def clicked(index: Any) -> Any:
        return gr.SelectData(None, {"index": index, "value": None})

    assert picked(clicked(1), ["a", "b"]) == "b"
    with pytest.raises(DataError, match="reload the page"):
        picked(clicked(index), ["a", "b"])


def free(work: Workspace) -> bool:
    """Whether another browser could have a network compute now; asked by another thread, as the lock is reentrant."""
    got: list[bool] = []

    def ask() -> None:
        got.append(work.lock.acquire(blocking=False))
        if got[0]:
            work.lock.release()

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    return got[0]


def test_other_browsers_wait_for_a_batch_and_not_for_a_pass_over_all_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, bool]] = []
    faces: Any = SimpleNamespace(source=object(), file=tmp_path.joinpath, rows=SimpleNamespace(keys=["face.jpg"]))
    work = Workspace("run", cpu, faces=faces)
    task = SimpleNamespace(names=("happy", "sad"), predict=lambda x: told.append(("batch", free(work))))
    model: Any = SimpleNamespace(task=task, name="expression")
    work.add(model)

    def passed(trained: Any, faces: Any) -> list[str]:
        told.append(("pass", free(work)))
        trained.task.predict(None)
        return ["happy"]

    def scored(trained: Any, source: Any, **options: Any) -> Any:
        passed(trained, source)
        return SimpleNamespace(worst=[], typical=[])

    monkeypatch.setattr(map, "_predicted", passed)
    monkeypatch.setattr(map, "_mark", lambda trained: "0")
    monkeypatch.setattr("facessl.evaluation.mistakes.find_mistakes", scored)
    assert map.predictions(work) == ["happy"]
    errors.mistakes_of(work, "expression", 4)
    assert told == 2 * [("pass", True), ("batch", False)]


def test_scores_and_captions_are_those_of_the_report() -> None:
    scores = {"headline": headline("nme_interocular", 0.0812, (0.08, 0.09), better="lower"), "images": 1234}
    assert errors._score(Mistakes(None, None, scores, [], [])).startswith("NME interocular 8.12 % (8.00 to 9.00 %)")  # type: ignore[arg-type]
    assert (
        errors._words(Example((0,), "sad", "happy", "probability", 0.9)) == "sad, predicted happy  probability 90.00 %"
    )
