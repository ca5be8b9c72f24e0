"""Sinkhorn-Knopp normalization of assignments over all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from facessl.core.distributed import all_reduce_sum
from facessl.core.precision import at_least_float32


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
    tiny = torch.finfo(q.dtype).tiny  # a cluster that nobody scores stays empty instead of becoming NaN
    for _ in range(iterations):
        q = q / all_reduce_sum(q.sum(0)).clamp_min(tiny)  # (N,): every cluster gets the same mass
        q = q / q.sum(1, keepdim=True).clamp_min(tiny)  # (P, 1): every sample is assigned once
    return q / q.sum(1, keepdim=True).clamp_min(tiny)
