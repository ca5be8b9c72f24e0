"""Losses of landmark networks against plain loops, and at the places where their gradients could break."""

import math

import numpy as np
import pytest
import torch

from facessl.models.layers.landmark_losses import awing, coordinate_l2, heatmap_bce, star

VISIBLE = torch.tensor([[True, False, True], [True, True, False]])


def points(seed, scale=1.0):
    torch.manual_seed(seed)
    return scale * torch.randn(2, 3, 2, dtype=torch.float64)


def mean_over_visible(value):
    kept = [value(b, k) for b in range(2) for k in range(3) if VISIBLE[b, k]]
    return sum(kept) / len(kept)


def test_coordinate_loss_against_loops():
    pred, target = points(0, 9.0), points(1, 9.0)
    target[0, 1] = math.nan  # a landmark that is not visible may be anything

    def l2(b, k):
        (px, py), (tx, ty) = pred[b, k].tolist(), target[b, k].tolist()
        return math.hypot((px + 0.5) / 96 - (tx + 0.5) / 96, (py + 0.5) / 64 - (ty + 0.5) / 64)

    loss = coordinate_l2(pred, target, VISIBLE, size=(64, 96))
    assert loss.item() == pytest.approx(mean_over_visible(l2))


def test_heatmap_bce_against_loops():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)

    def one(b, k):
        cells = zip(logits[b, k].flatten().tolist(), target[b, k].flatten().tolist(), strict=True)
        terms = [-t * math.log(1 / (1 + math.exp(-x))) - (1 - t) * math.log(1 / (1 + math.exp(x))) for x, t in cells]
        return sum(terms) / 20

    assert heatmap_bce(logits, target, VISIBLE).item() == pytest.approx(mean_over_visible(one), rel=1e-5)


def test_awing_against_loops():
    torch.manual_seed(0)
    pred = 1.5 * torch.rand(2, 3, 6, 5, dtype=torch.float64)
    target = torch.rand(2, 3, 6, 5, dtype=torch.float64).pow(6)
    omega, theta, epsilon, alpha = 14.0, 0.5, 1.0, 2.1

    def one(b, k):
        total = 0.0
        for y in range(6):
            for x in range(5):
                t, d = target[b, k, y, x].item(), abs(target[b, k, y, x] - pred[b, k, y, x]).item()
                ratio = theta / epsilon
                a = omega / (1 + ratio ** (alpha - t)) * (alpha - t) * ratio ** (alpha - t - 1) / epsilon
                c = theta * a - omega * math.log(1 + ratio ** (alpha - t))
                value = omega * math.log(1 + (d / epsilon) ** (alpha - t)) if d < theta else a * d - c
                around = target[b, k, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                total += value * (11 if around.max().item() >= 0.2 else 1)
        return total / 30

    loss = awing(pred, target, VISIBLE)
    assert loss.item() == pytest.approx(mean_over_visible(one))
    small = pred[:1, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: awing(p, target[:1, :1]), small)


def test_awing_is_flat_at_a_perfect_map():
    pred = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss = awing(pred, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss.item() < 1e-20
    assert pred.grad.abs().max() < 1e-10


def star_of_one(heatmap, target):
    """Mean, covariance, numpy's eigenvectors and the two quotients; cells at (2 i + 1) / n - 1."""
    h, w_ = heatmap.shape
    weights = heatmap / heatmap.sum()
    cells = [((2 * x + 1) / w_ - 1, (2 * y + 1) / h - 1, weights[y, x]) for y in range(h) for x in range(w_)]
    mean = np.array([sum(p * x for x, _, p in cells), sum(p * y for _, y, p in cells)])
    covariance = np.zeros((2, 2))
    for x, y, p in cells:
        offset = np.array([x, y]) - mean
        covariance += p * np.outer(offset, offset)
    covariance /= 1 - sum(p * p for _, _, p in cells)
    values, vectors = np.linalg.eigh(covariance)
    error = np.array([(2 * target[0] + 1) / w_ - 1, (2 * target[1] + 1) / h - 1]) - mean
    loss = values.sum()
    for i in range(2):
        x = abs(vectors[:, i] @ error)
        loss += (x * x / 0.02 if x < 0.01 else x - 0.005) / math.sqrt(values[i] + 1e-5)
    return loss


def test_star_against_numpy():
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 9, 7, dtype=torch.float64).pow(4)
    maps[0, 0] = torch.outer(*(torch.exp(-((torch.arange(n) - 3.0) ** 2) / 4) for n in (9, 7)))  # no covariance
    target = 3 + points(1)
    expected = mean_over_visible(lambda b, k: star_of_one(maps[b, k].numpy(), target[b, k].tolist()))
    assert star(maps, target, VISIBLE).item() == pytest.approx(expected)


def test_star_gradient():
    torch.manual_seed(2)
    maps = torch.rand(1, 2, 5, 6, dtype=torch.float64).requires_grad_()
    target = points(3)[:1, :2] + 2
    assert torch.autograd.gradcheck(lambda m: star(m, target), maps)


@pytest.mark.parametrize("kind", ["random", "one-hot", "uniform", "empty", "round", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_star_is_finite_on_any_map(kind, dtype):
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    maps = {
        "random": torch.rand(16, 16),
        "one-hot": ((x == 3) & (y == 12)).float(),
        "uniform": torch.ones(16, 16),
        "empty": torch.zeros(16, 16),
        "round": torch.exp(-((x - 7) ** 2 + (y - 7) ** 2) / 4),
        "row": (y == 4).float(),
    }[kind]
    maps = maps.to(dtype).expand(2, 3, 16, 16).clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = star(maps, torch.rand(2, 3, 2) * 16, VISIBLE)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert maps.grad.isfinite().all()


def test_nothing_visible_is_zero_not_nan():
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    maps = torch.rand(2, 3, 4, 4).requires_grad_()
    target = torch.full((2, 3, 2), math.nan)
    loss = star(maps, target, nobody) + awing(maps, maps.detach(), nobody)
    loss.backward()
    assert loss.item() == 0
    assert maps.grad.eq(0).all()
