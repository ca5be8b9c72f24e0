"""Are the regions alive? Numbers of heatmaps (B, N, h, w) whose values sum to 1 over N."""

from __future__ import annotations

import torch
from torch import Tensor


def usage_entropy(heatmaps: Tensor) -> Tensor:
    """Number of regions in use: exp of the entropy of the mean heatmap.

    Args:
        heatmaps: (B, N, h, w), sum 1 over N.

    Returns:
        Scalar between 1 (one region takes everything) and N (all take the same share). Uniform heatmaps
        also give N: read it together with `sharpness`.
    """
    share = heatmaps.float().mean(dim=(0, 2, 3))  # (N,)
    return torch.special.entr(share).sum().exp()


def sharpness(heatmaps: Tensor) -> Tensor:
    """How decided a pixel is: mean over pixels of the largest of its N values.

    Args:
        heatmaps: (B, N, h, w), sum 1 over N.

    Returns:
        Scalar between 1/N (uniform) and 1 (each pixel belongs to one region).
    """
    return heatmaps.float().amax(dim=1).mean()


def winning_regions(heatmaps: Tensor, *, share: float = 0.01) -> Tensor:
    """How many regions are the largest on at least `share` of all pixels.

    Args:
        heatmaps: (B, N, h, w), sum 1 over N.
        share: smallest share of pixels that counts, 0 to 1.

    Returns:
        Integer scalar between 0 and N.
    """
    winners = heatmaps.argmax(dim=1).flatten()  # (B h w,)
    counts = torch.bincount(winners, minlength=heatmaps.shape[1])
    return (counts >= share * winners.numel()).sum()
