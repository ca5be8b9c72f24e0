"""Fixed position encodings."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """DETR's two-dimensional sine encoding of a map (DETR, appendix A.4), one row per cell.

    Args:
        height, width: cells of the map.
        channels: multiple of 4; the first half encodes the row, the second the column, each as interleaved
            sine and cosine of wavelengths from 2 pi to 10000 * 2 pi.
        device: where the table is made.

    Returns:
        (height * width, channels) float32, rows of the map one after the other.
    """
    half = channels // 2
    wavelength = 10000 ** (2 * (torch.arange(half, device=device) // 2) / half)

    def encode(cells: int) -> Tensor:
        coordinate = torch.arange(1, cells + 1, device=device) / (cells + 1e-6) * 2 * math.pi
        angle = coordinate[:, None] / wavelength  # (cells, half)
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
