"""Landmarks to heatmaps and back. Points are (x, y); the center of the top-left cell or pixel is (0, 0)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from facessl.core.constants import constant
from facessl.core.precision import at_least_float32


def rescale(points: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Points (..., 2) on a grid of height and width `source` -> on one of `target` over the same area (pixels of an
    image, cells of a heatmap): (p + 0.5) * h / H - 0.5."""
    return (points + 0.5) * constant((target[1] / source[1], target[0] / source[0]), points) - 0.5


def gaussian_heatmaps(
    points: Tensor, size: tuple[int, int], *, sigma: float = 1.25, radius: float = 5.0, visible: Tensor | None = None
) -> Tensor:
    """One Gaussian per landmark with height 1 at the landmark itself, which may lie between cells.

    The defaults are FaRL's: sigma is a quarter of the radius, and beyond the radius the map is 0.

    Args:
        points: (B, K, 2) x, y in cells; those that are not visible may be anything, NaN included.
        size: height and width of the maps.
        sigma, radius: standard deviation in cells, and distance from which on the map is 0.
        visible: (B, K) bool; the maps of the others are 0. None: all are.

    Returns:
        (B, K, h, w) in float32 or wider, without gradient.
    """
    points = _seen(at_least_float32(points.detach()), visible)
    dx = (torch.arange(size[1], device=points.device) - points[..., :1]).square()  # (B, K, w)
    dy = (torch.arange(size[0], device=points.device) - points[..., 1:]).square()  # (B, K, h)
    factor = -0.5 / sigma**2
    maps = (factor * dy).exp()[..., :, None] * (factor * dx).exp()[..., None, :]  # (B, K, h, w)
    return maps * (dy[..., :, None] + dx[..., None, :] <= radius**2)


#: Standard deviation in pixels of the image, STAR's.
BLOB_SIGMA = 1.5


def shrunk_gaussians(
    points: Tensor, image: tuple[int, int], size: tuple[int, int], *, visible: Tensor | None = None
) -> Tensor:
    """Gaussians that are drawn in the image, cut to a square of 3 sigma, and shrunk bilinearly (STAR's point maps).

    Landmarks outside the image are drawn at its edge. Differences: the Gaussian's center is the landmark itself, and
    not the nearest pixel.

    Args:
        points, visible: as in `gaussian_heatmaps`, but in pixels of the image.
        image, size: height and width of the image and of the maps.

    Returns:
        (B, K, h, w) in float32 or wider, without gradient.
    """
    points = _seen(_inside(at_least_float32(points.detach()), image), visible)
    profiles = []
    for place, length, cells in ((points[..., 1:], image[0], size[0]), (points[..., :1], image[1], size[1])):
        away = torch.arange(length, device=points.device) - place  # (B, K, length)
        profile = (away.square() * (-0.5 / BLOB_SIGMA**2)).exp() * (away.abs() <= 3 * BLOB_SIGMA)
        profiles.append(F.interpolate(profile, size=cells, mode="linear", align_corners=False))  # (B, K, cells)
    down, across = profiles
    return down[..., :, None] * across[..., None, :]


#: Profile across a line of `edge_heatmaps`: its height, and its standard deviation in pixels of the image.
LINE_HEIGHT, LINE_SIGMA = 0.65, 0.75


def edge_heatmaps(
    points: Tensor, edges: Sequence[Sequence[int]], image: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """One map per edge: lines one pixel of the image wide, as they are after shrinking to the map (STAR's edge maps).

    A cell at distance d of the line has LINE_HEIGHT exp(-d^2 / (2 LINE_SIGMA^2)), d in pixels of the image, 0 from
    3 LINE_SIGMA on, which is fitted to lines drawn and shrunk as in STAR's release (sum within 1 %, largest cell 7 %).

    Differences: the pieces are straight, where the release bends them by splines; lines run through the landmarks.

    Args:
        points: (B, K, 2) x, y in pixels of the image; what lies outside is drawn at its edge.
        edges: per edge the landmarks that straight pieces join in this order; a closed edge names its first one again.
        image, size: height and width of the image and of the maps.

    Returns:
        (B, E, h, w) in float32 or wider, without gradient.
    """
    points = _inside(at_least_float32(points.detach()), image)
    across, down = image[1] / size[1], image[0] / size[0]
    x = (torch.arange(size[1], device=points.device, dtype=points.dtype) + 0.5) * across - 0.5
    y = ((torch.arange(size[0], device=points.device, dtype=points.dtype) + 0.5) * down - 0.5)[:, None]
    maps = []
    for edge in edges:
        ends = points[:, constant(tuple(edge), points, torch.long)]  # (B, n, 2)
        start, step = ends[:, :-1], ends[:, 1:] - ends[:, :-1]  # (B, n - 1, 2)
        (sx, sy), (ux, uy) = (p[..., None, None].unbind(2) for p in (start, step))  # each (B, n - 1, 1, 1)
        dx, dy = x - sx, y - sy  # (B, n - 1, 1, w), (B, n - 1, h, 1)
        # fraction of the piece at the nearest point
        along = ((dx * ux + dy * uy) / (ux * ux + uy * uy).clamp_min(1e-6)).clamp(0, 1)
        distance = ((dx - along * ux).square() + (dy - along * uy).square()).amin(1)  # (B, h, w), squared
        profile = LINE_HEIGHT * (distance * (-0.5 / LINE_SIGMA**2)).exp()
        maps.append(profile * (distance < 9 * LINE_SIGMA**2))
    return torch.stack(maps, dim=1)


def _seen(points: Tensor, visible: Tensor | None) -> Tensor:
    """(B, K, 2) with landmarks that are not visible infinitely far away: 0 everywhere in their maps."""
    return points if visible is None else points.where(visible.bool()[..., None], torch.inf)


def _inside(points: Tensor, image: tuple[int, int]) -> Tensor:
    """(..., 2) at the nearest place between the centers of the image's first and last pixels."""
    return points.clamp_min(0).minimum(constant((image[1] - 1, image[0] - 1), points))


def soft_argmax(activations: Tensor) -> Tensor:
    """Mean position weighted by activations (B, K, h, w), not negative (FaRL's decoding of sigmoid maps, STAR's of its
    own): (B, K, 2) x, y in cells, in float32 or wider also under autocast. An empty map gives its center."""
    kind = torch.promote_types(activations.dtype, torch.float32)
    columns, rows = (activations.sum(dim, dtype=kind) for dim in (-2, -1))  # (B, K, w), (B, K, h)
    total = columns.sum(-1).clamp_min(1e-6)  # (B, K)
    out = []
    for mass in (columns, rows):
        center = (mass.shape[-1] - 1) / 2  # about which the sum loses the fewest digits
        cells = torch.arange(mass.shape[-1], device=mass.device, dtype=mass.dtype) - center
        out.append((mass * cells).sum(-1) / total + center)
    return torch.stack(out, dim=-1)
