"""Cells of a view in the stored image, and maps of one view read at the cells of another.

Positions are fractions of the stored image (x of its width, y of its height). Bilinear reading is a product with one
matrix per axis, because the gradient of `grid_sample` (whose values it has) is not deterministic on a GPU.
"""

import torch
from torch import Tensor

from facessl.core.precision import at_least_float32, full_precision


def cell_centers(crops: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Centers of a view's cells in the stored image: y (B, rows), x (B, columns) of `Batch.crops` (B, 5)."""
    left, top, width, height, flip = crops[:, :, None].unbind(1)  # (B, 1) each
    down, right = (
        (torch.arange(cells, dtype=crops.dtype, device=crops.device) + 0.5) / cells for cells in (rows, columns)
    )
    return top + height * down, left + width * torch.where(flip > 0, 1 - right, right)


def in_view(y: Tensor, x: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `cell_centers`: y (B, R) and x (B, C) as fractions of a view's height and width, outside 0..1
    where the view does not show them."""
    left, top, width, height, flip = crops[:, :, None].unbind(1)  # (B, 1) each
    right = (x - left) / width
    return (y - top) / height, torch.where(flip > 0, 1 - right, right)


def read(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear values (B, R, C, N), at least float32, of maps (B, h, w, N) at fractions y (B, R) and x (B, C) of their
    height and width; beyond the centers of the outermost cells they stay what they are there."""
    with full_precision(maps):
        maps = at_least_float32(maps)
        down, right = (_weights(at.to(maps.dtype), cells) for at, cells in zip((y, x), maps.shape[1:3], strict=True))
        return torch.einsum("brh,bhwn,bcw->brcn", down, maps, right)


def seen_by(maps: Tensor, crops: Tensor, other_crops: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Read maps (B, h, w, N) of a view, with `crops` (B, 5), at the rows x columns cells of another view of the same
    images, with `other_crops` -> (B, R, C, N) at least float32, and (B, R, C) bool, whether the view shows that cell's
    center."""
    y, x = in_view(*cell_centers(other_crops, rows, columns), crops)
    inside = ((y >= 0) & (y <= 1))[:, :, None] & ((x >= 0) & (x <= 1))[:, None]
    return read(maps, y, x), inside


def _weights(at: Tensor, cells: int) -> Tensor:
    """(B, R) fractions -> (B, R, cells): linear interpolation between the centers of an axis' cells; rows sum to 1."""
    position = (at * cells - 0.5).clamp(0, cells - 1)[..., None]
    return (1 - (position - torch.arange(cells, dtype=at.dtype, device=at.device)).abs()).clamp_min(0)
