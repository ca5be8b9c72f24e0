"""Pure functions that two or more methods use. All run in float32, also under autocast."""

import torch
from torch import Tensor
from torch.nn import functional as F

from facessl.core.distributed import all_gather_rows, all_reduce_sum, rank
from facessl.core.precision import at_least_float32, full_precision


def mean_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean cosine similarity over D of vectors (..., D) and their targets (BYOL, Eq. 2; FRA's f_s in Eq. 6)."""
    with full_precision(prediction):
        return F.cosine_similarity(at_least_float32(prediction), at_least_float32(target), dim=-1).mean()


def info_nce(queries: Tensor, keys: Tensor, temperature: Tensor | float) -> Tensor:
    """Cross-entropy of finding each query's own key among the keys of all ranks (MoCo v3, Algorithm 1; CLIP).

    Args:
        queries, keys: (B, D), any type, row by row of the same images; every rank has as many. Both are normalized.
        temperature: the cosines are divided by it.

    Returns:
        scalar float32, the mean over this rank's queries.
    """
    with full_precision(queries):
        q, k = (F.normalize(at_least_float32(v), dim=1) for v in (queries, keys))
        own = torch.arange(len(q), device=q.device) + rank() * len(q)
        return F.cross_entropy(q @ all_gather_rows(k).T / temperature, own)


@torch.no_grad()
def sinkhorn(scores: Tensor, iterations: int) -> Tensor:
    """Balances the use of clusters (SwAV, section 3.1; FRA, section 3.2).

    Args:
        scores: (P, N) non-negative scores of this rank's P samples for N clusters: exp(logits / epsilon) in SwAV,
            the softmaxed probabilities in the released FRA. Ranks may hold different P.
        iterations: rounds of "clusters first, then samples"; 0 leaves only the last normalization.

    Returns:
        (P, N) float32; every row sums to 1, and over all ranks every column to about the same mass.
    """
    q = at_least_float32(scores)
    tiny = torch.finfo(q.dtype).tiny  # a cluster without scores stays empty instead of becoming NaN
    for _ in range(iterations):
        q = q / all_reduce_sum(q.sum(0)).clamp_min(tiny)  # (N,): every cluster gets the same mass
        q = q / q.sum(1, keepdim=True).clamp_min(tiny)  # (P, 1): every sample is assigned once
    return q / q.sum(1, keepdim=True).clamp_min(tiny)
