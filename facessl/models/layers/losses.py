"""Pure functions that two or more methods use. All run in float32, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from facessl.core.precision import at_least_float32


def mean_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean cosine similarity of vectors and their targets (BYOL, Eq. 2; FRA's f_s in Eq. 6).

    Args:
        prediction, target: (..., D), any type; both are normalised over D.

    Returns:
        scalar float32 in [-1, 1].
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return F.cosine_similarity(at_least_float32(prediction), at_least_float32(target), dim=-1).mean()
