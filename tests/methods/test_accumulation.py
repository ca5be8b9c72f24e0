"""Micro-batches have the loss of their batch, unless the method says that its loss spans the batch."""

from __future__ import annotations

import pytest
import torch

from facessl.config.pretrain import PretrainConfig
from facessl.core.errors import ConfigError
from facessl.core.types import Batch, Progress
from facessl.models.backbone import Backbone
from facessl.training.pretrain import check_accumulation
from tests.methods.test_ranks import CASES, HEADS


@pytest.mark.parametrize("case", ["byol", "fra-paper", "lewel-syncbn", "mae", "mcf", "pcl", "farl", "simclr", "swav"])
def test_a_method_says_whether_its_loss_spans_the_batch(case: str) -> None:
    """In evaluation mode, as batch norm spans the batch in every method."""
    kind, values = CASES[case]
    torch.manual_seed(0)
    masked = getattr(kind, "patches_only", False)
    sizes = {name: size for name, size in HEADS.items() if hasattr(kind.Args, name)}
    method = kind(Backbone("test_vit" if masked else "test_resnet", image_size=64), **sizes, **values).eval()
    method.double()
    views = list(torch.randn(2, 8, 3, 64, 64, dtype=torch.float64))
    noise = torch.rand(2, 8, 16, dtype=torch.float64)
    if masked:
        views = views[:1]
        method.noise = lambda b: tuple(noise[:, b.index]) if case == "mcf" else noise[0, b.index]
    if case == "pcl":
        views += [view.flip(-1) for view in (*views, *views)] + views[:1]
    text = [f"face {i}" for i in range(8)] if "text" in method.needs else None
    batch = Batch(views=views, params=[], index=torch.arange(8), text=text)
    with torch.no_grad():
        whole = method.step(batch, Progress(0, 10)).loss
        parts = [method.step(batch.slice(i, i + 4), Progress(0, 10)).loss for i in (0, 4)]
    same = torch.allclose(torch.stack(parts).mean(), whole, rtol=1e-9)
    assert same is not bool(getattr(kind, "batch_wide", ""))


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
