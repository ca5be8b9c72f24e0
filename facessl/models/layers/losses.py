"""Pure functions that two or more methods use. All run in float32, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from facessl.core.distributed import all_gather_rows, rank
from facessl.core.precision import at_least_float32, full_precision


def mean_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean cosine similarity over D of vectors (..., D) and their targets (BYOL, Eq. 2; FRA's f_s in Eq. 6)."""
    with full_precision(prediction):
        return F.cosine_similarity(at_least_float32(prediction), at_least_float32(target), dim=-1).mean()


def info_nce(queries: Tensor, keys: Tensor, temperature: Tensor | float) -> Tensor:
    """Cross-entropy of finding each query's own key among the keys of all ranks (MoCo v3, Algorithm 1; CLIP).

    Args:
        queries, keys: (B, D), any type, row by row of the same images; every rank has as many. Both are normalised.
        temperature: the cosines are divided by it.

    Returns:
        scalar float32, the mean over this rank's queries.
    """
    with full_precision(queries):
        q, k = (F.normalize(at_least_float32(v), dim=1) for v in (queries, keys))
        own = torch.arange(len(q), device=q.device) + rank() * len(q)
        return F.cross_entropy(q @ all_gather_rows(k).T / temperature, own)
