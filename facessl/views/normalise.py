"""From pixel values to the range networks are trained in."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) uint8 0..255 -> float32, (x / 255 - mean) / std per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=x.device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=x.device).view(1, 3, 1, 1)
    return torch.addcmul(shift, x.float(), scale)
