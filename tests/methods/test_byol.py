"""BYOL against its equation and its target's rules."""

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from facessl.core.errors import ConfigError
from facessl.core.types import Batch, Progress
from facessl.methods.byol import BYOL
from facessl.models.backbone import Backbone


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = BYOL(Backbone("test_resnet", image_size=64), hidden=24, dim=16)
    with torch.no_grad():
        for parameter in built.target_backbone.parameters():
            parameter.mul_(1.1)
    return built


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.randn(4, 3, 64, 64, generator=generator) for _ in range(2)], [], torch.arange(4))


def test_loss_is_twice_one_minus_cosine_both_ways(model, batch):
    loss = model.step(batch, Progress(0, 1)).loss.item()
    predictions = [model.predictor(model.projector(model.backbone(x))) for x in batch.views]
    targets = [model.target_projector(model.target_backbone(x)) for x in batch.views]
    expected = 0.0
    for prediction, target in ((predictions[0], targets[1]), (predictions[1], targets[0])):
        for p, z in zip(prediction.tolist(), target.tolist(), strict=True):
            norms = (sum(v * v for v in p) * sum(v * v for v in z)) ** 0.5
            expected += (2 - 2 * sum(a * b for a, b in zip(p, z, strict=True)) / norms) / len(batch)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_loss_and_gradients_equal_another_librarys(model, batch):
    trained = [p for p in model.parameters() if p.requires_grad]
    ours = model.step(batch, Progress(0, 1)).loss
    predictions = [model.predictor(model.projector(model.backbone(x))) for x in batch.views]
    targets = [model.target_projector(model.target_backbone(x)).detach() for x in batch.views]
    minus_cosine = NegativeCosineSimilarity()
    theirs = minus_cosine(predictions[0], targets[1]) + minus_cosine(predictions[1], targets[0])
    torch.testing.assert_close(ours, 4 + 2 * theirs, rtol=1e-5, atol=0)
    expected = torch.autograd.grad(2 * theirs, trained)
    for mine, other in zip(torch.autograd.grad(ours, trained), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_target_gets_no_gradient_and_follows(model, batch):
    model.step(batch, Progress(0, 1)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("target_"))
    online, target = model.backbone.model.layer4, model.target_backbone.model.layer4
    expected = [0.996 * t + 0.004 * o for o, t in zip(online.parameters(), target.parameters(), strict=True)]
    model.after_step(Progress(step=0, total_steps=100))
    for parameter, value in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.data, value.data)


def test_impossible_values_are_refused():
    with pytest.raises(ConfigError, match=r"momentum is 1\.2: give a number from 0 to 1"):
        BYOL(Backbone("test_resnet"), momentum=1.2)
