"""SimCLR against its equation and against another library's loss."""

import pytest
import torch

from facessl.core.types import Batch, Progress
from facessl.methods.simclr import SimCLR, nt_xent
from facessl.models.backbone import Backbone


def pair(count=5, dim=7, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return [z.requires_grad_() for z in drawn.clone()]


def loops(z1, z2, temperature):
    """Eq. 1, view by view."""
    views = [row / row.square().sum().sqrt() for image in zip(z1, z2, strict=True) for row in image]
    total, found = 0.0, 0
    for i, view in enumerate(views):
        partner = i + 1 if i % 2 == 0 else i - 1
        similar = {k: (view * other).sum() / temperature for k, other in enumerate(views) if k != i}
        total = total - torch.log(similar[partner].exp() / sum(s.exp() for s in similar.values()))
        found += max(similar, key=lambda k: similar[k].item()) == partner
    return total / len(views), found / len(views)


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_equals_loops(temperature):
    z = pair()
    (ours, found), (twin, share) = nt_xent(*z, temperature), loops(*z, temperature)
    torch.testing.assert_close(ours, twin, rtol=1e-10, atol=0)
    assert found.item() == pytest.approx(share)
    for mine, theirs in zip(gradients(ours, z), gradients(twin, z), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


def test_loss_is_float32_under_autocast():
    z = [v.detach().bfloat16() for v in pair(count=32, scale=1.0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(*z, 0.1)[0]
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(nt_xent(*[v.double() for v in z], 0.1)[0].item(), rel=1e-5)


def test_step_is_the_loss_of_both_projections():
    torch.manual_seed(0)
    model = SimCLR(Backbone("test_resnet", image_size=64), hidden=24, dim=16).eval()
    x = torch.randn(2, 4, 3, 64, 64)
    step = model.step(Batch([*x], [], torch.arange(4)), Progress(0, 1))
    expected, found = loops(*[model.projector(model.backbone(view)) for view in x], temperature=0.1)
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert step.logs["top1"].item() == pytest.approx(found)
