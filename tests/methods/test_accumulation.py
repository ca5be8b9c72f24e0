"""Micro-batches have the loss of their batch, unless the method says that its loss spans the batch."""

import pytest
import torch

from facessl.config.pretrain import PretrainConfig
from facessl.config.run import BackboneConfig
from facessl.core import plugins
from facessl.core.errors import ConfigError
from facessl.core.types import Progress
from facessl.training.pretrain import check_accumulation, check_compile
from tests.methods.test_ranks import CASES, prepared


@pytest.mark.parametrize(
    "case", ["byol", "fra-paper", "lewel-syncbn", "mae", "mcf", "pcl", "farl", "simclr", "swav", "dino", "distill"]
)
def test_a_method_says_whether_its_loss_spans_the_batch(case: str) -> None:
    """In evaluation mode, as batch norm spans the batch in every method."""
    method, batch = prepared(case, torch.float64, slice(0, 8))
    method.eval()
    with torch.no_grad():
        whole = method.step(batch, Progress(0, 10)).loss
        parts = [method.step(batch.slice(i, i + 4), Progress(0, 10)).loss for i in (0, 4)]
    same = torch.allclose(torch.stack(parts).mean(), whole, rtol=1e-9)
    assert same is not bool(getattr(method, "batch_wide", ""))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_stays_near_float32(case: str) -> None:
    exact, step = prepared(case, torch.float32, slice(0, 16)), prepared(case, torch.float32, slice(0, 16))
    expected = exact[0].step(exact[1], Progress(0, 10))
    with torch.autocast("cpu", torch.bfloat16):
        found = step[0].step(step[1], Progress(0, 10))
    found.loss.backward()
    assert found.loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in step[0].parameters() if p.requires_grad)
    for name, value in expected.logs.items():
        torch.testing.assert_close(found.logs[name], value, rtol=0.05, atol=0.05, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulation_that_changes_the_loss_or_leaves_images_out_is_refused() -> None:
    simclr, byol = (CASES[name][0] for name in ("simclr", "byol"))
    config = {"batch_size": 256, "accumulate": 4}
    named = PretrainConfig(**config, method={"name": "simclr"})
    with pytest.raises(ConfigError, match=r"negatives would span 64 images instead of 256.*--accumulate-approximate"):
        check_accumulation(simclr, named, 2)  # type: ignore[arg-type]
    check_accumulation(simclr, PretrainConfig(**config, accumulate_approximate=True), 2)  # type: ignore[arg-type]
    check_accumulation(byol, PretrainConfig(**config), 2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="256 images on 3 ranks cannot be cut in 4 equal micro-batches: use 252"):
        check_accumulation(byol, PretrainConfig(**config), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "backbone", "words"),
    [
        ("mae", "test_vit", "no effect on mae, which calls a ViT's blocks by itself"),
        ("byol", "test_resnet", "no effect with --backbone.checkpointing"),
    ],
)
def test_compilation_without_effect_is_refused(name: str, backbone: str, words: str) -> None:
    given = {"method": {"name": name}, "backbone": BackboneConfig(name=backbone, checkpointing=name == "byol")}
    method = plugins.find("methods", name)
    with pytest.raises(ConfigError, match=words):
        check_compile(method, PretrainConfig(compile=True, **given))  # type: ignore[arg-type]
    check_compile(method, PretrainConfig(**given))  # type: ignore[arg-type]
