"""Landmarks to heatmaps and back. Points are (x, y); the centre of the top-left cell or pixel is (0, 0)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from facessl.nn.precision import at_least_float32


def to_heatmap(points: Tensor, image: tuple[int, int], heatmap: tuple[int, int]) -> Tensor:
    """Pixels of an image -> cells of a heatmap that covers the same square: (p + 0.5) * h / H - 0.5.

    Args:
        points: (..., 2) x, y in pixels of the image.
        image, heatmap: height and width of both.

    Returns:
        (..., 2) x, y in cells.
    """
    scale = points.new_tensor([heatmap[1] / image[1], heatmap[0] / image[0]])
    return (points + 0.5) * scale - 0.5


def to_image(points: Tensor, image: tuple[int, int], heatmap: tuple[int, int]) -> Tensor:
    """Cells of a heatmap -> pixels of the image, the inverse of `to_heatmap`; the same arguments."""
    return to_heatmap(points, heatmap, image)


def gaussian_heatmaps(
    points: Tensor,
    size: tuple[int, int],
    *,
    sigma: float = 1.25,
    radius: float | None = 5.0,
    visible: Tensor | None = None,
) -> Tensor:
    """One Gaussian per landmark with height 1 at the landmark itself, which may lie between cells.

    The defaults are FaRL's: sigma is a quarter of the radius, and beyond the radius the map is 0.

    Args:
        points: (B, K, 2) x, y in cells; those that are not visible may be anything, NaN included.
        size: height and width of the maps.
        sigma: standard deviation in cells.
        radius: distance in cells from which on the map is 0; None: nowhere.
        visible: (B, K) bool; the maps of the others are 0. None: all are.

    Returns:
        (B, K, h, w) in float32 or wider, without gradient.
    """
    points = at_least_float32(points.detach())
    if visible is not None:
        points = points.where(visible.bool()[..., None], torch.inf)  # infinitely far away: 0 everywhere
    dx = (torch.arange(size[1], device=points.device) - points[..., :1]).square()  # (B, K, w)
    dy = (torch.arange(size[0], device=points.device) - points[..., 1:]).square()  # (B, K, h)
    factor = -0.5 / sigma**2
    maps = (factor * dy).exp()[..., :, None] * (factor * dx).exp()[..., None, :]  # (B, K, h, w)
    if radius is not None:
        maps = maps * (dy[..., :, None] + dx[..., None, :] <= radius**2)
    return maps


def edge_heatmaps(
    points: Tensor, edges: Sequence[Sequence[int]], size: tuple[int, int], *, sigma: float = 1.0
) -> Tensor:
    """One map per edge: exp(-d^2 / (2 sigma^2)) of the distance d to its line, 0 from 3 sigma on (LAB, Wu et al. 2018).

    Args:
        points: (B, K, 2) x, y in cells.
        edges: per edge the landmarks that straight pieces join in this order; a closed edge names its first one again.
        size: height and width of the maps.
        sigma: standard deviation across the line in cells.

    Returns:
        (B, E, h, w) in float32 or wider, without gradient.
    """
    points = at_least_float32(points.detach())
    x = torch.arange(size[1], device=points.device)
    y = torch.arange(size[0], device=points.device)[:, None]
    maps = []
    for edge in edges:
        ends = points[:, list(edge)]  # (B, n, 2)
        start, step = ends[:, :-1], ends[:, 1:] - ends[:, :-1]  # (B, n - 1, 2)
        (sx, sy), (ux, uy) = (p[..., None, None].unbind(2) for p in (start, step))  # each (B, n - 1, 1, 1)
        dx, dy = x - sx, y - sy  # (B, n - 1, 1, w), (B, n - 1, h, 1)
        along = (dx * ux + dy * uy) / (ux * ux + uy * uy).clamp_min(1e-6)  # share of the piece at the nearest point
        along = along.clamp(0, 1)
        distance = ((dx - along * ux).square() + (dy - along * uy).square()).amin(1)  # (B, h, w), squared
        maps.append((distance * (-0.5 / sigma**2)).exp() * (distance < 9 * sigma**2))
    return torch.stack(maps, dim=1)


def soft_argmax(activations: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Mean position weighted by the activations (FaRL's decoding of sigmoid maps, STAR's of its own).

    Computed about the centre of the map, which is what an empty map gives.

    Args:
        activations: (B, K, h, w), not negative.
        epsilon: smallest total that divides.

    Returns:
        (B, K, 2) x, y in cells, in float32 or wider also under autocast.
    """
    kind = torch.promote_types(activations.dtype, torch.float32)
    columns, rows = (activations.sum(dim, dtype=kind) for dim in (-2, -1))  # (B, K, w), (B, K, h)
    total = columns.sum(-1).clamp_min(epsilon)  # (B, K)
    out = []
    for share in (columns, rows):
        centre = (share.shape[-1] - 1) / 2
        cells = torch.arange(share.shape[-1], device=share.device, dtype=share.dtype) - centre
        out.append((share * cells).sum(-1) / total + centre)
    return torch.stack(out, dim=-1)
