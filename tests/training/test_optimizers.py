"""LARS against its formula; rates by part and depth, weight decay and schedules against values worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from facessl.config.optim import FinetuneOptim
from facessl.core.errors import ConfigError, UnknownName
from facessl.models.backbone import Backbone
from facessl.training.optimizers import LARS, build_finetune_optimizer, parameter_groups, schedule

HALF = 0.5


class Toy(nn.Module):
    """The parts of a task."""

    def __init__(self, net: str) -> None:
        super().__init__()
        self.backbone = Backbone(net, image_size=64)
        self.head = nn.ModuleDict({"neck": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "classifier": nn.Linear(4, 2)})


def groups_by_name(task: nn.Module, optim: FinetuneOptim) -> dict[str, dict[str, Any]]:
    optimizer = build_finetune_optimizer(task, optim)
    names = {id(p): n for n, p in task.named_parameters()}
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(g["params"]) for g in optimizer.param_groups), "a weight is in two groups"
    assert found.keys() == {n for n, p in task.named_parameters() if p.requires_grad}
    return found


@pytest.mark.parametrize(
    ("net", "depths"),
    [
        ("resnet10t", {"conv1.": 4, "bn1.": 4, "layer1.": 3, "layer2.": 2, "layer3.": 1, "layer4.": 0}),
        ("test_vit", {"cls_token": 6, "pos_embed": 6, "patch_embed.": 6,
                      **{f"blocks.{i}.": 5 - i for i in range(6)}, "norm.": 0, "fc_norm.": 0}),
    ],
)  # fmt: skip
def test_layer_decay_counts_from_the_end_of_the_backbone(net: str, depths: dict[str, int]) -> None:
    optim = FinetuneOptim(lr=0.2, layer_decay=HALF, lrs={"head": 0.4})
    for name, group in groups_by_name(Toy(net), optim).items():
        inner = name.removeprefix("backbone.model.")
        if name.startswith("head."):
            expected = 2.0
        else:
            (depth,) = (d for prefix, d in depths.items() if inner.startswith(prefix))
            expected = HALF**depth
        assert group["lr_scale"] == pytest.approx(expected), name


def test_the_longest_name_gives_the_rate_and_multiplies_with_the_decay() -> None:
    lrs = {"head": 1e-3, "head.classifier": 1e-2, "backbone": 2e-4}
    found = groups_by_name(Toy("test_resnet"), FinetuneOptim(lr=1e-4, lrs=lrs, layer_decay=HALF))
    scales = {name: group["lr_scale"] for name, group in found.items()}
    assert scales["head.neck.weight"] == pytest.approx(10)
    assert scales["head.classifier.weight"] == scales["head.classifier.bias"] == pytest.approx(100)
    assert scales["backbone.model.layer4.0.conv1.weight"] == pytest.approx(2)
    assert scales["backbone.model.conv1.0.weight"] == pytest.approx(2 * HALF**4)


@pytest.mark.parametrize("decay_norms", [True, False])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_weight_decay_of_biases_and_norms_is_a_choice(name: Any, decay_norms: bool) -> None:
    found = groups_by_name(Toy("test_vit"), FinetuneOptim(name=name, weight_decay=0.3, decay_norms=decay_norms))
    for parameter, group in found.items():
        table = parameter.endswith(("pos_embed", "cls_token", "reg_token"))  # no_weight_decay() of timm
        spared = not decay_norms and (parameter.endswith("bias") or "norm" in parameter or table)
        assert group["weight_decay"] == (0.0 if spared else 0.3), parameter


def test_frozen_weights_are_left_out_and_a_rate_of_zero_holds_a_part() -> None:
    task = Toy("test_resnet")
    task.backbone.requires_grad_(False)
    assert all(name.startswith("head.") for name in groups_by_name(task, FinetuneOptim()))
    held = groups_by_name(Toy("test_resnet"), FinetuneOptim(lrs={"backbone": 0.0}))
    assert {g["lr_scale"] for n, g in held.items() if n.startswith("backbone.")} == {0.0}
    with pytest.raises(ConfigError, match="backbone: 0"):
        FinetuneOptim(lr=0.0)


def test_unknown_part_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownName, match=r"'headd'.*'head'"):
        build_finetune_optimizer(Toy("test_resnet"), FinetuneOptim(lrs={"headd": 1.0}))


def test_schedules() -> None:
    """Ten steps an epoch, 100 steps; the rates of some steps by hand."""

    def rates(**values: Any) -> list[float]:
        optim = FinetuneOptim(lr=0.8, **values)
        warmup = round(10 * optim.warmup_epochs)
        rate = schedule(optim, peak=0.8, warmup_steps=warmup, total_steps=100, steps_per_epoch=10)
        return [rate(step) for step in range(100)]

    cosine = rates(warmup_epochs=2, final_lr=0.2)
    assert cosine[0] == pytest.approx(0.8 / 20)
    assert cosine[19] == cosine[20] == pytest.approx(0.8)
    assert cosine[60] == pytest.approx(0.5)  # half-way between peak and end
    assert cosine[99] == pytest.approx(0.2 + 0.3 * (1 + math.cos(math.pi * 79 / 80)))
    step = rates(schedule="step", warmup_epochs=0, milestones=(3, 7.5), gamma=0.1)
    assert [step[i] for i in (0, 29, 30, 74, 75, 99)] == pytest.approx([0.8, 0.8, 0.08, 0.08, 0.008, 0.008])
    late = rates(schedule="step", warmup_epochs=1, milestones=(200,))
    assert late[4] == pytest.approx(0.4)
    assert set(late[10:]) == {0.8}
    exponential = rates(schedule="exponential", warmup_epochs=0, gamma=0.9)
    assert [exponential[i] for i in (0, 9, 10, 25, 99)] == pytest.approx([0.8, 0.8, 0.72, 0.648, 0.8 * 0.9**9])
    assert set(rates(schedule="constant", warmup_epochs=0)) == {0.8}
    assert rates(schedule="constant", warmup_epochs=1)[:2] == pytest.approx([0.08, 0.16])


def test_adam_puts_the_decay_into_the_gradient_and_adamw_does_not() -> None:
    """One step from weight 1 with gradient 0: Adam moves by lr, AdamW by lr * decay (up to epsilon)."""
    moved = {}
    for name in ("adam", "adamw"):
        task = nn.ModuleDict({"head": nn.Linear(1, 1)})
        nn.init.ones_(task["head"].weight)  # type: ignore[arg-type]
        optimizer = build_finetune_optimizer(task, FinetuneOptim(name=name, lr=0.1, weight_decay=0.01))  # type: ignore[arg-type]
        (task["head"](torch.zeros(1, 1)).sum()).backward()
        optimizer.step()
        moved[name] = 1 - task["head"].weight.item()  # type: ignore[operator,union-attr]
    assert moved == pytest.approx({"adam": 0.1, "adamw": 0.001}, rel=1e-3)


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
