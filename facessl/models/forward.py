"""Running a network outside its training: evaluation mode without gradients, mixed precision by name."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from facessl.core.errors import ConfigError
from facessl.core.precision import PRECISIONS


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode without gradients; every sub-module's own mode comes back afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, training in modes:
            m.training = training


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision by its name on the command line: fp32 (none), bf16 or fp16; ConfigError for another name."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not known: use {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision][1]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
