"""The photometric part on a CPU: the operations of `facessl.views.photometric`, image by image, with OpenCV.

On planes of a batch, torch needs some fifty passes over the values of a view. Here there are about ten, over pixels as
they lie in memory: brightness, contrast, saturation, grey-scale and normalisation are affine maps of a pixel's colour,
so they are multiplied as matrices and carried out together, as long as no value has to be cut off at 0 or 255 between
them; a blur leaves an affine map what it is.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor

from facessl.views.spec import BRIGHTNESS, CONTRAST, HUE, LUMA, ORDERS, Column

_LUMA = np.array(LUMA)
_GREY = np.tile(_LUMA, (3, 1))  # (3, 3): every channel becomes the luma
_SAME = np.eye(3)
_NOTHING = np.zeros(3)


def apply(view: Tensor, params: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Augment and normalise one view.

    Args:
        view: (B, 3, S, S) uint8 on the CPU.
        params: (B, P) float32, columns as in `Column`.
        mean, std: normalisation, RGB in 0..1.

    Returns:
        (B, 3, S, S) float32, channels-last in memory.
    """
    out = torch.empty(view.shape, memory_format=torch.channels_last)
    images, results = view.permute(0, 2, 3, 1).numpy(), out.permute(0, 2, 3, 1).numpy()  # (B, S, S, 3)
    scale = 1 / (255 * np.array(std))
    normal = np.diag(scale), -255 * np.array(mean) * scale

    def work(rows: range) -> None:
        spare = np.empty(images.shape[1:], np.float32)
        for row in rows:
            _one(images[row], params[row].tolist(), normal, results[row], spare)

    threads = min(torch.get_num_threads(), len(view))
    if threads <= 1:
        work(range(len(view)))
    else:  # OpenCV and numpy let go of the interpreter while they work
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [range(start, len(view), threads) for start in range(threads)]))
    return out


def half_kernels(sigma: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian kernels for `sigma` (n,) pixels, cut at 3 sigma or at the view's `size`.

    What the cut leaves out is less than 1/255 of the kernel's weight.

    Returns:
        (n, R + 1) float64 weights of the middle and the taps on one side, 0 beyond each sample's reach; and (n,) int
        reaches, of which R is the largest.
    """
    reach = np.minimum(np.ceil(3 * sigma).astype(int), size - 1)  # (n,)
    offsets = np.arange(reach.max() + 1)
    kernel = np.exp(-0.5 * (offsets / sigma[:, None].astype(float)) ** 2) * (offsets <= reach[:, None])
    kernel /= kernel[:, :1] + 2 * kernel[:, 1:].sum(1, keepdims=True)
    return kernel, reach


class _Image:
    """An image in the making: `pixels`, and an affine map of their colours that is still to be carried out.

    Attributes:
        pixels: (S, S, 3) float32.
        spare: memory of the same shape.
        matrix, shift: (3, 3) and (3,); the colour meant is matrix @ pixel + shift.
    """

    def __init__(self, image: np.ndarray, memory: np.ndarray, spare: np.ndarray) -> None:
        np.copyto(memory, image)
        self.pixels, self.spare = memory, spare
        self.matrix, self.shift = _SAME, _NOTHING
        self._means: np.ndarray | None = None

    def map(self, matrix: np.ndarray, shift: np.ndarray) -> None:
        """A further affine map of the colours."""
        self.matrix, self.shift = matrix @ self.matrix, matrix @ self.shift + shift

    def settle(self) -> None:
        """Carry out what is to be carried out."""
        if self.matrix is _SAME:
            return
        both = np.concatenate([self.matrix, self.shift[:, None]], axis=1).astype(np.float32)  # (3, 4)
        cv2.transform(self.pixels, both, dst=self.pixels)
        self.matrix, self.shift, self._means = _SAME, _NOTHING, None

    def mean_luma(self) -> float:
        """Mean over the image of the luma of the colours meant."""
        if self._means is None:
            self._means = np.array(cv2.mean(self.pixels)[:3])
        return float(_LUMA @ (self.matrix @ self._means + self.shift))

    def clamp(self) -> None:
        """Cut the colours off at 0 and 255."""
        self.settle()
        np.clip(self.pixels, 0, 255, out=self.pixels)
        self._means = None

    def turn_hue(self, turns: float) -> None:
        """Turn the hue by a part of the HSV circle."""
        self.settle()
        cv2.cvtColor(self.pixels, cv2.COLOR_RGB2HSV, dst=self.spare)  # hue in degrees
        # OpenCV takes angles above 360 as what they are, negative ones not.
        cv2.add(self.spare, (360 * (turns % 1), 0, 0, 0), dst=self.spare)  # type: ignore[call-overload]
        cv2.cvtColor(self.spare, cv2.COLOR_HSV2RGB, dst=self.pixels)
        self._means = None

    def blur(self, sigma: float) -> None:
        """Gaussian blur, reflected at the border."""
        half = half_kernels(np.array([sigma]), len(self.pixels))[0][0]
        kernel = np.concatenate([half[:0:-1], half]).astype(np.float32)
        cv2.sepFilter2D(self.pixels, -1, kernel, kernel, dst=self.spare, borderType=cv2.BORDER_REFLECT_101)
        self.pixels, self.spare, self._means = self.spare, self.pixels, None

    def solarise(self, threshold: float) -> None:
        """Invert values at or above the threshold."""
        self.settle()
        np.subtract(255, self.pixels, out=self.spare)
        np.copyto(self.pixels, self.spare, where=self.pixels >= threshold)
        self._means = None


def _one(
    image: np.ndarray,
    row: list[float],
    normal: tuple[np.ndarray, np.ndarray],
    out: np.ndarray,
    spare: np.ndarray,
) -> None:
    """Fill `out` (S, S, 3) float32 with the finished `image` (S, S, 3) uint8.

    Args:
        row: parameters of the image, as in `Column`.
        normal: (3, 3) and (3,), the normalisation of values in 0..255.
        spare: (S, S, 3) float32 memory.
    """
    made = _Image(image, out, spare)
    if row[Column.JITTER]:
        _jitter(made, row)
    if row[Column.GREY]:
        made.map(_GREY, _NOTHING)
    if row[Column.BLUR] > 0:
        made.blur(row[Column.BLUR])
    if row[Column.SOLARISE] < 256:
        made.solarise(row[Column.SOLARISE])
    made.map(*normal)
    made.settle()
    if made.pixels is not out:
        np.copyto(out, made.pixels)


def _jitter(made: _Image, row: list[float]) -> None:
    """Brightness, contrast and saturation blend with black, the mean luma and the luma; hue turns."""
    for operation in ORDERS[int(row[Column.ORDER])].tolist():
        factor = row[Column.BRIGHTNESS + operation]
        if operation == HUE:
            if factor:
                made.turn_hue(factor)
            continue
        if operation == BRIGHTNESS:
            made.map(factor * _SAME, _NOTHING)
        elif operation == CONTRAST:
            made.map(factor * _SAME, np.full(3, (1 - factor) * made.mean_luma()))
        else:
            made.map(factor * _SAME + (1 - factor) * _GREY, _NOTHING)
        if factor > 1:  # a mean of two colours needs no cut
            made.clamp()
