"""What every method of `facessl list methods` must do; a new file in methods/ is tested without a new test."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from facessl.cli import main
from facessl.config import parse
from facessl.config.optim import PretrainOptim
from facessl.config.pretrain import PretrainConfig
from facessl.config.run import BackboneConfig, flatten, to_plain
from facessl.core import plugins
from facessl.core.errors import ConfigError, PluginError
from facessl.core.types import Batch, Progress, Step
from facessl.methods.base import Method
from facessl.models.backbone import Backbone
from facessl.pretrained.load import load_backbone
from facessl.training.optimizers import build_optimizer, parameter_groups
from tests.helpers import CpuGenerator, lacking, on_one_device

METHODS = plugins.names("methods")
SMALL = {"hidden": 32, "dim": 16, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4}
SMALL |= {"teacher": "timm:test_resnet?pretrained=false", "text_width": 32, "text_depth": 1, "text_heads": 2}
SMALL |= {
    "hidden_dim": 32,
    "bottleneck_dim": 16,
    "out_dim": 12,
    "teacher_dim": 96,
    "prototypes": 12,
    "queue_length": 4,
    "queue_step": 1,
}
VIT = "test_vit"


def build(name: str, backbone: str = "test_resnet", size: int = 64, **values: Any) -> Any:
    kind = plugins.find("methods", name)
    known = {f.name for f in dataclasses.fields(kind.Args)}
    torch.manual_seed(0)
    backbone = VIT if getattr(kind, "patches_only", False) else backbone
    method = kind(Backbone(backbone, image_size=size), **{k: v for k, v in {**SMALL, **values}.items() if k in known})
    if hasattr(method, "prepare"):
        method.prepare(load_backbone)
    return method


def batch(method: Any, size: int = 64, count: int = 4) -> Batch:
    torch.manual_seed(1)
    views = [torch.randn(count, 3, round(v.size * size), round(v.size * size)) for v in method.views]
    text = [f"face {i}" for i in range(count)] if "text" in method.needs else None
    return Batch(views=views, params=[], index=torch.arange(count), text=text)


@pytest.mark.parametrize("name", METHODS)
def test_declares_itself(name: str) -> None:
    kind = plugins.find("methods", name)
    assert dataclasses.is_dataclass(kind.Args)
    assert kind.Args.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert not lacking(build(name), Method)
    assert "Differences" in (kind.__doc__ or ""), "say where it leaves its paper"
    undocumented = [f.name for f in dataclasses.fields(kind.Args) if f.name not in (kind.Args.__doc__ or "")]
    assert not undocumented


@pytest.mark.parametrize("name", METHODS)
def test_published_settings_arrive_and_recipes_and_flags_beat_them(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = plugins.defaults("methods", name)
    assert published == getattr(plugins.find("methods", name), "defaults", {}), "read from the file without running it"
    words = ["--method", name]
    config = parse.parse(words)  # a key that is not a setting is a PluginError
    found = flatten(config.to_dict())
    assert {k: found[k] for k in flatten(published)} == flatten(to_plain(published))
    assert main(["pretrain", *words, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for flag, value in (("--backbone.name", config.backbone.name), ("--optim.lr", config.optim.lr)):
        assert re.search(rf" {flag} [A-Z].*?default: ([^\s)]+)", told)[1] == str(value)  # type: ignore[index]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim: {lr: 0.5, weight_decay: 0.25}\nbackbone: vit_tiny_patch16_224\n")
    changed = parse.parse([*words, "--config", str(recipe), "--optim.lr", "0.125"])
    assert changed.optim == dataclasses.replace(config.optim, lr=0.125, weight_decay=0.25)
    assert changed.backbone == BackboneConfig("vit_tiny_patch16_224"), "options are those of the published backbone"
    other = "lars" if config.optim.name == "adamw" else "adamw"
    rates = {"lars": (0.45, 1e-6), "adamw": (1.5e-4, 0.05)}
    optim = parse.parse([*words, "--optim.name", other]).optim
    assert (optim.lr, optim.weight_decay) == rates[other], "the rate of one optimizer is not that of another"
    assert optim.warmup_epochs is None


@pytest.mark.parametrize("name", METHODS)
def test_a_stored_configuration_keeps_its_values(name: str, tmp_path: Path) -> None:
    old = {**PretrainConfig().to_dict(), "method": parse.parse(["--method", name]).to_dict()["method"]}
    assert parse.from_dict(old).to_dict() == old
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    resumed = parse.parse(["--resume", "--out", str(tmp_path)])
    assert resumed.to_dict() == {**old, "resume": True, "out": str(tmp_path)}


def test_defaults_that_are_no_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, said in (
        ({"optim": {"rate": 1.0}}, "method byol: defaults has optim.rate, which is not a setting: rename or remove it"),
        ({"optim": "adamw"}, "method byol: optim = 'adamw' in its defaults is not valid: give names and values"),
    ):
        monkeypatch.setattr(plugins, "defaults", lambda folder, name, wrong=wrong: wrong)
        with pytest.raises(PluginError, match=re.escape(said)):
            parse.parse(["--method", "byol"])


@pytest.mark.parametrize("name", [name for name in METHODS if hasattr(plugins.find("methods", name), "view_count")])
def test_takes_as_few_views_as_it_says(name: str) -> None:
    method = build(name)
    fewest, most = method.view_count
    assert fewest <= len(method.views) <= (most or len(method.views))
    few = batch(method)
    few.views = few.views[:fewest]
    assert torch.isfinite(method.step(few, Progress(step=0, total_steps=10)).loss)


@pytest.mark.parametrize("backbone", ["test_resnet", VIT])
@pytest.mark.parametrize("name", METHODS)
def test_one_step_gives_every_trained_weight_a_gradient(name: str, backbone: str) -> None:
    if backbone != VIT and getattr(plugins.find("methods", name), "patches_only", False):
        with pytest.raises(ConfigError, match="give a ViT"):
            plugins.find("methods", name)(Backbone(backbone, image_size=64))
        return
    method = build(name, backbone)
    result = method.step(batch(method), Progress(step=0, total_steps=10))
    assert isinstance(result, Step)
    assert result.loss.ndim == 0
    assert torch.isfinite(result.loss)
    assert result.logs
    assert all(not v.requires_grad for v in result.logs.values())
    result.loss.backward()
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    without = {n for n in trained if method.get_parameter(n).grad is None}
    assert not without, f"DDP would wait for them: {sorted(without)[:5]}"
    assert all(p.grad is None for n, p in method.named_parameters() if n.startswith("target_"))


@pytest.mark.parametrize("name", METHODS)
def test_step_changes_no_parameter_and_after_step_moves_the_target_alone(name: str) -> None:
    method = build(name)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    method.step(batch(method), Progress(step=0, total_steps=10)).loss.backward()
    assert all(torch.equal(before[n], p) for n, p in method.named_parameters())
    groups = parameter_groups(method, 0.0)
    torch.optim.SGD([p for g in groups for p in g["params"]], lr=1.0).step()
    trained = {n: p.detach().clone() for n, p in method.named_parameters()}
    assert any(not torch.equal(before[n], trained[n]) for n in trained)
    progress = Progress(step=1, total_steps=10)
    method.after_step(progress)
    after = {n: p.detach() for n, p in method.named_parameters()}
    targets = {n for n in after if n.startswith("target_")}
    assert bool(targets) == hasattr(method, "ema_momentum"), (
        "a momentum network is called target_ and says its momentum"
    )
    for n in targets:
        online = trained[n.removeprefix("target_")]
        torch.testing.assert_close(after[n], trained[n].lerp(online, 1 - method.ema_momentum(progress)))
    assert not targets or any(not torch.equal(after[n], trained[n]) for n in targets), "the target stands still"
    for n in after.keys() - targets:
        if not torch.equal(trained[n], after[n]):
            turned = 1 - torch.nn.functional.cosine_similarity(trained[n], after[n], dim=-1)
            assert turned.max() < 1e-6, f"after_step may rescale rows (prototypes) of the online network, no more: {n}"


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_holds_everything(name: str) -> None:
    method, twin = build(name), build(name)
    method.step(batch(method), Progress(step=0, total_steps=10)).loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.01)
    twin.load_state_dict(method.state_dict())
    first, second = (m.eval().step(batch(m), Progress(step=3, total_steps=10)).loss for m in (method, twin))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", METHODS)
def test_restarted_method_goes_on_to_the_bit(name: str) -> None:
    """Momentum networks, queues and loss weights of past epochs are in the state dict and nowhere else."""
    method = build(name)
    data = batch(method, count=2)
    train(method, data, range(4))
    twin = build(name)
    twin.load_state_dict(method.state_dict())
    for one in (method, twin):
        train(one, data, range(4, 6))
    other = {n for n, v in method.state_dict().items() if not torch.equal(v, twin.state_dict()[n])}
    assert not other, sorted(other)[:5]


def train(method: Any, data: Batch, steps: range) -> None:
    """Plain gradient steps; epochs end after steps 0, 2 and 4, so that the restart is in the middle of one."""
    for step in steps:
        progress = Progress(step=step, total_steps=6, epoch=(step + 1) // 2)
        torch.manual_seed(step)
        method.step(data, progress).loss.backward()
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(1e-3 * p.grad)
                    p.grad = None
        method.after_step(progress)


VARIANTS = [
    ("fra", {"targets": "color"}),
    ("fra", {"variant": "official", "relation": "both", "frame_prior": 1.0}),
    ("fra", {"mask_embeddings": "free"}),
    ("lewel", {"variant": "syncbn"}),
    ("distill", {"distance": "l2"}),
    ("farl", {"masking": "block"}),
    ("mae", {"norm_pix": True}),
    ("pcl", {"mix_alpha": None}),
]


@pytest.mark.parametrize(("name", "values"), [*((name, {}) for name in METHODS), *VARIANTS])
def test_a_step_stays_on_its_device(name: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors: what fails here fails on a GPU, or leaves it idle while the host waits."""
    monkeypatch.setattr(torch, "Generator", CpuGenerator)
    method = build(name, **values).to("meta")
    data = batch(method, count=2)
    data = dataclasses.replace(data, crops=[torch.rand(len(data), 5) for _ in data.views]).to("meta")
    optimizers = [build_optimizer(method, PretrainOptim(name=optimizer), 1e-3) for optimizer in ("lars", "adamw")]

    def step(number: int) -> None:
        progress = Progress(number, 10, epoch=number // 4)
        method.step(data, progress).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        method.zero_grad(set_to_none=True)
        method.after_step(progress)

    for number in (0, 8):  # constants are made at first
        step(number)
    with on_one_device():
        for number in (1, 9):
            step(number)


@pytest.mark.parametrize("name", [name for name in METHODS if hasattr(plugins.find("methods", name), "heatmaps")])
def test_heatmaps_divide_every_cell_among_the_regions(name: str) -> None:
    method = build(name).eval()
    assert getattr(method, "has_regions", True)
    maps = method.heatmaps(torch.randn(3, 3, 64, 96))
    assert (len(maps), *maps.shape[2:]) == (3, 2, 3)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(1), torch.ones(3, 2, 3))
