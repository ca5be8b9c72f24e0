"""EAC's maps and their consistency, against loops."""

import pytest
import torch

from facessl.models.layers.cam import class_activation_maps, flip_consistency


def test_maps_and_consistency_against_loops():
    torch.manual_seed(0)
    one, two = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)  # features (B=2, C=3, h=4, w=5) of both
    weight = torch.randn(6, 3, dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for k in range(6):
            for y in range(4):
                for x in range(5):
                    here = sum(weight[k, c] * one[b, c, y, x] for c in range(3))
                    there = sum(weight[k, c] * two[b, c, y, 4 - x] for c in range(3))
                    total += float(here - there) ** 2
    loss = flip_consistency(class_activation_maps(one, weight), class_activation_maps(two, weight))
    assert loss.item() == pytest.approx(total / (2 * 6 * 4 * 5))


def test_gradients_reach_both_images_but_not_the_classifier():
    features = torch.randn(2, 3, 2, 2, requires_grad=True)
    other = torch.randn(2, 3, 2, 2, requires_grad=True)
    weight = torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = flip_consistency(class_activation_maps(features, weight), class_activation_maps(other, weight))
    assert loss.dtype == torch.float32
    loss.backward()
    assert weight.grad is None
    assert features.grad.abs().sum() > 0
    assert other.grad.abs().sum() > 0
    mirrored = class_activation_maps(features.flip(-1), weight)
    assert flip_consistency(class_activation_maps(features, weight), mirrored).item() == 0
