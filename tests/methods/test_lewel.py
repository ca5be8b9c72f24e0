"""LEWEL against plain loops, and the two rules of its target network."""

import math

import pytest
import torch

from facessl.core.types import Batch, Progress
from facessl.methods.lewel import LEWEL, AlignedHeads, LEWELArgs
from facessl.models.backbone import Backbone


def build(**values):
    torch.manual_seed(0)
    model = LEWEL(Backbone("test_resnet", image_size=64), **{"hidden": 24, "dim": 16, **values})
    with torch.no_grad():
        for parameter in model.target_backbone.parameters():
            parameter.mul_(1.1)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.randn(4, 3, 64, 64, generator=generator) for _ in range(2)], [], torch.arange(4))


def aligned_slowly(features, pixels, heads, scale):
    """Averages (C, K) of one image's map (C, n), from its pixels' projections (D, n), in plain loops."""
    channels, count, dim = len(features), len(features[0]), len(pixels)
    lengths = [sum(pixels[d][p] ** 2 for d in range(dim)) ** 0.5 for p in range(count)]
    out = torch.zeros(channels, dim // heads, dtype=torch.float64)
    for d in range(dim):
        head, k = divmod(d, dim // heads)
        powers = [(pixels[d][p] / lengths[p] / scale).exp() for p in range(count)]
        for c in range(head * channels // heads, (head + 1) * channels // heads):
            out[c, k] = sum(powers[p] * features[c][p] for p in range(count)) / sum(powers)
    return out


@pytest.mark.parametrize(("heads", "scale"), [(4, 1.0), (2, 0.1)])
def test_aligned_embeddings_are_weighted_averages_of_their_own_group(heads, scale):
    torch.manual_seed(0)
    part = AlignedHeads(8, LEWELArgs(heads=heads, scale=scale, hidden=12, dim=16)).double().eval()
    features = torch.randn(2, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    pooled = torch.randn(2, 8, dtype=torch.float64)
    z, found = part(features, pooled)
    pixels = part.projector(features.flatten(2))
    averages = [aligned_slowly(f, p, heads, scale) for f, p in zip(features.flatten(2), pixels, strict=True)]
    slow = part.slot_projector(torch.stack(averages)).transpose(1, 2)
    torch.testing.assert_close(z, part.projector(pooled))
    torch.testing.assert_close(found, slow)
    assert found.shape == (2, 16 // heads, 16)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((x * weights).sum(), features, retain_graph=True)[0] for x in (found, slow)]
    torch.testing.assert_close(*gradients)


def test_projector_normalizes_pooled_vector_and_pixels_together():
    part = AlignedHeads(8, LEWELArgs(hidden=12, dim=16)).train()
    features = torch.randn(4, 8, 2, 3)
    vectors = torch.cat([features.flatten(2), features.mean((2, 3)).unsqueeze(2)], dim=2)  # in any order
    part(features, features.mean((2, 3)))
    first, norm = part.projector.layers[0], part.projector.layers[1]
    seen = first(vectors.transpose(1, 2)).flatten(0, 1).mean(0)
    torch.testing.assert_close(norm.running_mean, 0.1 * seen)


def test_loss_is_the_weighted_sum_over_both_directions_and_both_kinds(batch):
    model = build(global_weight=0.3).eval()
    step = model.step(batch, Progress(0, 1))
    online = [model.heads(*model.backbone.forward_both(x)) for x in batch.views]
    target = [model.target_heads(*model.target_backbone.forward_both(x)) for x in batch.views]

    def distance(p, z):
        norms = math.sqrt(sum(v * v for v in p) * sum(v * v for v in z))
        return 2 - 2 * sum(a * b for a, b in zip(p, z, strict=True)) / norms

    whole = aligned = 0.0
    for (z, slots), (target_z, target_slots) in ((online[0], target[1]), (online[1], target[0])):
        for i in range(4):
            whole += distance(model.predictor(z)[i].tolist(), target_z[i].tolist()) / 4
            for k in range(4):
                predicted = model.slot_predictor(slots[:, k])[i]  # evaluation mode: rows do not meet
                aligned += distance(predicted.tolist(), target_slots[i, k].tolist()) / 16
    assert step.logs["global_consistency"].item() == pytest.approx(whole, rel=1e-5)
    assert step.logs["aligned_consistency"].item() == pytest.approx(aligned, rel=1e-5)
    assert step.loss.item() == pytest.approx(0.3 * whole + 0.7 * aligned, rel=1e-5)


def statistics(model, part):
    return {n: b.clone() for n, b in getattr(model, part).named_buffers()}


def test_eman_averages_statistics_and_syncbn_takes_them_from_its_own_batches(batch):
    for variant, momentum in (("eman", 0.98), ("syncbn", 0.996)):
        model = build(variant=variant).train()
        before = statistics(model, "target_backbone")
        model.step(batch, Progress(0, 100))
        seen, online = statistics(model, "target_backbone"), statistics(model, "backbone")
        parameter = model.target_heads.projector.layers[0].weight.clone()
        with torch.no_grad():
            model.heads.projector.layers[0].weight.add_(1)
        model.after_step(Progress(0, 100))
        after = statistics(model, "target_backbone")
        torch.testing.assert_close(model.target_heads.projector.layers[0].weight, parameter + 1 - momentum)
        name = "model.bn1.running_mean"
        if variant == "eman":
            assert all(torch.equal(before[n], seen[n]) for n in before), "its forward pass moves nothing"
            torch.testing.assert_close(after[name], momentum * before[name] + (1 - momentum) * online[name])
            assert after["model.bn1.num_batches_tracked"] == online["model.bn1.num_batches_tracked"] == 2
        else:
            assert not torch.equal(before[name], seen[name])
            assert all(torch.equal(after[n], seen[n]) for n in after), "after_step moves parameters only"
