"""Precision of what must not run in 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 where it has 16 bits, unchanged otherwise (float64 stays float64, so that tests can use it)."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
