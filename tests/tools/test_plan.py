"""`facessl plan`: arithmetic that can be followed by hand, and that a real checkpoint agrees with."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from facessl.cli import main
from facessl.config import parse, recipes
from facessl.core import checkpoint
from facessl.core.errors import ConfigError
from facessl.pretrained import load
from facessl.tools import plan
from facessl.training import optimizers

#: Rows of FRA's ablations have the network of fra/vggface2-r50.
PRETRAINING = [name for name in recipes.recipes() if not name.startswith("downstream/") and "/ablation/" not in name]


def planned(recipe: str, **options: Any) -> dict[str, Any]:
    return plan.plan(plan.Options(recipe, **options))


def test_a_plan_by_hand() -> None:
    found = planned("fra/vggface2-r50", gpus=4, gpu_images_per_second="128:1000,256:1100", link_gbit=80, images=51_200,
                    norm_microseconds=50)  # fmt: skip
    # 51,200 images in batches of 512, 50 epochs; 0.9 at the batch it is meant for; 10 epochs of warm-up.
    assert (found["steps"], found["batch_per_gpu"], found["learning_rate"]) == (5000, 128, 0.9)
    assert found["warmup_steps"] == 1000
    # Ring: each GPU sends 2 * 3 / 4 of the gradients, 4 bytes each, over 10 GB/s.
    assert found["all_reduce_bytes"] == 1.5 * 4 * found["parameters"]
    seconds = 6 * found["parameters"] / 10e9
    # 53 norms of the backbone and some of the heads, per view forward online and target, backward online.
    norms = found["norm_messages"] * 50e-6
    assert 2 * 53 * 3 < found["norm_messages"] <= 2 * 59 * 3
    step = 0.128 + norms + seconds
    assert found["hours"] == pytest.approx(5000 * step / 3600)
    assert found["gpu_hours"] == pytest.approx(4 * found["hours"])
    assert found["hours_with_overlap"] == pytest.approx(5000 * (0.128 + norms) / 3600)
    assert found["decoding_cores"] == pytest.approx(512 / step / 2352)
    assert found["warnings"] == []


def test_a_small_batch_takes_the_time_that_was_measured_or_the_fixed_one() -> None:
    def seconds(images: float, rates: str | float) -> float:
        return plan.pass_seconds(images, plan.read_rates(rates))

    rates = "64:1280,8:320,256:1600"
    assert [round(1000 * seconds(n, rates), 3) for n in (8, 64, 256, 512)] == [25, 50, 160, 320]
    assert 1000 * seconds(36, rates) == pytest.approx(37.5), "half way between 8 and 64"
    assert 1000 * seconds(4, rates) == pytest.approx(22.5), "half way between nothing and 8"
    assert seconds(256, 1000) == 0.256
    assert 1000 * seconds(8, 1000) == pytest.approx(20 + 236 * 8 / 256), "not 8: the rate is that of 256 images"
    for wrong in ("fast", "8:", "8:400,8:500", "0:100", "8:-1", ""):
        with pytest.raises(ConfigError, match="8:400,64:1200,256:1500"):
            plan.read_rates(wrong)


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        ("mcf/laionface", {}, ""),
        ("mcf/laionface", {"gpus": 64}, "see 8 images per GPU and pass.*or --accumulate 1, which gives them 64"),
        ("simclr/laionface-r50", {"batch_size": 16384}, "--optim.lr 9.6 would go with the root"),
        ("fra/vggface2-r50", {"epochs": 16}, "warm-up is 62% of the run"),
        ("fra/vggface2-r50", {"batch_size": 16384, "warmup_epochs": 2}, "batch 512: 16384 with a rate of 28.8 was not"),
        ("fra/vggface2-r50", {"batch_size": 2048, "cores_per_gpu": 0.1}, "give each GPU 1 cores"),
        ("fra/vggface2-r50", {"gpus": 48}, "batch 512 does not divide by 48 GPUs x 1: use --batch-size 480 or 528"),
    ],
)
def test_what_would_fail_or_disappoint_is_said(recipe: str, options: dict[str, Any], told: str) -> None:
    warnings = " ".join(planned(recipe, gpu_images_per_second=1000, **options)["warnings"])
    assert re.search(told, warnings) if told else not warnings


def test_a_recipe_of_ones_own_is_planned_for_its_own_images(tmp_path: Path) -> None:
    (tmp_path / "vggface2-try").mkdir()
    recipe = tmp_path / "vggface2-try" / "mine.yaml"
    recipe.write_text("base: fra/smoke\nsource: synthetic:?n=500\n")
    assert planned(str(recipe))["images"] == 500
    recipe.write_text("base: fra/vggface2-r50\n")
    with pytest.raises(ConfigError, match="--images N"):
        planned(str(recipe))


def test_a_rate_that_stays_is_told_unless_it_was_asked_for() -> None:
    words = ["--config", "simclr/laionface-r50", "--batch-size", "64"]
    assert "optim.lr stays 4.8" in (parse.rate_note(parse.read(words), parse.parse(words)) or "")
    words += ["--optim.lr", "0.6"]
    assert parse.rate_note(parse.read(words), parse.parse(words)) is None


def test_the_checkpoint_has_the_planned_size(tmp_path: Path) -> None:
    settings = parse.parse(["--config", "fra/smoke"])
    method = load.build_method(settings)
    optimizer = optimizers.build_optimizer(method, settings.optim, 0.1)  # type: ignore[arg-type]
    for parameter in method.parameters():  # type: ignore[attr-defined]
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    state = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}  # type: ignore[attr-defined]
    written = checkpoint.save_run(tmp_path, 1, state).stat().st_size
    assert planned("fra/smoke", gpus=1)["checkpoint_bytes"] == pytest.approx(written, rel=0.01)


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_plans(name: str) -> None:
    known = any(part in name for part in plan.SETS) or "source" in recipes.read_recipe(name)
    found = planned(name, gpus=8, gpu_images_per_second=500, images=None if known else 200_000)
    assert found["steps"] > 0
    assert found["hours"] > 0
    assert found["checkpoint_bytes"] > 4 * found["parameters"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "fra/vggface2-r50", "--gpus", "64"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["hours"] is None
    assert any("hours" in line and "not known" in line for line in lines)
    assert any("warning: 112 batch norms" in line for line in lines)
    for recipe, options, told in (("fra/regions-within", {}, "--images N"), ("downstream/rafdb-ft", {}, "fine-tuning"),
                                  ("fra/vggface2-r50", {"gpus": 0}, "gpus is 0")):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            planned(recipe, **options)
