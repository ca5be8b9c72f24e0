"""STAR's networks: their edges, the gating, and that they learn."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from facessl.data.layouts import layout, names
from facessl.models.layers.heatmaps import edge_heatmaps, rescale, shrunk_gaussians, soft_argmax
from facessl.models.layers.landmark_losses import awing, star
from facessl.models.layers.star import AnisotropicAttention, CoordConv, StarHead, StarMaps, star_loss

EDGES = ((0, 1, 2), (2, 3, 4, 2))  # landmark 2 lies on both, landmark 5 on none


@pytest.mark.parametrize("name", names())
def test_edges_mirror_onto_edges(name):
    """Mirroring the face must give the same edges, each landmark on at most one."""
    order, edges = layout(name), layout(name).edges
    sets = [frozenset(edge) for edge in edges]
    assert {frozenset(order.flip[i] for i in edge) for edge in sets} == set(sets)
    everyone = [i for edge in sets for i in edge]
    assert len(everyone) == len(set(everyone))
    assert max(everyone) < order.points
    for edge in edges:  # neighbors stay neighbors
        steps = {frozenset(pair) for pair in itertools.pairwise(edge)}
        mirrored = {frozenset(order.flip[i] for i in pair) for pair in steps}
        assert any(mirrored == {frozenset(p) for p in itertools.pairwise(e)} for e in edges)


def test_gate_against_loops():
    torch.manual_seed(0)
    attention = AnisotropicAttention(4, 6, EDGES)
    features = torch.randn(2, 4, 5, 3)
    found = attention(features)
    logits = F.conv2d(features, attention.logits.weight, attention.logits.bias)
    for b in range(2):
        for k in range(6):
            mine = logits[b, k]
            normed = (mine - mine.mean()) / (mine.var(unbiased=False) + 1e-5).sqrt()
            gate = sum((logits[b, 12 + e].sigmoid() for e, edge in enumerate(EDGES) if k in edge), torch.zeros(5, 3))
            if k == 5:
                gate = torch.ones(5, 3)
            torch.testing.assert_close(found.points[b, k], logits[b, 6 + k].sigmoid())
            torch.testing.assert_close(found.heatmaps[b, k], normed.relu() * gate * found.points[b, k])


def test_coordinates_tell_places_apart():
    torch.manual_seed(0)
    out = CoordConv(2, 3)(torch.zeros(1, 2, 6, 6))
    assert len(torch.unique(out[0].flatten(1).round(decimals=5), dim=1).T) == 36


def test_loss_weighs_its_terms():
    torch.manual_seed(0)
    maps = StarMaps(torch.rand(2, 6, 8, 8), torch.rand(2, 6, 8, 8), torch.rand(2, 2, 8, 8))
    image = (32, 32)
    target = 32 * torch.rand(2, 6, 2)
    target[1, 4] = torch.tensor([-7.0, 40.0])  # counts at the edge of the image
    visible = torch.ones(2, 6, dtype=torch.bool)
    visible[0, 3] = False  # takes the second edge of the first image with it
    whole = torch.tensor([[True, False], [True, True]])
    expected = {
        "star": star(maps.heatmaps, rescale(target.clamp(-0.5, 31.5), image, (8, 8)), visible),
        "points": awing(maps.points, shrunk_gaussians(target, image, (8, 8)), visible),
        "edges": awing(maps.edges, edge_heatmaps(target, EDGES, image, (8, 8)), whole),
    }
    hidden = target.clone()
    hidden[0, 3] = math.nan
    loss, terms = star_loss(maps, hidden, visible, edges=EDGES, image=image)
    torch.testing.assert_close(terms, expected)
    torch.testing.assert_close(loss, expected["star"] + 10 * expected["points"] + 10 * expected["edges"])


def test_star_learns_one_batch():
    """A few steps halve the distance of the decoded landmarks from their targets."""
    torch.manual_seed(0)
    net = StarHead([8, 8, 8, 8], [4, 8, 16, 32], points=6, edges=EDGES, width=16)
    pyramid, target = [torch.randn(2, 8, s, s) for s in (16, 8, 4, 2)], 8 + 48 * torch.rand(2, 6, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    errors = []
    for _ in range(50):
        maps = net(pyramid)
        loss, _ = star_loss(maps, target, edges=EDGES, image=(64, 64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append((soft_argmax(maps.heatmaps) - rescale(target, (64, 64), (16, 16))).norm(dim=-1).mean().item())
    assert errors[-1] < 0.5 * errors[0], errors[::10]
