import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from facessl.errors import CheckpointError, ConfigError
from facessl.figures import Line, curve, region_picture
from facessl.metrics.multilabel import attribute_scores
from facessl.metrics.nme import landmark_scores
from facessl.metrics.segmentation import ConfusionMatrix, parsing_scores
from facessl.report import curves as report_curves
from facessl.report import report, write_comparison, write_report
from facessl.report.folder import read_run_folder
from facessl.tasks.expression import ExpressionMeter

CONFIG = {
    "source": "folder:/data/faces",
    "image_size": 64,
    "batch_size": 32,
    "backbone": {"name": "resnet18"},
    "method": {"name": "fra", "num_regions": 8},
}


def _write_run(folder: Path, *, spread: float = 0.4, sharp: float = 0.5, lr: float = 0.1) -> Path:
    """A run of 100 steps: a log line each 10, a measurement each 50."""
    (folder / "regions").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "optim": {"lr": lr}}))
    (folder / "environment.json").write_text(json.dumps({"commit": "0123456789ab", "versions": {"torch": "2.11.0"}}))
    (folder / "skipped.csv").write_text("key,reason\na/1.jpg,it begins with <script>alert(1)</script>\n")
    plain = ["step", "epoch", "images", "seconds", "loss", "relation", "lr", "momentum", "images_per_second"]
    watched = ["embedding_std", "usage_entropy", "sharpness", "knn_accuracy", "knn_accuracy_low", "knn_accuracy_high"]
    columns = [*plain, "data_wait", *(f"monitor/{w}" for w in watched)]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for step in range(0, 101, 10):
            head = {"step": step, "epoch": step / 20, "images": step * 32, "seconds": step * 2}
            if step % 50 == 0:
                share = 0.3 + step / 1000
                values = [0.2 + (spread - 0.2) * step / 100, 6, sharp, share, share - 0.02, share + 0.02]
                writer.writerow(head | {f"monitor/{w}": v for w, v in zip(watched, values, strict=True)})
                picture = region_picture(np.zeros((2, 16, 16, 3), np.uint8), torch.full((2, 8, 2, 2), 1 / 8))
                Image.fromarray(picture).save(folder / "regions" / f"step-{step:08d}.png")
            if step:
                terms = {"loss": 2 - step / 100, "relation": 2.08, "lr": 0.1, "momentum": 0.99}
                writer.writerow(head | terms | {"images_per_second": 16, "data_wait": 0.05})
    Image.fromarray(picture).save(folder / "regions.png")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return _write_run(tmp_path / "mine")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take a second a page; tests of the rest go without."""
    monkeypatch.setattr(report_curves, "curve", lambda title, *_, **__: f"<svg><title>{title}</title></svg>")


class _Page(HTMLParser):
    """Text, headings and every address of a page; fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str | None] = []
        self.headings: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "img", "path", "use", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "img", "path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self.open:
            self.text += data + " "


def test_headline_numbers_are_those_of_the_run(run: Path, quick: None) -> None:
    numbers = write_report(run)
    assert json.loads((run / "report.json").read_text()) == numbers
    expected = {
        "run": "mine", "method": "fra", "backbone": "resnet18", "steps": 100, "images": 3200, "seconds": 200,
        "images_per_second": 16, "loss_first": 1.9, "loss": 1.0, "skipped": 1,
    }  # fmt: skip
    assert {key: numbers[key] for key in expected} == pytest.approx(expected)
    assert numbers["collapse"] == []
    assert numbers["knn_first"]["accuracy"] == pytest.approx(0.3)
    assert numbers["knn"]["interval"] == pytest.approx([0.38, 0.42])


def test_page_fetches_nothing_and_runs_nothing(run: Path) -> None:
    write_report(run)
    text = (run / "report.html").read_text()
    page = _Page(text)
    assert all(address and address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "<script>alert(1)</script>" in page.text  # a reason with markup is shown, not run


def test_page_holds_every_section_curve_and_picture(run: Path) -> None:
    write_report(run)
    page = _Page((run / "report.html").read_text())
    assert page.headings == [
        "Loss", "k-NN over time", "Representation and regions", "Schedule", "Speed", "Regions", "Regions over time",
        "Configuration", "Skipped images", "Environment",
    ]  # fmt: skip
    titles = ("relation", "k-NN accuracy", "Embedding spread", "Sharpness of the regions", "Learning rate")
    assert all(title in page.text for title in titles)
    assert page.tags.count("img") == 4  # the last regions and three steps
    for words in ("30.0 → 40.0 %", "No collapse", "num_regions: 8", "1 image was skipped", "0123456789ab"):
        assert words in page.text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("metrics.csv", "No loss was logged (mine/metrics.csv not there)"),
        ("config.yaml", "config.yaml: not there"),
        ("environment.json", "environment.json: not there"),
        ("regions.png", "regions.png is not there"),
        ("regions", "regions/ is not there or empty"),
        ("skipped.csv", "None: every image that was asked for could be read"),
    ],
)
def test_a_missing_piece_is_named_and_the_rest_is_there(run: Path, quick: None, missing: str, said: str) -> None:
    for path in sorted((run / missing).glob("*")) if missing == "regions" else [run / missing]:
        path.unlink()
    write_report(run)
    page = _Page((run / "report.html").read_text())
    assert said in page.text
    assert len(page.headings) == 10


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", b"", "holds no rows yet"),
        ("metrics.csv", b"step,loss\n", "holds no rows yet"),
        ("metrics.csv", b"\x00\xff\x00", "holds no rows yet"),
        ("config.yaml", b"a: [1,", "unreadable"),
        ("config.yaml", b"just words", "holds no settings"),
        ("environment.json", b"{", "unreadable"),
        ("regions.png", b"no picture", "regions.png cannot be read"),
        ("regions/step-00000050.png", b"", "step-00000050.png cannot be read"),
    ],
)
def test_a_damaged_piece_is_named_and_the_rest_is_there(
    run: Path, quick: None, name: str, content: bytes, said: str
) -> None:
    (run / name).write_bytes(content)
    write_report(run)
    page = _Page((run / "report.html").read_text())
    assert said in page.text
    assert len(page.headings) == 10


def test_half_a_last_line_and_values_that_are_not_finite_do_not_count(run: Path, quick: None) -> None:
    with (run / "metrics.csv").open("a") as file:
        file.write("110,5.5,3520,220,nan,2.08,0.1,0.99,16,0.05" + "," * 6 + "\n120,6,38")
    numbers = write_report(run)
    assert numbers["steps"] == 110
    assert numbers["loss"] == pytest.approx(1.0)
    json.loads((run / "report.json").read_text(), parse_constant=pytest.fail)


def test_a_collapse_is_said_in_words(tmp_path: Path, quick: None) -> None:
    run = _write_run(tmp_path / "dead", spread=0.001)
    assert len(write_report(run)["collapse"]) == 1
    assert "have collapsed" in _Page((run / "report.html").read_text()).text
    assert "have collapsed" in (run / "report.md").read_text()


def test_uniform_regions_are_said_in_words_and_are_no_collapse(tmp_path: Path, quick: None) -> None:
    run = _write_run(tmp_path / "flat", sharp=0.126)
    assert write_report(run)["collapse"] == []
    assert "The regions are uniform" in _Page((run / "report.html").read_text()).text
    assert write_report(_write_run(tmp_path / "alive", sharp=0.2))["notes"] == []


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other is no run folder: "):
        report([tmp_path / "other"])


def test_comparison_shows_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    second = _write_run(tmp_path / "theirs", lr=0.2)
    result = report([run, second], out=tmp_path / "both.html")
    assert [numbers["run"] for numbers in result["runs"]] == ["mine", "theirs"]
    assert (second / "report.html").is_file()
    text = (tmp_path / "both.html").read_text()
    page = _Page(text)
    assert {"mine", "theirs", "optim.lr", "0.1", "0.2"} <= set(re.findall(r"[\w.]+", page.text))
    assert "num_regions" not in page.text  # the same in both
    loss = text[text.index('aria-label="Loss"') :]
    assert {"--series-0", "--series-1"} <= set(re.findall(r"--series-\d", loss[: loss.index("</svg>")]))


def test_a_run_named_twice_and_a_page_of_another_kind_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        write_comparison([run, run])
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        write_report(run, tmp_path / "page.pdf")


def test_a_long_curve_is_averaged_and_keeps_its_range(run: Path) -> None:
    y = np.tile([0.0, 1.0], 50_000)
    svg = curve("Loss", [Line(np.arange(len(y)), y)])
    assert len(svg) < 100_000
    path = re.search(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: none; stroke: var\(--series-0\)', svg)
    assert path is not None
    heights = {float(v) for v in re.findall(r"[ML] [\d.]+ ([\d.]+)", path[1])}
    assert max(heights) - min(heights) < 1  # every bin averages to a half; the band holds 0 and 1


def test_regions_are_known_from_the_configuration(run: Path) -> None:
    assert read_run_folder(run).regions == 8


# ---- runs of facessl finetune ----------------------------------------------------------------------------------

NAMES = ("angry", "calm", "glad")


def _expression() -> dict[str, Any]:
    """What the meter of the expression task says of 60 drawn faces in two groups."""
    target = np.arange(60) % 3
    predicted = np.where(np.arange(60) % 5 == 0, 0, target)
    meter = ExpressionMeter(NAMES, SimpleNamespace(label_names=NAMES, group_names=("women", "<b>men</b>")))  # type: ignore[arg-type]
    batch = SimpleNamespace(index=torch.arange(60), group=torch.arange(60) % 2, label=torch.from_numpy(target))
    meter.add({"probabilities": torch.eye(3)[predicted]}, batch)  # type: ignore[arg-type]
    return meter.result() | {"skipped": 0}


def _alignment() -> dict[str, Any]:
    errors = np.linspace(0.01, 0.12, 50)
    found = landmark_scores(errors, unit="interocular", thresholds=(0.1,)).summary()
    name = "nme_interocular"
    line = {"name": name, "value": found[name], "interval": found[f"{name}_interval"], "better": "lower"}
    subset = {"images": 9, name: 0.0812, f"{name}_interval": [0.07, 0.09]}
    return {"headline": line, **found, "subsets": {"pose": subset}, "images": 50}


def _parsing() -> dict[str, Any]:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 1], [1, 1]]), np.array([[0, 1], [1, 0]]))
    found = parsing_scores(matrix, names=("background", "skin", "hat")).summary()
    line = {"name": "mean_f1", "value": found["mean_f1"], "interval": found["mean_f1_interval"], "better": "higher"}
    return {"headline": line, **found}


def _attributes() -> dict[str, Any]:
    target = np.arange(80).reshape(40, 2) % 3 == 0
    found = attribute_scores(target * 0.9, target, names=("Hat", "Smile")).summary()
    name = "mean_accuracy"
    line = {"name": name, "value": found[name], "interval": found[f"{name}_interval"], "better": "higher"}
    return {"headline": line, **found}


def _write_tuned(folder: Path, test: dict[str, Any], *, task: str = "expression", select: str = "val") -> Path:
    folder.mkdir(parents=True)
    settings = {k: v for k, v in CONFIG.items() if k != "method"} | {"run": "runs/mine", "labels": "10%"}
    settings |= {"task": {"name": task}, "protocol": "finetune", "frozen": False, "select": select}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "status.json").write_text(json.dumps({"finished": True, "steps": 40}))
    (folder / "model.json").write_text(json.dumps({"labels": {"label_names": NAMES}}))
    rows = ["step,seconds,epoch,images,loss,coordinate,lr,monitor/val_accuracy"]
    rows += [f"{s},{s},{s / 20},{s * 32},{2 - s / 100},1.5,0.1,{s / 100}" for s in range(10, 41, 10)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    selected = {"step": 30, "name": "accuracy", "value": 0.3, "by": select}
    results = {"task": task, "protocol": "finetune", "selected": selected, "train_images": 219, "test": test}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_headline_of_a_fine_tuning_run(tmp_path: Path, quick: None) -> None:
    test = _expression()
    numbers = write_report(_write_tuned(tmp_path / "mine", test))
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
            _expression,
            ["Accuracy by class", "Confusion", "Groups"],
            ["majority class", "calm", "<b>men</b>"],
        ),
        ("alignment", _alignment, ["Subsets"], ["NME interocular", "8.12 %", "7.00 to 9.00 %", "AUC@0.10"]),
        ("parsing", _parsing, ["F1 by class"], ["mean IoU", "hat"]),
        ("attributes", _attributes, ["Accuracy by attribute"], ["mean balanced accuracy", "Smile"]),
    ],
)
def test_page_of_a_fine_tuning_run_shows_what_its_task_measured(
    tmp_path: Path, task: str, make: Callable[[], dict[str, Any]], sections: list[str], said: list[str]
) -> None:
    write_report(_write_tuned(tmp_path / "mine", make(), task=task))
    page = _Page((tmp_path / "mine" / "report.html").read_text())
    rest = ["Loss", "Score over time", "Schedule", "Speed", "Configuration", "Skipped images", "Environment"]
    assert page.headings == ["Scores", *sections, *rest]
    for words in [*said, f"{task.capitalize()} on resnet18", "Weights of step 30", "coordinate"]:
        assert words in page.text, words


def test_confusion_is_tinted_by_the_share_of_its_row(tmp_path: Path, quick: None) -> None:
    test = _expression() | {"confusion": [[30, 10, 0], [0, 5, 5], [0, 0, 0]]}
    write_report(_write_tuned(tmp_path / "mine", test))
    cells = re.findall(
        r"var\(--(good|bad)\) (\d+)%[^>]*>([\d,]+)</td>", (tmp_path / "mine" / "report.html").read_text()
    )
    assert [(tone, int(share)) for tone, share, _ in cells] == [
        ("good", 52), ("bad", 18), ("bad", 0),
        ("bad", 0), ("good", 35), ("bad", 35),
        ("bad", 0), ("bad", 0), ("good", 0),
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
    write_report(_write_tuned(tmp_path / "mine", _alignment(), task="alignment", **change))
    assert said in _Page((tmp_path / "mine" / "report.html").read_text()).text


def test_a_score_near_the_commonest_answer_is_said(tmp_path: Path, quick: None) -> None:
    test = _expression()
    low, high = test["accuracy_interval"]
    for name, share, said in (("dull", (low + high) / 2, "Not clearly above"), ("good", low - 0.01, "Above always")):
        write_report(_write_tuned(tmp_path / name, test | {"majority_class": share}))
        assert said in _Page((tmp_path / name / "report.html").read_text()).text


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}"])
def test_a_fine_tuning_run_without_scores_still_has_a_page(tmp_path: Path, quick: None, content: bytes | None) -> None:
    run = _write_tuned(tmp_path / "mine", _expression())
    (run / "results.json").unlink()
    if content is not None:
        (run / "results.json").write_bytes(content)
    (run / "model.json").unlink()
    assert write_report(run)["headline"] is None
    page = _Page((run / "report.html").read_text())
    assert page.headings[0] == "Loss"
    assert "No scores (results.json: " in page.text


def test_runs_of_both_kinds_are_compared_in_two_tables(run: Path, tmp_path: Path, quick: None) -> None:
    tuned = _write_tuned(tmp_path / "tuned", _expression())
    result = report([run, tuned], out=tmp_path / "both.html")
    assert [numbers["run"] for numbers in result["runs"]] == ["mine", "tuned"]
    page = _Page((tmp_path / "both.html").read_text())
    assert {"k-NN over time", "Score over time", "Regions"} <= set(page.headings)
    assert "expression (finetune)" in page.text
    assert (tmp_path / "both.md").read_text().count("| run |") == 2
