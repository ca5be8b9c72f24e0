"""From a path to a network: run folders, checkpoints, exports, the authors' files."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import facessl
from facessl.cli import main
from facessl.core import checkpoint
from facessl.core.errors import CheckpointError, ConfigError
from facessl.methods.fra import FRA
from facessl.models.backbone import Backbone
from facessl.pretrained.load import backbone_card, load_frozen
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


def test_a_loaded_backbone_can_be_trained(run: Path) -> None:
    """One whose parameters were frozen would stay as it is in a user's own loop, without a word."""
    for way in (run, run / "backbone.safetensors", RANDOM):
        backbone = facessl.load_backbone(way)
        assert not any(module.training for module in backbone.modules())
        backbone.train()
        backbone(torch.rand(2, 3, 64, 64)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in backbone.parameters())
        assert not any(parameter.requires_grad for parameter in load_frozen(way).parameters())


@pytest.mark.shared
def test_a_checkpoint_of_the_released_fra_is_recognized(tmp_path: Path) -> None:
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


@pytest.mark.fault("B2", "a Lightning .ckpt, a compiled or wrapped network or an argparse.Namespace was refused")
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "backbone.", "model.encoder.module."])
@pytest.mark.parametrize("name", [None, "resnet18"])
def test_checkpoints_of_others_code_are_read(prefix: str, name: str | None, tmp_path: Path) -> None:
    network = timm.create_model("resnet18").state_dict()
    state = {"pytorch-lightning_version": "2", "state_dict": {prefix + key: value for key, value in network.items()}}
    state |= {"args": argparse.Namespace(out=tmp_path, size=64)}
    state["state_dict"]["classifier.weight" if prefix.startswith("backbone") else f"{prefix}fc.bias"] = torch.zeros(
        1000
    )
    torch.save(state, tmp_path / "epoch=1.ckpt")
    found = facessl.load_backbone(tmp_path / "epoch=1.ckpt", name=name).model.state_dict()
    assert all(torch.equal(value, network[key]) for key, value in found.items())


@pytest.mark.fault("E9", "wrong types in a card were tracebacks, and its options could make loading download")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": "x"}, "mean is 'x' instead of a list of 3"),
        ({"std": [0.5, 0.0, 0.5]}, r"std = \[0.5, 0.0, 0.5\] is not a normalization"),
        ({"image_size": "x"}, "image_size is 'x' instead of a whole number"),
        ({"image_size": 10**9}, "image size 1000000000 is out of range"),
        ({"timm_name": 5}, "timm_name is 5 instead of a text"),
        ({"timm_name": "hf-hub:a/b"}, "hf-hub:a/b"),
        ({"timm_options": [1]}, "timm_options is a list instead of an object"),
        ({"timm_options": {"pretrained": True}}, "timm_options.pretrained is not a property of test_resnet"),
        ({"timm_options": {"checkpoint_path": "/dev/zero"}}, "timm_options.checkpoint_path"),
        ({"timm_options": {"output_stride": "x"}}, "output_stride"),
    ],
)
def test_a_card_that_cannot_be_used_is_told(run: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    tensors, card = checkpoint.read_safetensors(run / "backbone.safetensors")
    checkpoint.write_backbone(tmp_path / "b.safetensors", tensors, card | change)
    with pytest.raises(CheckpointError, match=rf"b\.safetensors.*{said}"):
        facessl.load_backbone(tmp_path / "b.safetensors")


@pytest.mark.fault("A8", "`--backbone.pretrained` with weights trained on a mean of 0.5 used ImageNet's")
@pytest.mark.fault("B3", "`--resume` of a run with pre-trained weights downloaded them again")
def test_pretrained_weights_bring_their_normalization_and_are_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create, downloads = timm.create_model, []

    def instead(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        downloads.extend([name] * pretrained)
        return create(name, depth=1, **options)

    monkeypatch.setattr(timm, "create_model", instead)
    words = [*TINY, "--backbone", "vit_tiny_patch16_224", "--backbone.pretrained", "true", "--out", str(tmp_path / "r")]
    assert main(["pretrain", *words, "--max-steps", "1"]) == 0
    assert "normalized by mean (0.5, 0.5, 0.5)" in capsys.readouterr().err
    assert main(["pretrain", "--resume", "--out", str(tmp_path / "r")]) == 0
    assert downloads == ["vit_tiny_patch16_224"]
    assert (facessl.load_backbone(tmp_path / "r").mean, downloads[1:]) == ((0.5, 0.5, 0.5), [])


RANDOM = "timm:resnet10t?pretrained=false"


def test_random_weights_of_timm_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (
        facessl.load_backbone(f"{RANDOM}{more}").model.conv1[0].weight for more in ("", "", "&seed=1")
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_network_of_timm_stands_where_a_run_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces, out = "synthetic:?n=12&size=64", tmp_path
    assert main(["embed", RANDOM, faces, "--out", str(out / "e.parquet"), "--workers", "0"]) == 0
    assert main(["probe", RANDOM, faces, "--k", "3"]) == 0
    tuned = ["--task", "expression", "--max-steps", "1", "--workers", "0", "--image-size", "64", "--batch-size", "4"]
    assert main(["finetune", RANDOM, faces, *tuned, "--out", str(out / "run")]) == 0
    assert main(["convert", RANDOM, "--out", str(out / "b.safetensors")]) == 0
    assert torch.equal(
        facessl.load_backbone(out / "b.safetensors").model.bn1.bias, facessl.load_backbone(RANDOM).model.bn1.bias
    )
    capsys.readouterr()
    for words, said in (
        (["regions", RANDOM, faces], "is a backbone without its method: name a run folder"),
        (["predict", RANDOM, "x.jpg"], "holds no trained task"),
        (["embed", "timm:resnet10tt", faces], "did you mean 'resnet10t'"),
        (["embed", "timm:resnet10t?pretrain=no", faces], "write timm:NAME, or timm:NAME"),
        (["embed", f"timm:resnet10t?seed={10**22}", faces], "write timm:NAME, or timm:NAME"),
        (["embed", "timm:resnet10t.", faces], "unknown backbone 'resnet10t.'"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.fault("B3", "pre-trained weights without a network were 86 lines of traceback, after a minute")
def test_weights_of_timm_come_with_their_normalization_or_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no route")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained=False, **options: create(name, **options))
    backbone = facessl.load_backbone("timm:vit_tiny_patch16_384.augreg_in21k_ft_in1k")
    assert (backbone.mean, backbone.std, backbone.image_size) == ((0.5,) * 3, (0.5,) * 3, 384)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"downloaded \(no route\): .*facessl convert weights.pth --name resnet18"):
        facessl.load_backbone("timm:resnet18")


@pytest.mark.parametrize(("name", "pooling"), [("resnet10t", "avg"), ("test_vit", "token"), ("test_convnext", "avg")])
@pytest.mark.fault("C8", "the card did not say how to resize and pool, so that a user of timm alone had to guess")
def test_the_card_is_enough_for_timm_alone(name: str, pooling: str) -> None:
    backbone = facessl.load_backbone(f"timm:{name}?pretrained=false")
    card = backbone_card(backbone, method={}, source="", steps=None, commit="")
    assert card["pooling"] == pooling
    size = card["image_size"]
    settings = {key: card[key] for key in ("interpolation", "crop_pct", "crop_mode", "mean", "std")}
    transform = timm.data.create_transform((3, size, size), **settings)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))
    ours, theirs = backbone.preprocess(photo)[0], transform(photo)
    assert (ours - theirs).abs().max() < 1.1 / 255 / min(card["std"])


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no known kind"):
        facessl.load_backbone(path)


@pytest.mark.fault("E9", "options of a recipe or checkpoint made timm read other files and addresses")
@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_no_option_reads_another_file(option: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone.options.{option} is not a property of test_resnet"):
        Backbone("test_resnet", image_size=32, **{option: "evil.pth"})
