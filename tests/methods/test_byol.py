"""BYOL against its equation and its target's rules."""

import pytest
import torch

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
