"""The scripts that print tables: what they call passed, and what they compare."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from facessl.core import plugins
from facessl.report.folder import read_run_folder
from tests.helpers import script


@pytest.mark.parametrize(
    ("rows", "verdicts"),
    [
        (["0,,0.1,0.20", "10,3.0,,", "20,2.0,0.7,0.25"], ["pass", "pass", "pass"]),
        (["0,,0.1,0.20", "10,2.0,,", "20,2.0,0.2,0.20"], ["FAIL", "FAIL", "FAIL"]),
        (["0,,0.1,", "10,3.0,,"], ["FAIL", "FAIL", "-"]),
    ],
)
def test_smoke_table_passes_only_what_rose(rows: list[str], verdicts: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: {name: byol}\nbackbone: {name: resnet10t}\n")
    head = "step,loss,monitor/embedding_std,monitor/knn_accuracy"
    (tmp_path / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    last = script("results").smoke_table([read_run_folder(tmp_path)]).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")][-3:] == verdicts


def test_methods_are_compared_on_the_backbone_they_are_made_for() -> None:
    methods = script("methods")
    every = Namespace(methods=plugins.names("methods"), backbone=["resnet50", "vit_base_patch16_224"])
    assert {"fra", "pcl", "swav", "lewel"} <= set(methods.chosen(every, "resnet50"))
    assert set(methods.chosen(every, "vit_base_patch16_224")) == {"byol", "simclr", "mae", "mcf", "farl"}
    vit = Namespace(methods=["fra", "mae"], backbone=["vit_base_patch16_224"])
    assert methods.chosen(vit, "vit_base_patch16_224") == ["byol", "fra", "mae"], "BYOL is what the rest is divided by"
    assert methods.views_of("swav", 224) == "2 x 224 + 6 x 96"
