"""The page of a fine-tuning run."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from facessl.metrics.accuracy import accuracy
from facessl.report.examples import write_examples
from facessl.report.results import without_looking
from facessl.report.write import report, write_report
from facessl.tasks.base import Example
from tests.report_runs import Page, alignment, attributes, expression, parsing, write_tuned


def test_headline_of_a_fine_tuning_run(tmp_path: Path, quick: None) -> None:
    test = expression()
    numbers = write_report(write_tuned(tmp_path / "mine", test))
    assert json.loads((tmp_path / "mine" / "report.json").read_text()) == numbers
    expected = {
        "run": "mine", "task": "expression", "protocol": "finetune", "backbone": "resnet18",
        "started_from": "runs/mine", "labels": "10%", "headline": test["headline"], "train_images": 219,
        "test_images": 60, "steps": 40,
    }  # fmt: skip
    assert {key: numbers[key] for key in expected} == expected
    assert "| women | 30 |" in (tmp_path / "mine" / "report.md").read_text()


@pytest.mark.parametrize(
    ("task", "make", "sections", "said"),
    [
        (
            "expression",
            expression,
            ["Accuracy by class", "Confusion", "Groups"],
            ["majority class", "calm", "<b>men</b>"],
        ),
        ("alignment", alignment, ["Subsets"], ["NME interocular", "8.12 %", "7.00 to 9.00 %", "AUC@0.10"]),
        ("parsing", parsing, ["F1 by class"], ["mean IoU", "hat"]),
        ("attributes", attributes, ["Accuracy by attribute"], ["mean balanced accuracy", "Smile"]),
    ],
)
def test_page_of_a_fine_tuning_run_shows_what_its_task_measured(
    tmp_path: Path, task: str, make: Callable[[], dict[str, Any]], sections: list[str], said: list[str]
) -> None:
    write_report(write_tuned(tmp_path / "mine", make(), task=task))
    page = Page((tmp_path / "mine" / "report.html").read_text())
    rest = ["Loss", "Score over time", "Schedule", "Speed", "Configuration", "Skipped images", "Environment"]
    assert page.headings == ["Scores", "Worst mistakes", "Typical predictions", *sections, *rest]
    for words in [*said, f"{task.capitalize()} on resnet18", "Weights of step 30", "coordinate"]:
        assert words in page.text, words


def test_a_row_of_the_confusion_is_a_true_class(tmp_path: Path, quick: None) -> None:
    write_report(
        write_tuned(tmp_path / "mine", expression() | {"confusion": [[30, 10], [5, 0]], "class_names": ["a", "b"]})
    )
    page = (tmp_path / "mine" / "report.html").read_text()
    assert re.findall(r"--(good|bad)\) (\d+)%[^>]*title=\"([\d.]+ % of \w)", page) == [
        ("good", "52", "75.0 % of a"), ("bad", "18", "25.0 % of a"),
        ("bad", "70", "100.0 % of b"), ("good", "0", "0.0 % of b"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"select": "test"}, "selected on the test part"),
        ({"select": "last"}, "nothing was selected"),
    ],
)
def test_page_says_how_the_weights_were_selected(
    tmp_path: Path, quick: None, change: dict[str, str], said: str
) -> None:
    write_report(write_tuned(tmp_path / "mine", alignment(), task="alignment", **change))
    assert said in Page((tmp_path / "mine" / "report.html").read_text()).text


def test_a_score_near_the_commonest_answer_is_said(tmp_path: Path, quick: None) -> None:
    test = expression()
    low, high = test["accuracy_interval"]
    for name, share, said in (("dull", (low + high) / 2, "Not clearly above"), ("good", low - 0.01, "Above always")):
        notes = write_report(write_tuned(tmp_path / name, test | {"majority_class": share}))["notes"]
        assert [note.partition(" always")[0] for note in notes] == (["not clearly above"] if name == "dull" else [])
        assert said in Page((tmp_path / name / "report.html").read_text()).text


def test_mistakes_and_predictions_are_shown_with_what_they_are(tmp_path: Path, quick: None) -> None:
    run = write_tuned(tmp_path / "mine", expression())
    write_report(run)
    page = Page((run / "report.html").read_text())
    assert page.tags.count("img") == 2
    for words in ("glad, predicted calm", "probability 90.00 %", "probability 40.00 %", "faces/7.jpg"):
        assert words in page.text
    shutil.rmtree(run / "examples")
    write_report(run)
    assert "examples/ is not there" in Page((run / "report.html").read_text()).text


def test_a_linked_folder_of_examples_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "examples").symlink_to(tmp_path / "elsewhere")
    found: Any = SimpleNamespace(
        worst=[Example((0,), "glad", "calm", "probability", 0.9)],
        typical=[],
        picture=lambda *_, **__: np.zeros((8, 8, 3), np.uint8),
        trained=SimpleNamespace(card={"labels": {"mask_names": []}}),
    )
    write_examples(tmp_path, found)
    assert {path.name for path in (tmp_path / "examples").iterdir()} == {"examples.json", "worst-01.jpg"}
    assert not list((tmp_path / "elsewhere").iterdir())


def test_baselines_are_what_answers_without_looking_score() -> None:
    target = np.repeat([0, 1, 2], [3, 5, 2])
    scores = accuracy(np.ones(10, int), target)
    found = without_looking({"majority_class": 0.5, "per_class": {"a": 0, "b": 0, "c": 0}})
    assert {name: found[name] for name in ("accuracy", "mean_class_accuracy", "macro_f1")} == pytest.approx(
        {name: scores[name] for name in ("accuracy", "mean_class_accuracy", "macro_f1")}
    )
    pairs = without_looking({"same": 30, "different": 90, "tar@far=0.01": 0.5, "tar@far=0.01_interval": [0, 1]})
    assert (pairs["accuracy"], pairs["eer"], pairs["roc_auc"], pairs["tar@far=0.01"]) == (0.75, 0.5, 0.5, 0.01)


@pytest.mark.parametrize(("base", "said"), [(0.2, "Better than the mean shape"), (0.066, "Not clearly better than")])
def test_an_error_is_seen_beside_that_of_the_mean_shape(tmp_path: Path, quick: None, base: float, said: str) -> None:
    constant = {"answer": "mean shape", "scores": {"nme_interocular": base, "fr@0.10": 0.75}}
    run = write_tuned(tmp_path / "mine", alignment() | {"constant": constant}, task="alignment")
    numbers = write_report(run)
    assert numbers["baselines"] == {"mean shape": base}
    page = Page((run / "report.html").read_text())
    assert said in page.text
    assert "75.00 %" in page.text  # beside the failure rate


def test_runs_are_compared_by_task_and_the_best_of_each_column_is_marked(tmp_path: Path, quick: None) -> None:
    tests = [
        ("one", "alignment", 0.05),
        ("two", "alignment", 0.04),
        ("three", "expression", 0.6),
        ("four", "expression", 0.7),
    ]
    for name, task, value in tests:
        test = expression() if task == "expression" else alignment()
        test["headline"] = test["headline"] | {"value": value}
        write_tuned(tmp_path / name, test, task=task)
    report([tmp_path / name for name, _, _ in tests], out=tmp_path / "all.html")
    text = (tmp_path / "all.html").read_text()
    best = [cell.partition("\u00a0%")[0] for cell in re.findall(r'class="best">([^<]*)', text)]
    assert best == ["4.00", "70.00"]  # the others are equal
    assert Page(text).headings[:2] == ["Alignment", "Expression"]
    assert "**4.00 % (" in (tmp_path / "all.md").read_text()


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}"])
def test_a_fine_tuning_run_without_scores_still_has_a_page(tmp_path: Path, quick: None, content: bytes | None) -> None:
    run = write_tuned(tmp_path / "mine", expression())
    (run / "results.json").unlink()
    if content is not None:
        (run / "results.json").write_bytes(content)
    (run / "model.json").unlink()
    assert write_report(run)["headline"] is None
    page = Page((run / "report.html").read_text())
    assert page.headings[0] == "Loss"
    assert "No scores (results.json: " in page.text
