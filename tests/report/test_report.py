import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facessl.core.errors import CheckpointError, ConfigError
from facessl.report.curves import Line, curve
from facessl.report.write import report, write_comparison, write_report
from tests.report_runs import Page, expression, write_run, write_tuned


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "mine")


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


def test_page_holds_every_section_curve_and_picture(run: Path) -> None:
    write_report(run)
    page = Page((run / "report.html").read_text())
    assert page.headings == [
        "Loss", "k-NN over time", "Representation and regions", "Schedule", "Speed", "Regions", "Regions over time",
        "Configuration", "Skipped images", "Environment",
    ]  # fmt: skip
    titles = ("relation", "k-NN accuracy", "Embedding spread", "Sharpness of the regions", "Learning rate")
    assert all(title in page.text for title in titles)
    assert page.tags.count("img") == 4  # the last regions and three steps
    for words in ("30.0 → 40.0 %", "No collapse", "num_regions: 8", "1 image was skipped", "0123456789ab"):
        assert words in page.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", None, "No loss was logged (mine/metrics.csv not there)"),
        ("config.yaml", None, "config.yaml: not there"),
        ("environment.json", None, "environment.json: not there"),
        ("regions.png", None, "regions.png is not there"),
        ("regions", None, "regions/ is not there or empty"),
        ("skipped.csv", None, "None: every image that was asked for could be read"),
        ("metrics.csv", b"step,loss\n", "holds no rows yet"),
        ("metrics.csv", b"\x00\xff\x00", "holds no rows yet"),
        ("config.yaml", b"a: [1,", "unreadable"),
        ("config.yaml", b"just words", "holds no settings"),
        ("environment.json", b"{", "unreadable"),
        ("regions.png", b"no picture", "regions.png cannot be read"),
        ("regions/step-00000050.png", b"", "step-00000050.png cannot be read"),
    ],
)
def test_a_missing_or_damaged_piece_is_named_and_the_rest_is_there(
    run: Path, quick: None, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (run / name).write_bytes(content)
    elif name == "regions":
        shutil.rmtree(run / name)
    else:
        (run / name).unlink()
    write_report(run)
    page = Page((run / "report.html").read_text())
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
    run = write_run(tmp_path / "dead", spread=0.001)
    assert len(write_report(run)["collapse"]) == 1
    assert "have collapsed" in Page((run / "report.html").read_text()).text
    assert "have collapsed" in (run / "report.md").read_text()


def test_uniform_regions_are_said_in_words_and_are_no_collapse(tmp_path: Path, quick: None) -> None:
    run = write_run(tmp_path / "flat", sharp=0.126)
    assert write_report(run)["collapse"] == []
    page = Page((run / "report.html").read_text()).text
    assert "The regions are uniform" in page
    assert "effective number of regions 6.00" not in page
    assert write_report(write_run(tmp_path / "alive", sharp=0.2))["notes"] == []


@pytest.mark.fault("C2", "regions were called uniform from step 0's figures, and the last log line's step was told")
def test_a_run_stopped_between_log_lines_is_told_as_far_as_it_came(tmp_path: Path, quick: None) -> None:
    run = write_run(tmp_path / "short", sharp=0.125)
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:4]))  # measured at step 0, logged at 10 and 20
    (run / "status.json").write_text(json.dumps({"finished": False, "steps": 30}))
    numbers = write_report(run)
    assert (numbers["steps"], numbers["epochs"], numbers["images"], numbers["notes"]) == (30, 1.5, 960, [])


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other is not a run folder: "):
        report([tmp_path / "other"])


def test_comparison_shows_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    second = write_run(tmp_path / "theirs", lr=0.2)
    result = report([run, second], out=tmp_path / "both.html")
    assert [numbers["run"] for numbers in result["runs"]] == ["mine", "theirs"]
    assert (second / "report.html").is_file()
    text = (tmp_path / "both.html").read_text()
    page = Page(text)
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
    heights = {float(v) for v in re.findall(r"[ML] [\d.]+ ([\d.]+)", path[1])}
    assert max(heights) - min(heights) < 1  # every bin averages to a half; the band holds 0 and 1


@pytest.mark.fault("C6", "losses of different tasks shared one axis")
def test_runs_of_both_kinds_are_compared_in_two_tables(run: Path, tmp_path: Path, quick: None) -> None:
    tuned = write_tuned(tmp_path / "tuned", expression())
    result = report([run, tuned], out=tmp_path / "both.html")
    assert [numbers["run"] for numbers in result["runs"]] == ["mine", "tuned"]
    page = Page((tmp_path / "both.html").read_text())
    assert {"k-NN over time", "Score over time", "Regions"} <= set(page.headings)
    assert page.headings[:2] == ["Pre-training", "Expression"]
    assert {"Loss, fra", "Loss, expression"} <= set(page.titles)  # not on one axis
    assert (tmp_path / "both.md").read_text().count("| run |") == 2


def test_a_reference_is_named_in_the_caption_and_not_over_the_lines() -> None:
    figure = curve("Sharpness", [Line(np.arange(3), np.ones(3) / 8)], unit="a fraction", references={"uniform": 1 / 8})
    caption, drawing = figure.split("</figcaption>")
    assert "a fraction; dashed: uniform" in caption
    assert "uniform" not in drawing
