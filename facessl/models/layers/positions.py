"""Fixed position encodings."""

import functools
import math

import torch
from torch import Tensor

from facessl.core.errors import ConfigError


@functools.lru_cache(maxsize=16)  # a step asks four times for the same table
def sine_positions(height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """DETR's two-dimensional sine encoding of a map of height x width cells (DETR, appendix A.4).

    The first half of the channels, a multiple of 4, encodes the row, the second the column, each as interleaved sine
    and cosine of wavelengths from 2 pi to 10000 * 2 pi.

    Returns:
        (height * width, channels), rows of the map one after the other; shared by all callers, not to be changed.
    """
    half = channels // 2
    # Made on the CPU, because Apple's GPUs have no float64.
    wavelength = 10000 ** (2 * _count(0, half).div(2, rounding_mode="floor") / half)

    def encode(cells: int) -> Tensor:
        coordinate = _count(1, cells + 1) / (cells + 1e-6) * 2 * math.pi
        angle = coordinate[:, None] / wavelength  # (cells, half)
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).to(dtype).to(device)


def _count(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop, dtype=torch.float64, device="cpu")


def sincos_positions(height: int, width: int, channels: int) -> Tensor:
    """Fixed sine-cosine table of a ViT of height x width patches (MoCo v3, section 5; MAE, appendix A.1).

    The first half of the channels encodes the column, the second the row; each half holds all sines, then all
    cosines, of wavelengths from 2 pi to almost 10000 * 2 pi: (height * width, channels) float64, row by row.
    ConfigError: `channels` is not a multiple of 4.
    """
    if channels % 4:
        raise ConfigError(f"a sine-cosine position table needs a multiple of 4 channels, not {channels}")
    frequency = 10000 ** -(_count(0, channels // 4) / (channels // 4))

    def encode(cells: int) -> Tensor:
        angle = _count(0, cells)[:, None] * frequency  # (cells, channels / 4)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    columns = encode(width)[None].expand(height, width, -1)
    rows = encode(height)[:, None].expand(height, width, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)
