"""From a path to a network: run folders, checkpoints, exports, the authors' files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import facessl
from facessl.cli import main
from facessl.core.errors import CheckpointError
from facessl.methods.fra import FRA
from tests.conftest import SHARED
from tests.helpers import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading") / "run"
    assert main(["pretrain", *TINY, "--max-steps", "2", "--out", str(folder)]) == 0
    return folder


def test_every_way_to_the_backbone_gives_the_same_embedding(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "product.safetensors"  # the card travels inside the file
    shutil.copy(run / "backbone.safetensors", alone)
    ways = [run, run / "backbone.safetensors", run / "checkpoints" / "last.ckpt", alone]
    backbones = [facessl.load_backbone(way) for way in ways]
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    outputs = [b(b.preprocess(photo)) for b in backbones]
    assert all(torch.equal(outputs[0], o) for o in outputs)
    assert outputs[0].shape == (1, backbones[0].num_features)
    method = facessl.load_method(run)
    assert torch.equal(method.backbone(backbones[0].preprocess(photo)), outputs[0])


def test_the_card_says_what_is_needed(run: Path) -> None:
    card = json.loads((run / "backbone.json").read_text())
    assert {"timm_name", "image_size", "mean", "std", "method", "source", "steps", "commit"} <= card.keys()
    assert card["steps"] == 2


@pytest.mark.shared
def test_a_checkpoint_of_the_released_fra_is_recognised(tmp_path: Path) -> None:
    names = json.loads((SHARED / "golden" / "fra_official_resnet18.json").read_text())["names"]
    torch.manual_seed(0)
    state = {name: torch.rand(shape) for name, shape in names}
    state["module.center"].zero_()
    for name in names:
        twin = name[0].replace("module.encoder_q.", "module.online_net.backbone.")
        state[name[0]] = state[twin]
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 50, "state_dict": state}, path)
    backbone, method = facessl.load_backbone(path), facessl.load_method(path)
    assert torch.equal(backbone.model.conv1.weight, state["module.online_net.backbone.conv1.weight"])
    assert isinstance(method, FRA)
    assert method.heatmaps(torch.randn(1, 3, 64, 64)).shape == (1, 8, 2, 2)
    del state["module.online_net.backbone.layer3.0.conv1.weight"], state["module.encoder_q.layer3.0.conv1.weight"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointError, match=r"layer3\.0\.conv1\.weight"):
        facessl.load_backbone(path)


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no known kind"):
        facessl.load_backbone(path)
