"""A run folder that somebody else wrote: nothing in it becomes markup, and wrong values are named or left out."""

import csv
import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from facessl.report.write import report
from tests.report_runs import Page, expression, write_run, write_tuned

SCRIPT = "\" onerror=alert(1) '><script>alert(1)</script>$\\frac|\udce9"


def hostile(value: Any) -> Any:
    """`value` with a script in every text and every key that a person chooses."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()} | {SCRIPT: SCRIPT}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return value + SCRIPT if isinstance(value, str) else value


def spoil(run: Path, name: str) -> Path:
    """Put a script wherever a run folder has text: file names, columns, keys, values, labels."""
    for path in [*run.rglob("*.json"), run / "config.yaml"]:
        known = yaml.safe_load(path.read_text())
        path.write_text(json.dumps(hostile(known)))  # JSON is YAML
    with (run / "metrics.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    mark = SCRIPT.replace("\udce9", "")
    head += [mark, f"monitor/{mark}", f"monitor/val_{mark}", f"{mark}]]>"]
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *([*row, *"1234"] for row in rows)])
    with (run / "skipped.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("key", "reason"), (mark, mark)])
    return run.rename(run.with_name(name))


@pytest.mark.fault("E10", "a column name of metrics.csv was markup of the page")
def test_markup_of_a_strangers_run_is_shown_and_not_run(tmp_path: Path) -> None:
    test = expression()
    test["subsets"] = {"easy": {"images": 3, "accuracy": 0.5}}
    runs = [
        spoil(write_run(tmp_path / "a"), "a'><script>alert(1)<"),
        spoil(write_tuned(tmp_path / "b", test), "b<script>alert(1)<"),
    ]
    report(runs, out=tmp_path / "comparison.html")
    for page in (*(run / "report.html" for run in runs), tmp_path / "comparison.html"):
        text = page.read_text()
        found = Page(text)
        assert "<script" not in text.lower()
        assert not {"script", "link", "iframe", "object"} & set(found.tags)
        assert all(address and address.startswith(("data:image/", "#")) for address in found.addresses)
        assert not re.search(r"@import|url\((?!#)", text)
        assert "<script>alert(1)</script>" in found.text
        assert not any(name.startswith("on") for name in found.attributes)
        assert "<script" not in page.with_suffix(".md").read_text()
        json.loads(page.with_suffix(".json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test": 1}, "test is 1 instead of an object"),
        ({"test": {"headline": {"name": "x", "value": "high"}}}, "test.headline.value is 'high'"),
        ({"test": {"confusion": [["many"]]}}, "test.confusion.0.0 is 'many' instead of a whole number"),
        ({"test": {"subsets": {"easy": {"accuracy": "high"}}}}, "test.subsets.easy.accuracy is 'high'"),
        ({"test": {"groups": {"accuracy": {"groups": [{"images": 3}]}}}}, "test.groups.accuracy.groups.0 has no name"),
        ({"selected": {"by": "val", "name": "accuracy"}}, "selected has no step"),
    ],
)
@pytest.mark.fault("E9", "`report` ended in a traceback where results.json held another type")
def test_results_of_another_shape_are_named(tmp_path: Path, quick: None, change: dict[str, Any], said: str) -> None:
    run = write_tuned(tmp_path / "mine", expression())
    known = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(known | change))
    report([run])
    page = Page((run / "report.html").read_text())
    assert f"results.json: not what facessl writes: {said}" in page.text


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijklmno")
)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("regions.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "or not a PNG file"),
        ("regions.png", png(7000, 7000), "more than 40,000,000 pixels"),
        ("regions.png", png(2, 40_000), None),
        ("regions.png", None, "regions.png cannot be read: a link, which is not followed"),
        ("regions/step-00000050.png", None, "step-00000050.png cannot be read: a link"),
        ("config.yaml", None, "config.yaml: unreadable (a link, which is not followed)"),
        ("config.yaml", LAUGHS.encode(), "is not valid YAML: with what its aliases (`*name`) repeat"),
        ("config.yaml", b"a: !!timestamp x", "config.yaml: unreadable"),
        ("config.yaml", b"a: " + 60 * b"[" + 60 * b"]", "is not valid YAML: it is nested more than 20 deep"),
        ("config.yaml", b"method: {num_regions: many}", "method.num_regions is 'many' instead of a whole number"),
        ("config.yaml", b"image_size: 0x" + 5000 * b"f", "image_size: null"),
        ("config.yaml", bytes(1 << 19), "config.yaml: unreadable (524,288 bytes are more than the 262,144"),
        ("metrics.csv", b"step,loss\n1," + 200_000 * b"9", "metrics.csv unreadable (field larger than field limit"),
        ("metrics.csv", b"step,images,epoch\n1e-300,1e308,1e308\n", "No loss was logged"),
        ("skipped.csv", b"key,reason\n" + 200_000 * b"9", "skipped.csv: unreadable (field larger than field limit"),
        ("status.json", b'{"steps": "many"}', None),
        ("status.json", b'{"steps": 30, "source_images": [7]}', None),
    ],
)
@pytest.mark.fault("E6", "the report of a stranger's run showed linked files and ran Ghostscript on regions.png")
def test_a_strangers_file_is_read_as_what_it_should_be(
    tmp_path: Path, quick: None, name: str, content: bytes | None, said: str | None
) -> None:
    run, other = write_run(tmp_path / "mine"), write_run(tmp_path / "secret")
    (run / name).unlink(missing_ok=True)
    if content is None:
        (run / name).symlink_to(other / name)
    else:
        (run / name).write_bytes(content)
    report([run])
    assert said is None or said in Page((run / "report.html").read_text()).text


def test_a_linked_folder_of_pictures_is_not_followed(tmp_path: Path, quick: None) -> None:
    run, other = write_run(tmp_path / "mine"), write_run(tmp_path / "secret")
    shutil.rmtree(run / "regions")
    (run / "regions").symlink_to(other / "regions")
    report([run])
    page = Page((run / "report.html").read_text())
    assert page.tags.count("img") == 1
    assert "step-00000050.png cannot be read: a link" in page.text


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname.jpg", "link.jpg", "model.json", "worst-01.jpg/"])
def test_a_picture_from_elsewhere_is_not_shown(tmp_path: Path, quick: None, name: str) -> None:
    run = write_tuned(tmp_path / "mine", expression())
    Image.new("RGB", (9, 9)).save(tmp_path / "mine" / "secret.jpg")
    (run / "examples" / "link.jpg").symlink_to(run / "secret.jpg")
    listed = {"worst": [{"file": name, "measure": "probability"}]}
    (run / "examples" / "examples.json").write_text(json.dumps(listed))
    report([run])
    page = Page((run / "report.html").read_text())
    assert "img" not in page.tags
    assert f"examples/{name} cannot be read" in page.text


def test_scores_that_are_not_numbers_are_null(tmp_path: Path, quick: None) -> None:
    test = expression() | {"mean_class_accuracy": float("nan")}
    test["headline"] |= {"value": float("nan"), "interval": [float("nan"), float("inf")]}
    run = write_tuned(tmp_path / "mine", test)
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "labels: .nan\nday: 2026-01-01\n")
    report([run])
    found = json.loads((run / "report.json").read_text(), parse_constant=pytest.fail)
    assert found["headline"] == test["headline"] | {"value": None, "interval": [None, None]}
