"""Published scores: the data agree with the recipes, and a run is compared with what it may be compared with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from facessl.config import parse as config_parse
from facessl.config import recipes
from facessl.config.commands import FINETUNE
from facessl.core import plugins
from facessl.core.errors import CheckpointError, UnknownName
from facessl.report import paper
from facessl.report.folder import read_run_folder
from facessl.report.write import report

ROWS, SCALE = paper.published()


def test_every_downstream_row_of_the_tables_is_published_with_a_known_unit() -> None:
    shipped = {n for n in recipes.recipes() if n.startswith("downstream/") and n.count("/") > 1}
    assert shipped == {row.recipe for row in ROWS if row.recipe}
    assert {score.rpartition("/")[2] for row in ROWS for score in row.scores} <= set(SCALE)


# ---- comparing -------------------------------------------------------------------------------------------------


def resolved(recipe: str, **changes: Any) -> dict[str, Any]:
    """`config.yaml` of a run of that recipe, made the way `facessl finetune` makes it."""
    parsed = config_parse.parse(["--config", recipe], command=FINETUNE)
    preset = plugins.find("tasks", parsed.task["name"]).augments[parsed.protocol]
    values = parsed.to_dict()
    augment = {**vars(preset), **values["augment"]}
    return json.loads(json.dumps({**values, "augment": augment, **changes}))  # type: ignore[no-any-return]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, settings: dict[str, Any], **test: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        protocol = "linear (frozen)" if settings["frozen"] else settings["protocol"]
        (folder / "results.json").write_text(json.dumps({"protocol": protocol, "test": test}))
        return folder

    return run


def compared(folder: Path) -> dict[str, Any]:
    own = paper.of_run(read_run_folder(folder))
    assert own is not None
    return paper.compare([own])


def by_method(found: dict[str, Any], score: str) -> dict[str, Any]:
    return {line["method"]: line for line in found["rows"] if line["score"] == score}


def test_a_run_of_the_recipe_is_comparable_wherever_its_data_lie(make: Callable[..., Path]) -> None:
    settings = resolved("downstream/table2/rafdb-ft-fra", source="rafdb:/home/me/raf", run="runs/x", seed=3, workers=1)
    found = compared(make("mine", settings, accuracy=0.9005, accuracy_interval=[0.89, 0.911]))
    line = by_method(found, "accuracy")["FRA"]
    assert line["comparable"]
    assert (line["measured"], line["published"]) == pytest.approx((90.05, 89.95))
    assert line["difference"] == pytest.approx(0.10)
    assert line["interval"] == pytest.approx([89.0, 91.1])
    assert by_method(found, "accuracy")["LEWEL"]["published"] == 81.85
    assert not by_method(found, "accuracy")["MCF"]["comparable"], "another backbone"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 20}, "epochs is 20, published: 100"),
        ({"image_size": 96}, "image_size is 96, published: 224"),
        ({"labels": "10%"}, "labels is 10%, published: all"),
        ({"select": "val"}, "select is val, published: test"),
        ({"source": "rafdb:/d?images=original"}, "source option images is original, published: not set"),
        ({"backbone": {"name": "resnet18", "options": {}}}, "backbone.name is resnet18, published: resnet50"),
        ({"optim": {"lr": 0.1}}, "optim.lr is 0.1, published: 0.0002"),
    ],
)
def test_what_makes_a_number_incomparable_is_named(
    make: Callable[..., Path], changes: dict[str, Any], said: str
) -> None:
    found = compared(make("mine", resolved("downstream/table2/rafdb-ft-fra", **changes), accuracy=0.9))
    assert not any(line["comparable"] for line in found["rows"])
    assert said in " ".join(found["notes"])


def test_a_frozen_backbone_is_linear_probing(make: Callable[..., Path]) -> None:
    found = compared(make("lp", resolved("downstream/table3/celeba-lp-fra"), mean_accuracy=0.9))
    assert [(line["protocol"], line["published"], line["comparable"]) for line in found["rows"]] == [
        ("linear", 90.86, True)
    ]


def test_subsets_and_units_of_landmarks(make: Callable[..., Path]) -> None:
    w300 = make(
        "w300",
        resolved("downstream/300w-star"),
        nme_interocular=0.03,
        subsets={"common": {"images": 554, "nme_interocular": 0.025}, "challenge": {"nme_interocular": 0.05}},
    )
    found = compared(w300)
    assert by_method(found, "challenge/nme_interocular")["FRA"]["difference"] == pytest.approx(5 - 4.46)
    assert by_method(found, "common/nme_interocular")["FRA"]["difference"] == pytest.approx(2.5 - 2.6)
    wflw = compared(make("wflw", resolved("downstream/wflw-star"), **{"auc@0.10": 0.6, "fr@0.10": 0.02}))
    assert by_method(wflw, "auc@0.10")["FRA"]["difference"] == pytest.approx(0.6 - 0.591)
    assert by_method(wflw, "fr@0.10")["FRA"]["difference"] == pytest.approx(2.0 - 2.53)


def test_two_numbers_of_one_method_are_both_shown(make: Callable[..., Path]) -> None:
    found = compared(make("farl", resolved("downstream/farl/300w-farl-farl"), nme_interocular=0.03))
    farl = [line for line in found["rows"] if line["method"] == "FaRL"]
    assert sorted((line["published"], line["comparable"]) for line in farl) == [(2.93, True), (3.08, True)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "folder:/photos"}, "no published score for folder; there are some of affectnet, aflw19"),
        (
            {"protocol": "star"},
            "no published score for rafdb with the protocol star; there are some with eac, finetune",
        ),
    ],
)
def test_nothing_to_compare_with_is_one_sentence(
    make: Callable[..., Path], settings: dict[str, Any], said: str
) -> None:
    found = compared(make("mine", resolved("downstream/table2/rafdb-ft-fra", **settings), accuracy=0.9))
    assert found["rows"] == []
    assert len(found["notes"]) == 1
    assert said in found["notes"][0]


def test_report_compares_runs_and_probes_and_prints_markdown(make: Callable[..., Path], tmp_path: Path) -> None:
    run = make("mine", resolved("downstream/table2/rafdb-ft-fra"), accuracy=0.9, accuracy_interval=[0.89, 0.91])
    probe = tmp_path / "probe.json"
    probe.write_text(json.dumps({"source": "rafdb:/d", "protocol": "linear", "accuracy": 0.74}))
    found = report([run, probe], compare="paper")
    assert json.loads(json.dumps(found)) == found
    printed = paper.table(found["paper"])
    assert (
        "| mine | rafdb | finetune | accuracy | 90.00 | 89.00 to 91.00 | 89.95 | FRA (FRA, Table 2) | +0.05 |"
        in printed
    )
    assert "| probe | rafdb | linear | accuracy | 74.00 | - | 73.89 | FRA (FRA, Table 2) | +0.11 (not" in printed
    assert "`facessl finetune --config downstream/table2/rafdb-lp-fra` is the published protocol" in printed
    assert "Published scores" in (run / "report.html").read_text()


def test_wrong_names_and_files_are_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    run = make("mine", resolved("downstream/table2/rafdb-ft-fra"), accuracy=0.9)
    with pytest.raises(UnknownName, match="comparison 'papers'"):
        report([run], compare="papers")
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"other\.json was not written by facessl.*instead of an object"):
        report([tmp_path / "other.json"], compare="paper")
