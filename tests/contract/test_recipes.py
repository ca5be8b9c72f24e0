"""Every shipped recipe parses, says where it comes from, and holds the values of the table that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

import facessl
from facessl import config, parsing
from facessl.pretraining import derive

ROOT = Path(facessl.__file__).parent / "recipes"


@pytest.mark.parametrize("name", config.recipes())
def test_recipe_is_valid_and_has_its_header(name: str) -> None:
    text = (ROOT / f"{name}.yaml").read_text()
    for field in ("# command:", "# source:", "# hardware:", "# score:", "# status:"):
        assert field in text, f"{name} lacks {field}"
    assert f"--config {name}" in text, "the command must be the recipe's own"
    parsed = parsing.parse(["--config", name])
    assert parsing.from_dict(parsed.to_dict()) == parsed


SCHEDULE = {"batch_size": 512, "epochs": 50, "image_size": 224, "seed": 23456}
LARS = {"name": "lars", "momentum": 0.9, "weight_decay": 1e-6, "trust": 0.001, "warmup_epochs": 10}

#: FRA, Tables 5-8: (use_global, use_local, use_relation), N, lambda_c, lambda_r, decoder layers.
TABLES = {
    "table5-gc": ((True, False, False), 8, 0.5, 0.1, None),
    "table5-sr": ((False, False, True), 8, 0.5, 0.1, None),
    "table5-lc": ((False, True, False), 8, 0.5, 0.1, None),
    "table5-gc-lc": ((True, True, False), 8, 0.5, 0.1, None),
    "table5-all": ((True, True, True), 8, 0.5, 0.1, None),
    "table6-n8": ((True, True, True), 8, 0.5, 0.1, None),
    "table6-n32": ((True, True, True), 32, 0.5, 0.1, None),
    "table6-n64": ((True, True, True), 64, 0.5, 0.1, None),
    "table7-lc1.0-lr0": ((True, True, True), 8, 1.0, 0.0, None),
    "table7-lc0.5-lr0": ((True, True, True), 8, 0.5, 0.0, None),
    "table7-lc0.5-lr0.1": ((True, True, True), 8, 0.5, 0.1, None),
    "table7-lc0.5-lr0.5": ((True, True, True), 8, 0.5, 0.5, None),
    "table7-lc0.5-lr1.0": ((True, True, True), 8, 0.5, 1.0, None),
    "table8-layers0": ((True, True, True), 8, 0.5, 0.1, 0),
    "table8-layers1": ((True, True, True), 8, 0.5, 0.1, 1),
    "table8-layers2": ((True, True, True), 8, 0.5, 0.1, 2),
    "table8-layers3": ((True, True, True), 8, 0.5, 0.1, 3),
}


def test_every_ablation_row_is_listed_here() -> None:
    assert {n.rsplit("/", 1)[1] for n in config.recipes() if "/ablation/" in n} == set(TABLES)


@pytest.mark.parametrize("row", TABLES)
def test_ablation_recipe_has_its_row(row: str) -> None:
    m = parsing.parse(["--config", f"fra/ablation/{row}"]).method
    found = ((m["use_global"], m["use_local"], m["use_relation"]), m["num_regions"], m["lambda_c"], m["lambda_r"])
    assert (*found, m["decoder_layers"]) == TABLES[row]
    assert m["variant"] == "paper"


@pytest.mark.parametrize("name", ["fra/vggface2-r50", "fra/vggface2-r50-official", "byol/vggface2-r50"])
def test_published_schedule(name: str) -> None:
    parsed = parsing.parse(["--config", name])
    assert {k: getattr(parsed, k) for k in SCHEDULE} == SCHEDULE
    assert {k: getattr(parsed.optim, k) for k in LARS} == LARS
    assert parsed.backbone.name == "resnet50"

    class Faces:
        streaming = False

        def __len__(self) -> int:
            return 512 * 100

    plan = derive(parsed, Faces(), parsed)  # type: ignore[arg-type]
    assert plan.total_steps == 50 * 100
    assert plan.learning_rate(10 * 100 - 1) == pytest.approx(0.9)
    assert plan.learning_rate(0) == pytest.approx(0.9 / 1000)
    assert plan.learning_rate(30 * 100) == pytest.approx(0.45)
