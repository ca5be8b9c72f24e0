"""Color jitter, grayscale, blur, solarization and normalization of a batch, each sample by its own parameters."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from facessl.core.types import Batch
from facessl.views import photometric_cpu
from facessl.views.normalize import normalize
from facessl.views.spec import CONTRAST, HUE, LUMA, ORDERS, SATURATION, Column

#: Values of a chunk: its temporaries stay within 1 GiB.
_CHUNK = 2**25


class Photometric:
    """The photometric part of the views, batched, on the device that holds them.

    Args:
        mean, std: normalization, RGB in 0..1.

    torchvision's `ColorJitter`, `RandomGrayscale`, `GaussianBlur` and `RandomSolarize`, in this order, but in float32
    throughout. A sample's result does not depend on the rest of its batch.

    Which samples need what is decided on the host: `params` on a GPU cost one synchronization per view.
    """

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        self.mean, self.std = mean, std

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its views as float32, augmented and normalized; without `params` only normalized."""
        if not batch.params:
            return replace(batch, views=[normalize(view, self.mean, self.std) for view in batch.views])
        return replace(batch, views=[self.apply(v, p) for v, p in zip(batch.views, batch.params, strict=True)])

    @torch.no_grad()
    def apply(self, view: Tensor, params: Tensor) -> Tensor:
        """Augment and normalize one view (B, 3, S, S) uint8 by `params` (B, P) float32 (`Column`) -> (B, 3, S, S)
        float32, channels-last in memory, on the view's device."""
        if view.device.type == "cpu":
            return photometric_cpu.apply(view, params.numpy(), self.mean, self.std)
        return self.apply_batched(view, params)

    @torch.no_grad()
    def apply_batched(self, view: Tensor, params: Tensor) -> Tensor:
        """`apply` as a GPU does it: with torch, every operation on all samples that need it."""
        out = torch.empty(view.shape, device=view.device, memory_format=torch.channels_last)
        host = params.cpu().numpy()
        chunk = max(1, _CHUNK // math.prod(view.shape[1:]))
        for start in range(0, len(view), chunk):
            part = slice(start, start + chunk)
            self._augment(view[part], host[part], out[part])
        return out

    def _augment(self, view: Tensor, params: np.ndarray, out: Tensor) -> None:
        """Fill `out` (n, 3, S, S) with the finished samples of `view` (n, 3, S, S) uint8."""
        hue_slot = np.argmax(ORDERS[params[:, Column.ORDER].astype(int)] == HUE, axis=1)
        hue_slot[params[:, Column.JITTER] == 0] = 4
        # Sorted by the slot of the hue, every step of the jitter works on one contiguous run of samples.
        order = np.argsort(hue_slot, kind="stable")
        rows = _to_device(order, view.device)
        params = params[order]
        x = view.index_select(0, rows).to(torch.float32, memory_format=torch.contiguous_format)
        starts = np.searchsorted(hue_slot[order], np.arange(5)).tolist()
        _jitter(x[: starts[4]], params[: starts[4]], starts)
        gray = np.flatnonzero(params[:, Column.GRAYSCALE])
        _on_rows(x, gray, lambda part: _luma(part).expand_as(part))
        blurred = np.argsort(-params[:, Column.BLUR], kind="stable")[: np.count_nonzero(params[:, Column.BLUR])]
        _on_rows(x, blurred, lambda part: _blur(part, params[blurred, Column.BLUR]))
        solarized = np.flatnonzero(params[:, Column.SOLARIZE] < 256)
        threshold = _column(params[solarized, Column.SOLARIZE], x)
        _on_rows(x, solarized, lambda part: torch.where(part >= threshold, 255 - part, part))
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            x[:, channel].sub_(255 * mean).div_(255 * std)
        out.copy_(x.index_select(0, _to_device(np.argsort(order), view.device)))


def _to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A small host array on `device`, without waiting for the device."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    """(n,) host values -> (n, 1, 1, 1) float32 on the device of `like`."""
    return _to_device(values.astype(np.float32), like.device).view(-1, 1, 1, 1)


def _on_rows(x: Tensor, rows: np.ndarray, operation: Callable[[Tensor], Tensor]) -> None:
    """x[rows] = operation(x[rows]), for `rows` that may be none."""
    if len(rows):
        index = _to_device(rows, x.device)
        x.index_copy_(0, index, operation(x.index_select(0, index)))


def _luma(x: Tensor) -> Tensor:
    """(n, 3, S, S) -> (n, 1, S, S) luma."""
    r, g, b = x.split(1, dim=1)
    return (r * LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def _jitter(x: Tensor, params: np.ndarray, starts: list[int]) -> None:
    """Color jitter of x (n, 3, S, S), 0..255, in place.

    The samples are sorted by the slot of their hue; `starts[k]` is the first with its hue in slot k or later.
    """
    if not len(x):
        return
    operations = ORDERS[params[:, Column.ORDER].astype(int)]  # (n, 4)
    factors = params[:, Column.BRIGHTNESS : Column.HUE]
    for slot in range(3):
        part = slice(starts[slot + 1], None)
        _blend(x[part], operations[part, slot], factors[part])
    _shift_hue(x, params[:, Column.HUE])
    for slot in range(1, 4):
        part = slice(0, starts[slot])
        _blend(x[part], operations[part, slot], factors[part])


def _blend(x: Tensor, operation: np.ndarray, factors: np.ndarray) -> None:
    """Brightness, contrast or saturation per sample, in place: blends with black, the mean luma or the luma.

    x is (n, 3, S, S), 0..255; `operation` (n,), 0 to 2; `factors` (n, 3), one column per operation.
    """
    if not len(x):
        return
    factor = factors[np.arange(len(x)), operation]
    gray = _luma(x)
    mean = gray.sum(-1, keepdim=True).sum(-2, keepdim=True).div_(gray[0].numel())
    mean = mean * _column((1 - factor) * (operation == CONTRAST), x)
    pivot = gray.mul_(_column((1 - factor) * (operation == SATURATION), x)).add_(mean)
    x.mul_(_column(factor, x)).add_(pivot).clamp_(0, 255)


def _shift_hue(x: Tensor, turns: np.ndarray) -> None:
    """Turn the hue of x (n, 3, S, S), 0..255, in place by `turns` (n,) of the HSV circle."""
    r, g, b = x.split(1, dim=1)
    top = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = top - low
    scale = chroma.clamp_min(1e-6).reciprocal_()
    # Hue in sixths of a turn, from the sector of the largest channel; where two tie, both sectors agree.
    hue = torch.where(g >= top, (b - r).mul_(scale).add_(2), (r - g).mul_(scale).add_(4))
    hue = torch.where(r >= top, (g - b).mul_(scale), hue)
    hue.add_(_column(6 * turns, x))
    hue.sub_((hue / 6).floor_(), alpha=6)
    # Each channel is a trapezium over the hue, between low and top.
    torch.addcmul(low, (hue - 3).abs_().sub_(1).clamp_(0, 1), chroma, out=r)
    torch.addcmul(low, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), chroma, out=g)
    torch.addcmul(low, (hue - 4).abs_().neg_().add_(2).clamp_(0, 1), chroma, out=b)


def _blur(x: Tensor, sigma: np.ndarray) -> Tensor:
    """Gaussian blur of x (n, 3, S, S) by `sigma` (n,) pixels, cut at 3 sigma and reflected at the border.

    The samples are expected in order of falling sigma, so that each tap runs on those that reach it only.
    """
    size = x.shape[-1]
    kernel, reach = photometric_cpu.half_kernels(sigma, size)
    radius = int(reach[0])
    offsets = range(radius + 1)
    taps = [_column(kernel[:, tap], x) for tap in offsets]
    for dim in (-1, -2):
        border = (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius)
        padded = torch.nn.functional.pad(x, border, mode="reflect")
        x = padded.narrow(dim, radius, size) * taps[0]
        for tap in range(1, radius + 1):
            far = int((reach >= tap).sum())
            pair = padded[:far].narrow(dim, radius - tap, size) + padded[:far].narrow(dim, radius + tap, size)
            x[:far].addcmul_(pair, taps[tap][:far])
    return x
