"""Every method on the GPU: mixed precision against float32, and a step that never waits for the device."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from facessl.config.optim import PretrainOptim
from facessl.core.types import Batch, Progress
from facessl.training.optimizers import build_optimizer
from tests.contract.test_methods import METHODS, batch, build

#: Largest relative difference of the loss, and smallest cosine of the backbone's gradient, against float32.
BOUNDS = {torch.bfloat16: (3e-2, 0.9), torch.float16: (5e-3, 0.98)}
SCALE = 65536.0  # of the loss in float16, its scaler's first


def prepared(name: str, device: torch.device, **values: Any) -> tuple[Any, Batch]:
    method = build(name, dropout=0.0, **values).to(device)  # a mask of dropout depends on the type that it is drawn for
    return method, batch(method, count=16).to(device)


def gradient(method: Any, data: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss, and the backbone's gradient as one vector, of a step in `dtype`."""
    device = data.views[0].device
    torch.manual_seed(3)
    half = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with half:
        loss = method.step(data, Progress(0, 10)).loss
    scale = SCALE if dtype == torch.float16 else 1.0
    (loss * scale).backward()
    parts = [p.grad.flatten() / scale for p in method.backbone.parameters() if p.grad is not None]
    method.zero_grad(set_to_none=True)
    return loss.detach(), torch.cat(parts)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_stays_near_float32(name: str, dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.float16 and device.type == "cpu":
        pytest.skip("float16 needs a GPU")
    wanted_loss, wanted = gradient(*prepared(name, device), torch.float32)
    loss, found = gradient(*prepared(name, device), dtype)
    difference, cosine = BOUNDS[dtype]
    assert found.isfinite().all()
    assert found.any(), "no gradient reaches the backbone"
    assert (loss - wanted_loss).abs() <= difference * wanted_loss.abs().clamp_min(1)
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) >= cosine


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
@pytest.mark.parametrize(("name", "values"), [*((name, {}) for name in METHODS), ("fra", {"targets": "color"})])
def test_no_step_waits_for_the_gpu(name: str, values: dict[str, Any], optimizer: str, device: torch.device) -> None:
    """A read-back would leave the GPU idle while the host prepares the next kernels."""
    method, data = prepared(name, device, **values)
    steps = build_optimizer(method, PretrainOptim(name=optimizer), 1e-3)  # type: ignore[arg-type]

    def step(number: int) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = method.step(data, Progress(number, 10)).loss
        loss.backward()
        steps.step()
        steps.zero_grad(set_to_none=True)
        method.after_step(Progress(number, 10))

    step(0)  # buffers and lists are made in the first
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 4):
            step(number)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
