"""DINO against its equations in plain loops: loss, center, temperature, frozen last layer."""

import pytest
import torch
from torch.nn import functional as F

from facessl.core.types import Batch, Progress
from facessl.methods.dino import DINO, DINOArgs
from facessl.models.backbone import Backbone

START = Progress(0, 100)
MIDDLE = Progress(30, 100)
SMALL = {"hidden_dim": 24, "bottleneck_dim": 16, "out_dim": 6, "freeze_last_layer_epochs": 0}


def build(backbone="test_resnet", **values):
    torch.manual_seed(0)
    model = DINO(Backbone(backbone, image_size=64), **SMALL | values)
    with torch.no_grad():
        for parameter in (*model.target_backbone.parameters(), *model.target_head.parameters()):
            parameter.mul_(1.1)
        model.center.normal_(std=0.05)
    return model


def crops(count=3, sizes=(64, 64, 32, 32), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Batch([torch.randn(count, 3, size, size, generator=generator) for size in sizes], [], torch.arange(count))


def logits(backbone, head, views):
    """Of each view, (B, K), with the last layer as torch's weight normalization has it."""
    last = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(16, 6, bias=False))
    last.parametrizations.weight.original0.data.fill_(1)
    last.parametrizations.weight.original1.data.copy_(head.last)
    return [last(F.normalize(head.layers(backbone(view)), dim=1)) for view in views]


def loops(student, teacher, center, temperature):
    """Algorithm 1 of the paper with multi-crop: -sum t log s over pairs of different views, image by image."""
    total, pairs = 0.0, 0
    for t, target in enumerate(teacher):
        for s, predicted in enumerate(student):
            if s == t:
                continue
            pairs += 1
            for image in range(len(target)):
                powers = [((v - c) / temperature).exp() for v, c in zip(target[image], center, strict=True)]
                ours = [(v / 0.1).exp() for v in predicted[image]]
                for p, q in zip(powers, ours, strict=True):
                    total = total - (p / sum(powers)).detach() * torch.log(q / sum(ours)) / len(target)
    return total / pairs


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_loss_and_gradients_equal_loops(backbone):
    model, twin, batch = build(backbone).eval(), build(backbone).eval(), crops()
    step = model.step(batch, MIDDLE)
    student = logits(twin.backbone, twin.head, batch.views)
    teacher = logits(twin.target_backbone, twin.target_head, batch.views[:2])
    expected = loops(student, teacher, twin.center, DINOArgs().temperature(MIDDLE))
    torch.testing.assert_close(step.loss, expected, rtol=1e-5, atol=1e-5)
    step.loss.backward()
    expected.backward()
    for name in ("head.layers.0.weight", "head.layers.4.bias"):
        torch.testing.assert_close(
            model.get_parameter(name).grad, twin.get_parameter(name).grad, rtol=1e-3, atol=1e-6, msg=name
        )
    targets = [((t - twin.center) / DINOArgs().temperature(MIDDLE)).softmax(1) for t in teacher]
    entropy = sum(-(t * t.log()).sum(1).mean() for t in targets) / 2
    torch.testing.assert_close(step.logs["target_entropy"], entropy, rtol=1e-4, atol=1e-5)


def test_center_follows_the_mean_logits_of_all_micro_batches():
    model = build(center_momentum=0.8).train()
    before, means = model.center.clone(), []
    with torch.no_grad():
        model.step(crops(seed=9), START)  # measuring leaves no trace
    for seed in (1, 2):
        batch = crops(seed=seed)
        pooled = build().target_backbone.forward_views(batch.views[:2]).flatten(0, 1)
        means.append(model.target_head(pooled).mean(0))
        model.step(batch, START)
        assert torch.equal(model.center, before), "step changes nothing yet"
    model.after_step(START)
    torch.testing.assert_close(model.center, 0.8 * before + 0.2 * (means[0] + means[1]) / 2)


def test_teacher_temperature_warms_up_to_the_papers():
    args = DINOArgs(warmup_teacher_temp_epochs=30)
    told = [args.temperature(Progress(step, 3000, step // 10, 10)) for step in (0, 150, 300, 999)]
    assert told == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert DINOArgs(warmup_teacher_temp_epochs=0).temperature(START) == 0.07


@pytest.mark.parametrize(("per_epoch", "frozen"), [(100, 100), (400, 300), (None, 300)])
def test_warmup_and_freezing_fit_a_short_run(per_epoch, frozen):
    """900 steps: an epoch, at most a third of the run, and a third where nobody knows what an epoch is."""
    args = DINOArgs()
    assert [args.frozen(Progress(step, 900, 0, per_epoch)) for step in (0, frozen - 1, frozen)] == [True, True, False]
    assert args.temperature(Progress(300, 900, 0, per_epoch)) == pytest.approx(0.07)
    said = build(freeze_last_layer_epochs=1).schedule(Progress(0, 900, 0, per_epoch))
    assert f"temperature 0.07 after 300 steps, last layer frozen for {frozen} steps" in said


@pytest.mark.parametrize("step", [0, 2, 3])
def test_last_layer_is_frozen_at_the_start_alone(step):
    model = build(freeze_last_layer_epochs=1)
    model.step(crops(), Progress(step, 20, 0, 3)).loss.backward()
    assert bool(model.head.last.grad.any()) == (step >= 3)
    assert model.head.layers[0].weight.grad.any()
