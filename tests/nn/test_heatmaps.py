"""Landmarks to heatmaps and back, against loops over cells."""

import itertools
import math

import numpy as np
import pytest
import torch

from facessl.nn.heatmaps import edge_heatmaps, gaussian_heatmaps, soft_argmax, to_heatmap, to_image


def test_image_corners_are_heatmap_corners():
    edges = torch.tensor([[-0.5, -0.5], [447.5, 255.5], [223.5, 127.5]])
    cells = to_heatmap(edges, (256, 448), (64, 112))
    torch.testing.assert_close(cells, torch.tensor([[-0.5, -0.5], [111.5, 63.5], [55.5, 31.5]]))
    torch.testing.assert_close(to_image(cells, (256, 448), (64, 112)), edges)


@pytest.mark.parametrize("radius", [5.0, None])
def test_gaussians_against_loops(radius):
    points = torch.tensor([[[3.3, 7.8], [-2.0, 4.0], [math.nan, 1.0]]], dtype=torch.float64)
    visible = torch.tensor([[True, True, False]])
    maps = gaussian_heatmaps(points, (12, 10), sigma=1.25, radius=radius, visible=visible)
    for k, (px, py) in enumerate(points[0].tolist()):
        for y in range(12):
            for x in range(10):
                distance = math.hypot(x - px, y - py)
                inside = visible[0, k] and (radius is None or distance <= radius)
                expected = math.exp(-(distance**2) / (2 * 1.25**2)) if inside else 0.0
                assert maps[0, k, y, x].item() == pytest.approx(expected, abs=1e-12)


def test_edges_against_loops():
    points = torch.tensor([[[2.0, 2.0], [9.0, 3.5], [6.0, 10.0], [6.0, 10.0]]], dtype=torch.float64)
    edges = ((0, 1, 2, 0), (2, 3))  # closed; of no length
    maps = edge_heatmaps(points, edges, (13, 12), sigma=1.0)
    for e, edge in enumerate(edges):
        line = np.concatenate(
            [np.linspace(points[0, a].numpy(), points[0, b].numpy(), 2001) for a, b in itertools.pairwise(edge)]
        )
        for y in range(13):
            for x in range(12):
                distance = np.hypot(line[:, 0] - x, line[:, 1] - y).min()
                expected = math.exp(-(distance**2) / 2) if distance < 3 else 0.0
                assert maps[0, e, y, x].item() == pytest.approx(expected, abs=1e-3)


def test_decoding_is_the_weighted_mean_and_inverts_the_gaussian():
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    points = soft_argmax(maps)
    for b in range(2):
        for k in range(3):
            total = maps[b, k].sum()
            mean_x = sum(x * maps[b, k, y, x] for y in range(5) for x in range(7)) / total
            mean_y = sum(y * maps[b, k, y, x] for y in range(5) for x in range(7)) / total
            torch.testing.assert_close(points[b, k], torch.stack([mean_x, mean_y]))
    assert torch.autograd.gradcheck(soft_argmax, maps)
    where = torch.tensor([[[20.3, 31.7], [40.0, 12.5]]])
    assert (soft_argmax(gaussian_heatmaps(where, (64, 64))) - where).abs().max() < 0.02
    assert (soft_argmax(gaussian_heatmaps(where, (64, 64)).bfloat16()) - where).abs().max() < 0.05


def test_an_empty_map_decodes_to_the_centre_with_finite_gradient():
    empty = torch.zeros(1, 1, 4, 6, requires_grad=True)
    points = soft_argmax(empty)
    torch.testing.assert_close(points, torch.tensor([[[2.5, 1.5]]]))
    points.sum().backward()
    assert empty.grad.isfinite().all()
