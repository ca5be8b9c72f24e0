"""Has the representation collapsed? Two numbers that need no labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding_std(z: Tensor) -> Tensor:
    """Spread of the directions of embeddings: mean over channels of std(z / |z|), times sqrt(C).

    Args:
        z: (N, C) embeddings of N different images, N >= 2.

    Returns:
        Scalar: 0 when all embeddings point the same way (collapse), about 1 when they fill the sphere
        evenly. Features after a ReLU share a direction, so ResNets read less: 0.2 with random weights.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1.
    """
    unit = F.normalize(z.float(), dim=1)
    return unit.std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5


def effective_rank(z: Tensor) -> Tensor:
    """Number of directions the embeddings really use: exp of the entropy of their singular values.

    Args:
        z: (N, C) embeddings; not centred, as in the paper.

    Returns:
        Scalar between 1 and min(N, C).

    Source: Garrido et al., "RankMe", ICML 2023, Eq. 1.
    """
    singular = torch.linalg.svdvals(z.float())
    return torch.special.entr(singular / singular.sum()).sum().exp()
