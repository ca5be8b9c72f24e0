"""`facessl plan`: arithmetic that can be followed by hand, and that a real checkpoint agrees with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from facessl.cli import main
from facessl.config import parse, recipes
from facessl.core import files
from facessl.core.errors import ConfigError
from facessl.pretrained import load
from facessl.tools import plan
from facessl.training import optimizers

PRETRAINING = [name for name in recipes.recipes() if not name.startswith("downstream/")]


def planned(recipe: str, **options: Any) -> dict[str, Any]:
    return plan.plan(plan.Options(recipe, **options))


def test_a_plan_by_hand() -> None:
    found = planned(
        "fra/vggface2-r50", gpus=4, gpu_images_per_second="128:1000,256:1100", link_gbit=80, image_bytes=10_000,
        images=51_200, norm_microseconds=50,
    )  # fmt: skip
    # 51,200 images in batches of 512, 50 epochs; 0.9 at the batch it is meant for; 10 epochs of warm-up.
    assert (found["steps"], found["batch_per_gpu"], found["learning_rate"]) == (5000, 128, 0.9)
    assert found["warmup_steps"] == 1000
    # Ring: each GPU sends 2 * 3 / 4 of the gradients, 4 bytes each, over 10 GB/s.
    assert found["all_reduce_bytes"] == 1.5 * 4 * found["parameters"]
    seconds = 6 * found["parameters"] / 10e9
    # 53 norms of the backbone and 4 of the heads, per view forward online and target, backward online.
    norms = found["norm_messages"] * 50e-6
    assert 2 * 53 * 3 < found["norm_messages"] <= 2 * 59 * 3
    step = 0.128 + norms + seconds
    assert found["seconds_per_step"] == pytest.approx(step)
    assert found["hours"] == pytest.approx(5000 * step / 3600)
    assert found["gpu_hours"] == pytest.approx(4 * found["hours"])
    assert found["hours_with_overlap"] == pytest.approx(5000 * (0.128 + norms) / 3600)
    assert found["share_of_communication"] == pytest.approx((norms + seconds) / step)
    assert found["read_bytes_per_second"] == pytest.approx(512 / step * 10_000)
    assert found["decoding_cores"] == pytest.approx(512 / step / found["worker_images_per_second_per_core"])
    # ResNet-50 is 8.17 GFLOP forward; two views forward twice and backward once (twice the forward) make 8 of them.
    assert 8 * 8.17 < found["gigaflop_per_image"] < 1.2 * 8 * 8.17
    assert found["teraflops_per_gpu"] == pytest.approx(1.1 * found["gigaflop_per_image"])
    assert found["warnings"] == []


def test_a_small_batch_takes_the_time_that_was_measured_or_the_fixed_one() -> None:
    def seconds(images: float) -> float:
        return plan.pass_seconds(images, plan.read_rates("64:1280,8:400,256:1600"), 0.012)

    assert [round(1000 * seconds(n), 3) for n in (8, 64, 256, 512)] == [20, 50, 160, 320]
    assert 1000 * seconds(36) == pytest.approx(35), "half way between 8 and 64"
    assert 1000 * seconds(4) == pytest.approx(16), "half way between nothing and 8"
    assert plan.pass_seconds(256, plan.read_rates(1000), 0.02) == 0.256
    assert 1000 * plan.pass_seconds(8, plan.read_rates(1000), 0.02) == pytest.approx(20 + 236 * 8 / 256), (
        "not 8: the rate is that of 256 images"
    )
    for wrong in ("fast", "8:", "8:400,8:500", "0:100", "8:-1", ""):
        with pytest.raises(ConfigError, match="8:400,64:1200,256:1500"):
            plan.read_rates(wrong)


def test_what_nobody_tried_is_said() -> None:
    def told(recipe: str, **given: Any) -> str:
        return " ".join(planned(recipe, gpu_images_per_second=1000, **given)["warnings"])

    assert told("mcf/laionface") == ""
    apart = told("mcf/laionface", gpus=64)
    assert "8 images per GPU and pass is all" in apart
    assert "--accumulate 1 gives it 64" in apart
    assert "0.075 times the root" in told("simclr/laionface-r50", batch_size=16384)
    assert "warm-up is 62% of the run" in told("fra/vggface2-r50", epochs=16)
    far = told("fra/vggface2-r50", batch_size=16384, warmup_epochs=2)
    assert "scaled to 28.8" in far
    assert "neither was tried" in far
    assert "warm-up" not in far
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
    written = files.save_run(tmp_path, 1, state).stat().st_size
    assert planned("fra/smoke", gpus=1)["checkpoint_bytes"] == pytest.approx(written, rel=0.01)


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_plans(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "step_cost", lambda *_: (1e9, 10))  # takes seconds
    known = any(part in name for part in plan.SETS) or "source" in recipes.read_recipe(name)
    found = planned(name, gpus=8, gpu_images_per_second=500, images=None if known else 200_000)
    assert found["steps"] > 0
    assert found["hours"] > 0
    assert found["checkpoint_bytes"] > 4 * found["parameters"]


def test_what_would_fail_or_disappoint_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "fra/vggface2-r50", "--gpus", "48", "--link-gbit", "100"]
    assert main(words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["hours"] is None
    told = " ".join(found["warnings"])
    assert "batch 512 does not divide by 48 GPUs: use --batch-size 480 or 528" in told
    assert "benchmarks/gpu.sh" in told
    assert "10.7 images per GPU" in told
    assert any("warning: batch 512" in line for line in lines)
    slow = planned("fra/vggface2-r50", gpu_images_per_second=4000, cores_per_gpu=1, batch_size=2048)
    assert any("give each GPU 2 cores" in text for text in slow["warnings"])
    with pytest.raises(ConfigError, match="--images N"):
        planned("fra/regions")
    with pytest.raises(ConfigError, match="fine-tuning"):
        planned("downstream/rafdb-ft")
    with pytest.raises(ConfigError, match="gpus = 0"):
        planned("fra/vggface2-r50", gpus=0)
