"""Landmarks to heatmaps and back, against loops over cells."""

import itertools
import math

import numpy as np
import pytest
import torch

from facessl.models.layers.heatmaps import (
    edge_heatmaps,
    gaussian_heatmaps,
    rescale,
    shrunk_gaussians,
    soft_argmax,
)


def test_image_corners_are_heatmap_corners():
    edges = torch.tensor([[-0.5, -0.5], [447.5, 255.5], [223.5, 127.5]])
    cells = rescale(edges, (256, 448), (64, 112))
    torch.testing.assert_close(cells, torch.tensor([[-0.5, -0.5], [111.5, 63.5], [55.5, 31.5]]))
    torch.testing.assert_close(rescale(cells, (64, 112), (256, 448)), edges)


def test_gaussians_against_loops():
    points = torch.tensor([[[3.3, 7.8], [-2.0, 4.0], [math.nan, 1.0]]], dtype=torch.float64)
    visible = torch.tensor([[True, True, False]])
    maps = gaussian_heatmaps(points, (12, 10), visible=visible)
    for k, (px, py) in enumerate(points[0].tolist()):
        for y in range(12):
            for x in range(10):
                distance = math.hypot(x - px, y - py)
                inside = visible[0, k] and distance <= 5
                expected = math.exp(-(distance**2) / (2 * 1.25**2)) if inside else 0.0
                assert maps[0, k, y, x].item() == pytest.approx(expected, abs=1e-12)


def drawn_and_shrunk(image: np.ndarray, size: int) -> np.ndarray:
    """(H, H) -> (size, size), bilinear without a filter, as STAR's release does."""
    small = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None].double(), size=(size, size), mode="bilinear", align_corners=False
    )
    found: np.ndarray = small[0, 0].numpy()
    return found


@pytest.mark.parametrize(("side", "size"), [(64, 16), (63, 21), (48, 20)])
def test_points_against_drawing_and_shrinking(side, size):
    points = np.array([[20.3, 31.8], [-3.0, 10.0], [side + 5.0, side - 1.2], [math.nan, 1.0]])
    visible = torch.tensor([[True, True, True, False]])
    maps = shrunk_gaussians(torch.from_numpy(points)[None], (side, side), (size, size), visible=visible)[0]
    for (px, py), found in zip(points.clip(0, side - 1)[:3], maps, strict=False):
        image = np.zeros((side, side))
        for y in range(side):
            for x in range(side):
                if max(abs(x - px), abs(y - py)) <= 4.5:
                    image[y, x] = math.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.5**2))
        np.testing.assert_allclose(found.numpy(), drawn_and_shrunk(image, size), atol=1e-12)
    assert not maps[3].any()


def test_edges_against_loops():
    points = torch.tensor([[[8.0, 8.0], [36.0, 14.0], [24.0, 40.0], [24.0, 60.0]]], dtype=torch.float64)
    edges = ((0, 1, 2, 0), (2, 3), (2, 2))  # closed; out of the image; of no length
    maps = edge_heatmaps(points, edges, (52, 48), (13, 12))
    inside = points[0].numpy().clip(0, (47, 51))
    for e, edge in enumerate(edges):
        line = np.concatenate([np.linspace(inside[a], inside[b], 2001) for a, b in itertools.pairwise(edge)])
        for y in range(13):
            for x in range(12):
                distance = np.hypot(line[:, 0] - (4 * x + 1.5), line[:, 1] - (4 * y + 1.5)).min()
                expected = 0.65 * math.exp(-(distance**2) / (2 * 0.75**2)) if distance < 2.25 else 0.0
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


def test_an_empty_map_decodes_to_the_center_with_finite_gradient():
    empty = torch.zeros(1, 1, 4, 6, requires_grad=True)
    points = soft_argmax(empty)
    torch.testing.assert_close(points, torch.tensor([[[2.5, 1.5]]]))
    points.sum().backward()
    assert empty.grad.isfinite().all()
