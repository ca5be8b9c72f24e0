"""Names: those of earlier versions are read, and `facessl list` finds the present ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

import facessl
from facessl import load_method
from facessl.cli import main
from facessl.config.parse import from_dict, parse
from facessl.config.run import differences
from facessl.views.augment import augment_from_dict
from facessl.views.spec import RENAMED
from tests.helpers import TINY, weights


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    last, config = run / "checkpoints" / "last.ckpt", run / "config.yaml"
    views = "[{grayscale: 0.3}, {solarize: 0.2, solarize_threshold: 99}]"
    assert main(["pretrain", *TINY, "--views", views, "--max-minutes", "1e-9", "--out", str(run)]) == 0
    written = config.read_text()
    former = {name: old for old, name in RENAMED.items()}
    state = torch.load(last, weights_only=True)
    views = [{former.get(k, k): v for k, v in view.items()} for view in state["config"]["views"]]
    del state["sources"]
    state["config"]["views"] = [{**view, "scale": tuple(view["scale"])} for view in views]  # as then
    torch.save(state, last)
    config.write_text(re.sub("grayscale|solarize", lambda found: former[found[0]], written))
    assert {"grey: 0.3", "solarise_threshold: 99"} <= {line.strip() for line in config.read_text().splitlines()}
    kept = from_dict(yaml.safe_load(config.read_text()))
    assert kept.views == from_dict(yaml.safe_load(written)).views
    assert [view.grayscale for view in kept.views] == [0.3, 0.2]
    assert parse(["--config", str(config)]).views == kept.views
    load_method(run)
    assert main(["pretrain", "--resume", "--out", str(run), "--max-minutes", "null"]) == 0
    assert weights(run)["step"] == 10
    assert torch.load(last, weights_only=True)["config"]["views"][0]["grayscale"] == 0.3
    assert differences({"augment": {"grey": 0.1}}, {"augment": {"grayscale": 0.1}}) == []
    assert augment_from_dict({"grey": 0.1}).grayscale == 0.1
    assert from_dict({"method": {"name": "mcf", "variant": "paper"}}).method["variant"] == "channels"


@pytest.mark.fault(
    "C5",
    "`facessl list` alone was an error, and `list recipes` 121 lines without a filter",
    now="`list recipes WORD` filters, and `--show NAME` prints; a walk-through of a table row is *open*",
)
def test_list_filters_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "recipes" in capsys.readouterr().out
    for what, part in (("methods", "fra"), ("sources", "rafdb"), ("protocols", "knn"), ("recipes", "r50-official")):
        assert main(["list", what, part]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines
        assert all(part in line.split()[0] for line in lines)
    assert main(["list", "--show", "fra/vggface2-r50"]) == 0
    assert capsys.readouterr().out == (Path(facessl.__file__).parent / "recipes/fra/vggface2-r50.yaml").read_text()
