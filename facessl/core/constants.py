"""Small tensors of constants, made once for each device: to copy one there makes the host wait for a GPU."""

import functools
from typing import Any

import torch
from torch import Tensor


def constant(values: tuple[Any, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers, or nested tuples of them, as a tensor on the device of `like` and of its type, if no other is given;
    shared by all callers, not to be changed."""
    make = _made if type(like) is Tensor else _made.__wrapped__  # those of an export belong to its graph
    return make(values, like.device, dtype or like.dtype)


@functools.cache
def _made(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # made inside it, a tensor may take no part in a gradient later
        return torch.tensor(values, device=device, dtype=dtype)
