"""`facessl plan`: arithmetic that can be followed by hand, and that a real checkpoint agrees with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from facessl import checkpoint, config, loading, optim, parsing, planning
from facessl.cli import main
from facessl.errors import ConfigError

PRETRAINING = [name for name in config.recipes() if not name.startswith("downstream/")]


def test_a_plan_by_hand() -> None:
    found = planning.plan(
        "fra/vggface2-r50", gpus=4, gpu_images_per_second=1000, link_gbit=80, image_bytes=10_000, images=51_200
    )
    # 51,200 images in batches of 512, 50 epochs; 0.9 at the batch it is meant for; 10 epochs of warm-up.
    assert (found["steps"], found["batch_per_gpu"], found["learning_rate"]) == (5000, 128, 0.9)
    assert found["warmup_steps"] == 1000
    # Ring: each GPU sends 2 * 3 / 4 of the gradients, 4 bytes each, over 10 GB/s.
    assert found["all_reduce_bytes"] == 1.5 * 4 * found["parameters"]
    seconds = 6 * found["parameters"] / 10e9
    step = 0.128 + seconds
    assert found["seconds_per_step"] == pytest.approx(step)
    assert found["hours"] == pytest.approx(5000 * step / 3600)
    assert found["gpu_hours"] == pytest.approx(4 * found["hours"])
    assert found["hours_with_overlap"] == pytest.approx(5000 * 0.128 / 3600)
    assert found["share_of_communication"] == pytest.approx(seconds / step)
    assert found["read_bytes_per_second"] == pytest.approx(512 / step * 10_000)
    assert found["decoding_cores"] == pytest.approx(512 / step / found["worker_images_per_second_per_core"])
    assert found["warnings"] == []


def test_the_checkpoint_has_the_planned_size(tmp_path: Path) -> None:
    settings = parsing.parse(["--config", "fra/smoke"])
    method = loading.build_method(settings)
    optimizer = optim.build_optimizer(method, settings.optim, 0.1)  # type: ignore[arg-type]
    for parameter in method.parameters():  # type: ignore[attr-defined]
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    state = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}  # type: ignore[attr-defined]
    written = checkpoint.save_run(tmp_path, 1, state).stat().st_size
    planned = planning.plan("fra/smoke", gpus=1)["checkpoint_bytes"]
    assert planned == pytest.approx(written, rel=0.01)


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_plans(name: str) -> None:
    known = any(part in name for part in planning.SETS) or "source" in config.read_recipe(name)
    found = planning.plan(name, gpus=8, gpu_images_per_second=500, images=None if known else 200_000)
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
    slow = planning.plan("fra/vggface2-r50", gpu_images_per_second=3000, cores_per_gpu=1)
    assert any("give each GPU 2 cores" in text for text in slow["warnings"])
    with pytest.raises(ConfigError, match="--images N"):
        planning.plan("fra/regions")
    with pytest.raises(ConfigError, match="fine-tuning"):
        planning.plan("downstream/rafdb-ft")
    with pytest.raises(ConfigError, match="gpus = 0"):
        planning.plan("fra/vggface2-r50", gpus=0)
