"""Number formats of the forward pass, and full precision for operations that must not run in 16 bits."""

import contextlib

import torch
from torch import Tensor

#: Name on the command line -> Lightning Fabric's name, and the format of autocast (None: off).
PRECISIONS = {"fp32": ("32-true", None), "bf16": ("bf16-mixed", torch.bfloat16), "fp16": ("16-mixed", torch.float16)}


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if it has 16 bits, else unchanged (float64 too, for tests)."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Disable autocast on the device of `x`; the meta device has no autocast."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else contextlib.nullcontext()
