"""LARS against its formula, parameter groups, the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from facessl.training.optimizers import LARS, parameter_groups, warmup_cosine


def slow_lars(
    steps: int, w: list[list[float]], grads: list[list[list[float]]], adapt: bool, decay: float
) -> list[float]:
    """Plain loops from the class docstring."""
    flat = [x for row in w for x in row]
    velocity = [0.0] * len(flat)
    for t in range(steps):
        g = [x for row in grads[t] for x in row]
        d = [gi + decay * wi for gi, wi in zip(g, flat, strict=True)]
        norm_w, norm_d = math.sqrt(sum(x * x for x in flat)), math.sqrt(sum(x * x for x in d))
        q = 0.001 * norm_w / norm_d if adapt and norm_w > 0 and norm_d > 0 else 1.0
        velocity = [0.9 * v + q * di for v, di in zip(velocity, d, strict=True)]
        flat = [wi - 0.5 * v for wi, v in zip(flat, velocity, strict=True)]
    return flat


@pytest.mark.parametrize(("adapt", "decay", "zero"), [(True, 0.1, False), (False, 0.0, False), (True, 0.1, True)])
def test_lars_equals_its_formula(adapt: bool, decay: float, zero: bool) -> None:
    torch.manual_seed(0)
    w = torch.zeros(3, 2, dtype=torch.float64) if zero else torch.randn(3, 2, dtype=torch.float64)
    grads = torch.randn(4, 3, 2, dtype=torch.float64)
    other = nn.Parameter(torch.randn(5, dtype=torch.float64))  # a second tensor must not leak into the norms
    parameter = nn.Parameter(w.clone())
    optimizer = LARS([{"params": [parameter, other], "adapt": adapt, "weight_decay": decay}], lr=0.5)
    for grad in grads:
        parameter.grad, other.grad = grad.clone(), torch.ones(5, dtype=torch.float64)
        optimizer.step()
    expected = slow_lars(4, w.tolist(), grads.tolist(), adapt, decay)
    torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(expected, dtype=torch.float64))


def test_norms_and_biases_of_every_kind_are_excluded() -> None:
    net = nn.ModuleDict(
        {
            "neck_bn": nn.BatchNorm1d(4),
            "ln": nn.LayerNorm([2, 4]),  # two-dimensional weight
            "gn": nn.GroupNorm(2, 4),
            "conv": nn.Conv2d(4, 4, 1, bias=True),
            "frozen": nn.Linear(3, 3).requires_grad_(False),
        }
    )
    net["scale"] = nn.PReLU(7)  # one-dimensional, no norm
    decayed, plain = parameter_groups(net, 0.1)
    assert [p is net["conv"].weight for p in decayed["params"]] == [True]
    assert decayed["adapt"]
    assert decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 2 + 2 + 2 + 1 + 1
    assert not plain["adapt"]
    assert plain["weight_decay"] == 0.0


def test_schedule_at_its_corners() -> None:
    rates = [warmup_cosine(s, peak=2.0, warmup_steps=4, total_steps=12) for s in range(13)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[8] == pytest.approx(1.0)
    assert rates[12] == pytest.approx(0.0)
