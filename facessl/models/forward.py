"""Running a network outside its training: evaluation mode without gradients, mixed precision by name."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facessl.core.errors import ConfigError
from facessl.core.precision import PRECISIONS
from facessl.data.loader import EvalLoader, Transform
from facessl.data.source import Source
from facessl.views.normalize import normalize


@dataclass(frozen=True)
class PassOptions:
    """Options of a pass over a source, as in `facessl.embed`."""

    batch_size: int = 64
    workers: int = 0
    precision: str = "fp32"
    max_bad: float = 1

    def loader(
        self, source: Source, view: Transform, network: nn.Module, batches: Iterable[Sequence[int]] | None = None
    ) -> EvalLoader:
        """Return the batches of `source` for `network`; `batches` as in `EvalLoader`."""
        pinned = next(network.parameters()).device.type == "cuda"
        options: dict[str, Any] = {"batch_size": self.batch_size, "workers": self.workers, "pin_memory": pinned}
        return EvalLoader(source, view, max_bad=self.max_bad, batches=batches, **options)


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


def forward(
    network: Any, views: Tensor, precision: str = "fp32", function: Callable[[Tensor], Any] | None = None
) -> Any:
    """Apply a function to normalized views, with `network` in evaluation mode.

    Args:
        network: a backbone, or a module with a `backbone`.
        views: (B, 3, S, S) uint8.
        precision: fp32, bf16 or fp16.
        function: of the normalized views; None: `network`.
    """
    backbone = getattr(network, "backbone", network)
    device = next(backbone.parameters()).device
    x = normalize(views.to(device, non_blocking=True), backbone.mean, backbone.std)
    with evaluating(network), autocast(device, precision):
        return (function or network)(x)
