"""The photometric part on a CPU: the operations of `facessl.views.photometric`, image by image, with OpenCV.

Brightness, contrast, saturation, grayscale and normalization are affine maps of a pixel's color. They are multiplied as
matrices and applied in one pass, as long as no value has to be clipped at 0 or 255 between them; a blur commutes with
an affine map.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor

from facessl.views.spec import LUMA, ORDERS, Column

_LUMA = np.array(LUMA)
_SAME = np.eye(3, 4)


def apply(view: Tensor, params: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Augment and normalize one view (B, 3, S, S) uint8 by `params` (B, P) float32 (`Column`) and the normalization
    `mean`, `std`, RGB in 0..1 -> (B, 3, S, S) float32, channels-last in memory."""
    out = torch.empty(view.shape, memory_format=torch.channels_last)
    images, results = view.permute(0, 2, 3, 1).numpy(), out.permute(0, 2, 3, 1).numpy()  # (B, S, S, 3)
    scale = 1 / (255 * np.array(std))
    normal = np.column_stack([np.diag(scale), -255 * np.array(mean) * scale])
    kernels = _kernels(params[:, Column.BLUR], view.shape[-1])

    def work(rows: range) -> None:
        spare = np.empty(images.shape[1:], np.float32)
        for row in rows:
            image = _Image(images[row], results[row], spare)
            _augment(image, params[row].tolist(), kernels.get(row))
            image.map(normal)
            image.apply_color(results[row])

    threads = min(torch.get_num_threads(), len(view))
    if threads <= 1:
        work(range(len(view)))
    else:  # OpenCV and numpy release the GIL
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [range(start, len(view), threads) for start in range(threads)]))
    return out


def half_kernels(sigma: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian kernels for `sigma` (n,) pixels, cut at 3 sigma (less than 1/255 of the weight) or at the view's `size`.

    Returns:
        (n, R + 1) float64 weights of the middle and the taps on one side, 0 beyond each sample's reach; and (n,) int
        reaches, of which R is the largest.
    """
    reach = np.minimum(np.ceil(3 * sigma).astype(int), size - 1)  # (n,)
    offsets = np.arange(reach.max() + 1)
    kernel = np.exp(-0.5 * (offsets / sigma[:, None].astype(float)) ** 2) * (offsets <= reach[:, None])
    kernel /= kernel[:, :1] + 2 * kernel[:, 1:].sum(1, keepdims=True)
    return kernel, reach


def _kernels(sigma: np.ndarray, size: int) -> dict[int, np.ndarray]:
    """Row -> whole kernel (2 R + 1,) float32, for each of `sigma` (n,) that is not 0."""
    rows = np.flatnonzero(sigma).tolist()
    if not rows:
        return {}
    half, reach = half_kernels(sigma[rows], size)
    whole = np.concatenate([half[:, :0:-1], half], axis=1).astype(np.float32)
    middle = half.shape[1] - 1
    return {row: whole[k, middle - r : middle + r + 1] for k, (row, r) in enumerate(zip(rows, reach, strict=True))}


class _Image:
    """`pixels` and an affine map of their colors that is not applied yet.

    Attributes:
        pixels: (S, S, 3) float32.
        spare: memory of the same shape.
        color: (3, 4) affine map, color @ (red, green, blue, 1).
    """

    def __init__(self, image: np.ndarray, memory: np.ndarray, spare: np.ndarray) -> None:
        np.copyto(memory, image)
        self.pixels, self.spare, self.color = memory, spare, _SAME

    def map(self, matrix: np.ndarray) -> None:
        """A further affine map (3, 4) of the colors."""
        self.color = matrix[:, :3] @ self.color
        self.color[:, 3] += matrix[:, 3]

    def apply_color(self, out: np.ndarray | None = None) -> None:
        """Apply the affine map to the pixels, in place or into `out` (S, S, 3) float32."""
        if out is None and self.color is _SAME:
            return
        out = self.pixels if out is None else out
        cv2.transform(self.pixels, self.color.astype(np.float32), dst=out)
        self.pixels, self.color = out, _SAME

    def brightness(self, factor: float) -> None:
        """Blend with black."""
        self.color = factor * self.color
        if factor > 1:
            self.apply_color()
            cv2.threshold(self.pixels, 255, 0, cv2.THRESH_TRUNC, dst=self.pixels)

    def contrast(self, factor: float) -> None:
        """Blend with the mean luma."""
        red, green, blue, _ = cv2.mean(self.pixels)
        mean = float(_LUMA @ self.color @ (red, green, blue, 1))
        self.color = factor * self.color
        self.color[:, 3] += (1 - factor) * mean
        self._clamp_beyond(factor)

    def saturation(self, factor: float) -> None:
        """Blend with the luma."""
        self.color = factor * self.color + (1 - factor) * (_LUMA @ self.color)
        self._clamp_beyond(factor)

    def _clamp_beyond(self, factor: float) -> None:
        """Clip at 0 and 255, which only a factor above 1 can leave."""
        if factor > 1:
            self.apply_color()
            np.clip(self.pixels, 0, 255, out=self.pixels)

    def hue(self, turns: float) -> None:
        """Turn the hue by a fraction of the HSV circle."""
        if not turns:
            return
        self.apply_color()
        cv2.cvtColor(self.pixels, cv2.COLOR_RGB2HSV, dst=self.spare)  # hue in degrees
        # OpenCV accepts angles above 360, but no negative ones.
        cv2.add(self.spare, (360 * (turns % 1), 0, 0, 0), dst=self.spare)  # type: ignore[call-overload]
        cv2.cvtColor(self.spare, cv2.COLOR_HSV2RGB, dst=self.pixels)

    def grayscale(self) -> None:
        """Every channel becomes the luma."""
        self.color = np.tile(_LUMA @ self.color, (3, 1))

    def blur(self, kernel: np.ndarray) -> None:
        """Convolve rows and columns, reflected at the border; the affine map commutes with it."""
        cv2.sepFilter2D(self.pixels, -1, kernel, kernel, dst=self.spare, borderType=cv2.BORDER_REFLECT_101)
        self.pixels, self.spare = self.spare, self.pixels

    def solarize(self, threshold: float) -> None:
        """Invert values at or above the threshold."""
        self.apply_color()
        np.subtract(255, self.pixels, out=self.spare)
        np.copyto(self.pixels, self.spare, where=self.pixels >= threshold)


#: In the order of `facessl.views.spec.ORDERS`.
_OPERATIONS = (_Image.brightness, _Image.contrast, _Image.saturation, _Image.hue)


def _augment(image: _Image, row: list[float], kernel: np.ndarray | None) -> None:
    """Everything but the normalization, by the parameters of the image (`Column`) and its blur, if any."""
    if row[Column.JITTER]:
        for operation in ORDERS[int(row[Column.ORDER])].tolist():
            _OPERATIONS[operation](image, row[Column.BRIGHTNESS + operation])
    if row[Column.GRAYSCALE]:
        image.grayscale()
    if kernel is not None:
        image.blur(kernel)
    if row[Column.SOLARIZE] < 256:
        image.solarize(row[Column.SOLARIZE])
