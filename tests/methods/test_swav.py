"""SwAV against its equations, its queue, and another library's loss."""

import math

import pytest
import torch

from facessl.core.errors import ConfigError
from facessl.core.types import Batch, Progress
from facessl.methods.swav import SwAV
from facessl.models.backbone import Backbone
from facessl.training.optimizers import LARS, parameter_groups

START = Progress(0, 100)
SMALL = {"hidden": 24, "dim": 16, "prototypes": 6, "freeze_prototypes_epochs": 0}


def build(backbone="test_resnet", seed=0, **values):
    torch.manual_seed(seed)
    return SwAV(Backbone(backbone, image_size=64), **SMALL | values)


def crops(count=5, sizes=(64, 64, 32, 32, 32), seed=1):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(count, 3, size, size, generator=generator) for size in sizes]
    return Batch(views, [], torch.arange(count))


def unit(*shape, seed=2):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1)


def balanced(scores, epsilon, rounds):
    """Eq. 5 as written: rows of Q are prototypes, with mass 1 / K each; columns images, with mass 1 / B each."""
    q = [[math.exp(s / epsilon) for s in column] for column in scores.t().tolist()]  # K lists of B
    clusters, images = len(q), len(q[0])
    for _ in range(rounds):
        q = [[value / (clusters * sum(row)) for value in row] for row in q]
        columns = [sum(row[b] for row in q) for b in range(images)]
        q = [[value / (images * columns[b]) for b, value in enumerate(row)] for row in q]
    return [[q[k][b] * images for k in range(clusters)] for b in range(images)]  # B codes that sum to 1


def loops(scores, *, temperature=0.1, epsilon=0.05, rounds=3, queued=None):
    """Eq. 2 and 6: views 0 and 1 give codes, every other view predicts them."""
    views, count, clusters = scores.shape
    total, terms = 0.0, 0
    for s in (0, 1):
        known = scores[s].detach() if queued is None else torch.cat([queued[s], scores[s].detach()])
        codes = balanced(known, epsilon, rounds)[-count:]
        for t in range(views):
            if t == s:
                continue
            terms += 1
            for b in range(count):
                weights = [(scores[t, b, k] / temperature).exp() for k in range(clusters)]
                for k in range(clusters):
                    total = total - codes[b][k] * torch.log(weights[k] / sum(weights)) / count
    return total / terms


@pytest.mark.parametrize("values", [{}, {"epsilon": 0.1, "temperature": 0.3, "sinkhorn_iterations": 1}])
def test_loss_and_gradient_equal_loops(values):
    scores = (unit(4, 5, 8) @ unit(6, 8, seed=3).t()).requires_grad_()  # (V, B, K)
    ours, _ = build(**values)._swapped(scores, None)
    renamed = {"rounds" if k == "sinkhorn_iterations" else k: v for k, v in values.items()}
    twin = loops(scores, **renamed)
    torch.testing.assert_close(ours, twin, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (ours, twin)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_step_projects_each_crop_and_shares_the_projectors_statistics():
    model, batch = build(), crops()
    loss = model.step(batch, START).loss
    pooled = torch.cat(
        [*model.backbone(torch.cat(batch.views[:2])).chunk(2), model.backbone(torch.cat(batch.views[2:]))]
    )
    z = torch.nn.functional.normalize(model.projector(pooled), dim=-1).view(5, 5, 16)
    torch.testing.assert_close(loss, loops(z @ model.prototypes.t()), rtol=1e-4, atol=0)


def test_queue_takes_part_once_it_is_full():
    model, batch = build(queue_length=7, queue_step=0), crops()
    plain = build()
    assert torch.equal(model.step(batch, START).loss, plain.step(batch, START).loss), (
        "an unfilled queue leaves no trace"
    )
    model.after_step(START)
    assert torch.equal(model.step(batch, START).loss, plain.step(batch, START).loss), "5 of 7 rows are not full"
    model.after_step(START)
    assert model.queue.is_full() == 1
    scores = unit(4, 5, 16) @ model.prototypes.double().t()
    queued = model._queued_scores(START).double()
    torch.testing.assert_close(model._swapped(scores, queued)[0], loops(scores, queued=queued), rtol=1e-6, atol=0)
    assert not torch.equal(model.step(batch, START).loss, plain.step(batch, START).loss)


def test_queue_holds_the_projections_of_the_assigned_views():
    model = build(queue_length=5, queue_step=0).train()
    with torch.no_grad():
        model.step(crops(seed=3), START)  # measuring leaves no trace
    model.step(crops(), START)
    z = build()._project(crops().views)
    model.after_step(START)
    torch.testing.assert_close(model.queue.rows, z[:2].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "progress", "runs"),
    [
        ({"queue_length": 8}, Progress(10_000, 20_000, 14), False),
        ({"queue_length": 8}, Progress(0, 20_000, 15), True),
        ({"queue_length": 8, "queue_step": 30}, Progress(29, 100, 20), False),
        ({"queue_length": 8, "queue_step": 30}, Progress(30, 100, 0), True),
        ({}, Progress(0, 100, 99), False),
    ],
)
def test_when_the_queue_runs(values, progress, runs):
    model = build(**values)
    assert (model._queued_scores(progress) is not None) == runs


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_frozen_prototypes_keep_still_under_weight_decay_and_move_afterwards(momentum):
    model = build(freeze_prototypes_epochs=1)
    optimizer = LARS(parameter_groups(model, 1e-2), lr=5.0, momentum=momentum)
    start = model.prototypes.detach().clone()
    for step in range(4):
        optimizer.zero_grad()
        model.step(crops(seed=step), Progress(step, 10)).loss.backward()
        assert model.prototypes.grad is not None
        assert bool((model.prototypes.grad == 0).all()) == (step < 3)
        optimizer.step()
        model.after_step(Progress(step, 10))
        torch.testing.assert_close(model.prototypes.norm(dim=1), torch.ones(6))
        assert torch.allclose(model.prototypes, start, atol=1e-5) == (step < 3)


def test_vit_takes_small_crops_whose_last_patch_is_cut():
    model = build("vit_tiny_patch16_224")
    batch = crops(sizes=(64, 64, 27, 27))
    assert torch.isfinite(model.step(batch, START).loss)
    assert model.backbone.forward_features(batch.views[2]).shape[-2:] == (2, 2)
    x = batch.views[0]
    torch.manual_seed(0)
    torch.testing.assert_close(model.backbone(x), Backbone("vit_tiny_patch16_224", image_size=64)(x))


def test_views_that_cannot_be_used_are_refused():
    model = build()
    model.backbone.any_size = False
    with pytest.raises(ConfigError, match=r"one size, but the views have \[32, 64\] pixels"):
        model.step(crops(), START)
