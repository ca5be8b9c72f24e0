"""Distillation against its distances in plain loops, and what a teacher has to fit."""

import math

import pytest
import torch

import facessl
from facessl.config.optim import PretrainOptim
from facessl.core.errors import ConfigError
from facessl.core.types import Batch, Progress
from facessl.methods.distill import Distill
from facessl.models.backbone import Backbone
from facessl.pretrained.load import load_backbone
from facessl.training.optimizers import build_optimizer

TEACHER = "timm:test_vit?pretrained=false"  # 64 channels, patches of 16 pixels


def build(**values):
    torch.manual_seed(0)
    model = Distill(Backbone("test_resnet", image_size=64), **{"teacher": TEACHER, "teacher_dim": 64, **values})
    model.prepare(load_backbone)
    return model.eval()


def distance(ours, theirs, kind):
    """Of two vectors."""
    if kind == "cosine":
        dot, a, b = (
            sum(p * q for p, q in zip(x, y, strict=True)) for x, y in ((ours, theirs), (ours, ours), (theirs, theirs))
        )
        return 1 - dot / math.sqrt(a * b)
    mean = sum(theirs) / len(theirs)
    spread = math.sqrt(sum((v - mean) ** 2 for v in theirs) / len(theirs) + 1e-5)
    return sum((p - (q - mean) / spread) ** 2 for p, q in zip(ours, theirs, strict=True)) / len(theirs)


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_loss_is_the_weighted_distance_of_embedding_and_map(kind):
    model = build(distance=kind, map_weight=0.5)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    step = model.step(Batch([x], [], torch.arange(3)), Progress(0, 1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    teacher = load_backbone(TEACHER)
    teacher.model.set_input_size(64)
    own_mean, own_std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.mean, teacher.std))
    target_map, target = teacher.forward_both((x * std + mean - own_mean) / own_std)  # (3, 64, 4, 4)
    features, pooled = model.backbone.forward_both(x)
    assert features.shape[2:] == (2, 2)
    coarse = target_map.reshape(3, 64, 2, 2, 2, 2).mean((3, 5))
    projected = model.map_projection(features)
    whole = [
        distance(p.tolist(), t.tolist(), kind) for p, t in zip(model.pooled_projection(pooled), target, strict=True)
    ]
    cells = [
        distance(projected[b, :, i, j].tolist(), coarse[b, :, i, j].tolist(), kind)
        for b in range(3) for i in range(2) for j in range(2)
    ]  # fmt: skip
    assert step.logs["pooled_distance"].item() == pytest.approx(sum(whole) / 3, rel=1e-4)
    assert step.logs["map_distance"].item() == pytest.approx(sum(cells) / 12, rel=1e-4)
    assert step.loss.item() == pytest.approx(sum(whole) / 3 + 0.5 * sum(cells) / 12, rel=1e-4)


def test_the_teacher_is_not_trained():
    model = build().train()  # prepared with trainable networks, as a caller outside `facessl.pretrain` may do
    x = torch.randn(3, 3, 64, 64)
    model.step(Batch([x], [], torch.arange(3)), Progress(0, 1)).loss.backward()
    teacher = list(model.teacher.backbone.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher)
    optimizer = build_optimizer(model, PretrainOptim(), 0.1)
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert optimized.isdisjoint(map(id, teacher))


def test_a_term_of_weight_zero_is_left_out():
    step = build(map_weight=0.0).step(Batch([torch.randn(2, 3, 64, 64)], [], torch.arange(2)), Progress(0, 1))
    assert step.logs.keys() == {"pooled_distance"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"teacher": ""}, "--method.teacher"),
        ({"teacher_dim": 100}, "has features of 64 channels.*--method.teacher-dim 64"),
        ({"pooled_weight": 0, "map_weight": 0}, "give one of them more than 0"),
    ],
)
def test_what_cannot_work_is_told(values, said):
    with pytest.raises(ConfigError, match=said):
        build(**values)


def test_a_run_teaches_a_smaller_network_and_is_not_needed_afterwards(tmp_path):
    settings = {"image_size": 32, "batch_size": 4, "max_steps": 1, "workers": 0, "monitor": {"every": 0}}
    facessl.pretrain(
        "synthetic:?n=4&size=32", out=str(tmp_path / "big"), method="byol", backbone="test_resnet", **settings
    )
    method = {"name": "distill", "teacher": str(tmp_path / "big"), "teacher_dim": 96}
    run = {"out": str(tmp_path / "small"), "method": method, "backbone": "test_vit", **settings}
    facessl.pretrain("synthetic:?n=4&size=32", **run)
    (tmp_path / "big").rename(tmp_path / "gone")
    assert facessl.load_method(tmp_path / "small").pooled_projection.out_features == 96
