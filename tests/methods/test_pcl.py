"""PCL's losses against plain loops, its loss weights over epochs, and the released network."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from facessl.core.types import Batch, Progress
from facessl.methods.pcl import (
    PCL,
    PCL_VIEWS,
    LossBalance,
    Mixing,
    beta_quantile,
    face_contrast,
    orthogonality,
    pose_contrast,
)
from facessl.models.backbone import Backbone
from facessl.models.facecycle import ChannelAttention


def build(backbone="test_resnet", **values):
    torch.manual_seed(0)
    small = {"width": 8, "hidden": 24, "dim": 16, "decoder_width": 16, "decoder_size": 16}
    return PCL(Backbone(backbone, image_size=64), **(small | values))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.rand(4, 3, 64, 64, generator=generator) for _ in PCL_VIEWS], [], torch.arange(4))


def mixing(alpha=1.6):
    return Mixing(alpha, seed=7, device=torch.device("cpu"))


def cosine(a, b):
    return (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()


def info_nce(positive, negatives, temperature):
    powers = [(c / temperature).exp() for c in (positive, *negatives)]
    return -(powers[0] / sum(powers)).log()


def same_with_gradients(ours, slow, *inputs):
    torch.testing.assert_close(ours, slow)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("alpha", [1.6, None])
def test_face_contrast_mixes_the_views_of_other_images_in_pairs(alpha):
    x = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    draws = mixing(alpha)
    order, weights = draws.order(8).tolist(), draws.weights(10, 8).double()
    slow = 0
    for i in range(10):
        others = [x[j] for j in range(10) if j % 5 != i % 5]
        mixed = [weights[i, j] * others[j] + (1 - weights[i, j]) * others[order[j]] for j in range(8)]
        slow = slow + info_nce(cosine(x[i], x[(i + 5) % 10]), [cosine(x[i], m) for m in mixed], 0.3) / 10
    same_with_gradients(face_contrast(x, mixing(alpha), 0.3), slow, x)


def test_pose_contrast_mixes_the_mirrored_views_of_the_same_image():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 6, dtype=torch.float64, generator=generator).requires_grad_()
    mirrored = torch.randn(3, 5, 6, dtype=torch.float64, generator=generator).requires_grad_()
    draws = mixing()
    order, weights = draws.order(3).tolist(), draws.weights(5, 3).double()
    slow = 0
    for i in range(10):
        own = mirrored[:, i % 5]
        mixed = [weights[i % 5, k] * own[k] + (1 - weights[i % 5, k]) * own[order[k]] for k in range(3)]
        slow = slow + info_nce(cosine(x[i], x[(i + 5) % 10]), [cosine(x[i], m) for m in mixed], 0.3) / 10
    same_with_gradients(pose_contrast(x, mirrored, mixing(), 0.3), slow, x, mirrored)


def test_orthogonality_is_the_mean_squared_entry_of_the_product():
    generator = torch.Generator().manual_seed(0)
    face, pose = (torch.randn(4, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    centered = [x - x.mean(0) for x in (face, pose)]
    e, p = ([row / (row.detach().norm() + 1e-6) for row in x] for x in centered)
    slow = sum(sum(e[b][i] * p[b][j] for b in range(4)) ** 2 for i in range(5) for j in range(5)) / 25
    same_with_gradients(orthogonality(face, pose), slow, face, pose)


def test_beta_quantiles_invert_the_distribution():
    x = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(beta_quantile(3 * x**2 - 2 * x**3, 2.0), x, rtol=0, atol=1e-4)
    torch.testing.assert_close(beta_quantile(x, 1.0), x)


def test_image_is_made_of_its_own_pose_and_either_face(batch):
    model = build().eval()
    image = batch.views[0]
    features = [model.backbone.forward_features(x) for x in (image, image.flip(-1))]
    (face, mirror_face), (pose, mirror_pose) = (
        [b(f) for f in features] for b in (model.face_branch, model.pose_branch)
    )
    made = {
        (face, pose): image,
        (mirror_face, pose): image,
        (face, mirror_pose): image.flip(-1),
        (mirror_face, mirror_pose): image.flip(-1),
    }
    slow = 0
    for (f, p), target in made.items():
        small = target.reshape(4, 3, 16, 4, 16, 4).mean((3, 5))  # blocks of 4 x 4 pixels
        slow = slow + (model.decoder(F.normalize(f + p, dim=1)) - small).abs().mean()
    logs = model.step(batch, Progress(0, 1)).logs
    torch.testing.assert_close(logs["reconstruction"], slow.detach())
    torch.testing.assert_close(
        logs["orthogonality"], (orthogonality(face, pose) + orthogonality(mirror_face, mirror_pose)).detach()
    )


def test_loss_weighs_the_two_contrasts(batch):
    model = build().eval()
    model.balance.means.copy_(torch.tensor([[3.0, 1.0], [2.0, 2.0]]))
    step = model.step(batch, Progress(0, 1))
    powers = [math.exp(r / 2.0) for r in (3 / 2, 1 / 2)]
    face, pose = (2 * p / sum(powers) for p in powers)
    logs = {k: v.item() for k, v in step.logs.items()}
    assert (logs["face_weight"], logs["pose_weight"]) == pytest.approx((face, pose))
    expected = logs["reconstruction"] + logs["orthogonality"] + face * logs["face_contrast"]
    assert step.loss.item() == pytest.approx(expected + pose * logs["pose_contrast"], rel=1e-5)


def weights_slowly(history, temperature):
    """history: for each epoch a list of (a, b); weights of the epoch after them."""
    if len(history) < 2:
        return [1.0, 1.0]
    last, before = ([sum(x) / len(x) for x in zip(*epoch, strict=True)] for epoch in (history[-1], history[-2]))
    powers = [math.exp(a / b / temperature) for a, b in zip(last, before, strict=True)]
    return [2 * p / sum(powers) for p in powers]


def test_weights_follow_the_mean_losses_of_the_last_two_epochs_and_survive_a_restart():
    generator = torch.Generator().manual_seed(0)
    balance, history, step = LossBalance(2, 2.0), [], 0
    for epoch in range(5):
        history.append([])
        for _ in range(3):
            expected = weights_slowly(history[:-1], 2.0)
            torch.testing.assert_close(balance.weights(epoch), torch.tensor(expected), rtol=1e-5, atol=1e-6)
            parts = 0.5 + torch.rand(2, 2, generator=generator)  # two micro-batches
            for part in parts:
                balance.add(part)
            balance.update(epoch)
            history[-1].append(parts.mean(0).tolist())
            step += 1
            if step % 4 == 0:
                resumed = LossBalance(2, 2.0)
                resumed.load_state_dict(balance.state_dict())
                balance = resumed
    assert torch.equal(LossBalance(2, None).weights(9), torch.ones(2))


def test_after_step_notes_the_losses(batch):
    model = build()
    step = model.step(batch, Progress(0, 10))
    assert not model.balance.sums.any()
    model.after_step(Progress(0, 10))
    expected = torch.stack([step.logs["face_contrast"], step.logs["pose_contrast"]])
    torch.testing.assert_close(model.balance.sums, torch.cat([expected, torch.ones(1)]))


@pytest.mark.parametrize("views", [6, 7, 8])
def test_further_views_are_further_pose_negatives(batch, views):
    model = build(mix_alpha=None).eval()
    further = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    shown = [*batch.views, further][:views]
    logs = model.step(Batch(shown, [], batch.index), Progress(0, 1)).logs
    with torch.no_grad():
        first, second, *mirrored = (
            model.pose_head(model.pose_branch(model.backbone.forward_features(x))).double() for x in shown[3:]
        )
    slow = 0
    for i in range(4):
        for query, other in ((first[i], second[i]), (second[i], first[i])):
            slow = slow + info_nce(cosine(query, other), [cosine(query, m[i]) for m in mirrored], 0.07) / 8
    torch.testing.assert_close(logs["pose_contrast"], slow.float())


def test_channel_attention_is_its_sums():
    torch.manual_seed(0)
    part = ChannelAttention(3).double()
    x = torch.randn(1, 3, 2, 2).double()
    g, theta, phi = (conv(x).flatten(2)[0].tolist() for conv in (part.g, part.theta, part.phi))
    out = torch.zeros(3, 4).double()
    for c, n in itertools.product(range(3), range(4)):
        for d in range(3):
            share = [math.exp(theta[d][p]) / sum(map(math.exp, theta[d])) for p in range(4)]
            value = math.exp(g[d][n]) / sum(math.exp(g[k][n]) for k in range(3))
            out[c, n] += sum(phi[c][p] * share[p] for p in range(4)) * value
    expected = F.leaky_relu(x + out.view(1, 3, 2, 2), 0.1)
    torch.testing.assert_close(part(x), expected)
