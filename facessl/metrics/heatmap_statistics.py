"""Statistics of learned regions: scalars of heatmaps (B, N, h, w) whose values sum to 1 over N."""

import torch
from torch import Tensor


def usage_entropy(heatmaps: Tensor) -> Tensor:
    """Number of regions in use: exp of the entropy of the mean heatmap.

    From 1 (one region takes everything) to N (all take the same part). Uniform heatmaps also give N: read it together
    with `sharpness`.
    """
    return torch.special.entr(heatmaps.float().mean(dim=(0, 2, 3))).sum().exp()


def sharpness(heatmaps: Tensor) -> Tensor:
    """Mean of each pixel's largest value, from 1/N (uniform) to 1 (one region each)."""
    return heatmaps.float().amax(dim=1).mean()


def winning_regions(heatmaps: Tensor, *, fraction: float = 0.01) -> Tensor:
    """Number of regions (0 to N, an integer scalar) that are the largest on at least a `fraction` of all pixels."""
    winners = heatmaps.argmax(dim=1).flatten()  # (B h w,)
    counts = torch.bincount(winners, minlength=heatmaps.shape[1])
    return (counts >= fraction * winners.numel()).sum()


def image_information(heatmaps: Tensor) -> Tensor:
    """Mutual information of region and image over the region's entropy.

    Heatmaps are read as p(region | image, cell), all images and cells alike. From 0 (every image uses the regions
    alike) to 1 (every image is one region: image clusters, not parts of a face); 0 if one region takes everything.
    """
    return _information(heatmaps.float().mean(dim=(2, 3)))


def position_information(heatmaps: Tensor) -> Tensor:
    """Mutual information of region and cell over the region's entropy.

    Heatmaps are read as in `image_information`. From 0 (every cell uses the regions alike) to 1 (every cell has one
    region in all images: a fixed partition of the picture); 0 if one region takes everything.
    """
    return _information(heatmaps.float().mean(dim=0).flatten(1).T)


def _information(conditional: Tensor) -> Tensor:
    """(K, N) p(region | k) for K equally likely k -> I(region; k) / H(region), 0 where H is 0 but for rounding."""
    total = torch.special.entr(conditional.mean(0)).sum()
    known = torch.special.entr(conditional).sum(1).mean()
    return torch.where(total > 1e-5, (1 - known / total).clamp_min(0), 0.0)
