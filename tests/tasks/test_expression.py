"""Expression under EAC: the loss of two views against loops, and what its gradient reaches."""

import math
from typing import Any

import pytest
import torch

from facessl.core.errors import ConfigError
from facessl.core.types import Batch, Progress
from facessl.models.backbone import Backbone
from facessl.tasks.base import Labels
from facessl.tasks.expression import Expression
from facessl.views.augment import Augment

FIRST = Progress(step=0, total_steps=1)


def build(**values: Any) -> Expression:
    torch.manual_seed(0)
    task = Expression(Backbone("test_resnet", image_size=64), Labels(label_names=("a", "b", "c")), **values)
    return task.double().eval()  # batch norm of the statistics it has, so that a loop over images is the same


def pair() -> Batch:
    torch.manual_seed(1)
    views = [torch.randn(2, 3, 64, 64, dtype=torch.float64) for _ in range(2)]
    return Batch(views=views, params=[], index=torch.arange(2), label=torch.tensor([2, 0]))


def test_loss_of_two_views_against_loops() -> None:
    task, batch = build(consistency=5.0, smoothing=0.1), pair()
    weight, bias = task.head.weight, task.head.bias
    entropy = consistency = 0.0
    for i in range(2):
        maps = [task.backbone.forward_features(view[i : i + 1])[0] for view in batch.views]  # (C, 2, 2) each
        logits = [float(weight[k] @ maps[0].mean((1, 2)) + bias[k]) for k in range(3)]
        total = math.log(sum(math.exp(v) for v in logits))
        for k in range(3):
            share = 0.1 / 3 + (0.9 if k == int(batch.label[i]) else 0.0)
            entropy -= share * (logits[k] - total) / 2
            for y in range(2):
                for x in range(2):
                    here, there = weight[k] @ maps[0][:, y, x], weight[k] @ maps[1][:, y, 1 - x]
                    consistency += float(here - there) ** 2 / (2 * 3 * 2 * 2)
    found = task.step(batch, FIRST)
    assert consistency > 1e-5
    assert found.loss.item() == pytest.approx(entropy + 5 * consistency, rel=1e-6)
    assert found.logs["cross_entropy"].item() == pytest.approx(entropy, rel=1e-6)
    assert found.logs["attention_consistency"].item() == pytest.approx(consistency, rel=1e-6)


def test_consistency_moves_the_features_and_not_the_classifier() -> None:
    gradients = []
    for weight in (1e-9, 5.0):
        task = build(consistency=weight)
        task.step(pair(), FIRST).loss.backward()
        gradients.append({n: p.grad for n, p in task.named_parameters() if p.grad is not None})
    plain, eac = gradients
    torch.testing.assert_close(plain["head.weight"], eac["head.weight"])
    torch.testing.assert_close(plain["head.bias"], eac["head.bias"])
    moved = [float((plain[n] - eac[n]).abs().max()) for n in plain if n.startswith("backbone.")]
    assert max(moved) > 1e-5  # in float64


def test_each_view_has_its_own_batch_statistics() -> None:
    task, batch = build(consistency=5.0).train(), pair()
    twin = build(consistency=5.0).train()
    task.step(batch, FIRST)
    for view in batch.views:
        twin.backbone(view)
    for mine, theirs in zip(task.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_head_starts_as_its_release_does() -> None:
    fra, eac = build().head, build(consistency=5.0).head
    width = fra.in_features
    assert float(fra.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert not fra.bias.any()
    assert float(eac.weight.detach().std()) == pytest.approx(1 / math.sqrt(3 * width), rel=0.1)  # uniform
    assert eac.bias.all()


@pytest.mark.parametrize(("weight", "pairs"), [(5.0, False), (0.0, True)])
def test_consistency_and_pairs_of_views_go_together(weight: float, pairs: bool) -> None:
    with pytest.raises(ConfigError, match=r"augment\.pairs"):
        build(consistency=weight).check(Augment(pairs=pairs))
    build(consistency=weight).check(Augment(pairs=not pairs))
