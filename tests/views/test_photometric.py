"""Every photometric operation against torchvision's on the same parameters, and independence of the batch."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from facessl.core.types import Batch
from facessl.views.geometric import Geometric
from facessl.views.normalize import VGGFACE2_MEAN, VGGFACE2_STD, normalize
from facessl.views.photometric import ORDERS, Photometric
from facessl.views.spec import FRA_VIEWS, Column
from tests.helpers import views_of

PLAIN = Photometric((0, 0, 0), (1, 1, 1))  # results in 0..1
#: Augments one view: with OpenCV, as on a CPU, or with torch, as on a GPU.
Apply = Callable[[Photometric, Tensor, Tensor], Tensor]
BOTH = pytest.mark.parametrize("apply", [Photometric.apply, Photometric.apply_batched], ids=["cpu", "gpu"])
JITTER = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
IDENTITY = {Column.BRIGHTNESS: 1, Column.CONTRAST: 1, Column.SATURATION: 1, Column.SOLARIZE: 256}


def images(n: int, size: int) -> Tensor:
    """(n, 3, size, size) uint8: smooth noise of full contrast, with black, white, gray and pure colors in a corner."""
    rng = np.random.default_rng(0)
    out = np.empty((n, size, size, 3), np.uint8)
    for k in range(n):
        smooth = cv2.GaussianBlur(rng.random((size, size, 3), dtype=np.float32), (0, 0), 1.5)
        smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        out[k] = 255 * smooth
    corners = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)] + [[127] * 3, [128] * 3]
    out[:, 0, : min(size, len(corners))] = corners[:size]
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def params(n: int = 1, **columns: float) -> Tensor:
    out = torch.zeros(n, len(Column))
    for column, neutral in IDENTITY.items():
        out[:, column] = neutral
    for name, value in columns.items():
        out[:, Column[name.upper()]] = value
    return out


def drawn(n: int) -> Tensor:
    """(n, P) parameters of both FRA views in turn; every order of the jitter occurs."""
    geometric, pixel = Geometric(FRA_VIEWS, 1), np.zeros((1, 1, 3), np.uint8)
    rows = [views_of(geometric, pixel, np.random.default_rng(seed))[1][seed % 2] for seed in range(n)]
    rows = [row if row[Column.JITTER] == 0 else _with_order(row, k % 24) for k, row in enumerate(rows)]
    return torch.from_numpy(np.stack(rows))


def _with_order(row: np.ndarray, order: int) -> np.ndarray:
    row[Column.ORDER] = order
    return row


def reference(x: Tensor, p: Tensor) -> Tensor:
    """One sample through torchvision's functions, in the type of x (uint8, or float in 0..1)."""
    size = x.shape[-1]
    if p[Column.JITTER]:
        for operation in ORDERS[int(p[Column.ORDER])]:
            x = JITTER[operation](x, float(p[Column.BRIGHTNESS + operation]))
    if p[Column.GRAYSCALE]:
        x = tv.rgb_to_grayscale(x, 3)
    if p[Column.BLUR] > 0:
        side = min(23, 2 * size - 1)
        x = tv.gaussian_blur(x, [side, side], [float(p[Column.BLUR])] * 2)
    if p[Column.SOLARIZE] < 256:
        x = tv.solarize(x, float(p[Column.SOLARIZE]) / (255 if x.is_floating_point() else 1))
    return x


OPERATIONS = [
    params(),
    *(params(jitter=1, brightness=f) for f in (0.6, 1.4)),
    *(params(jitter=1, contrast=f) for f in (0.0, 0.6, 1.4)),
    *(params(jitter=1, saturation=f) for f in (0.0, 0.8, 1.8)),
    *(params(jitter=1, hue=shift) for shift in (-0.5, -0.1, 0.03, 0.1)),
    *(params(jitter=1, brightness=1.3, contrast=1.4, saturation=0.7, hue=0.08, order=k) for k in (0, 9, 23)),
    params(grayscale=1),
    *(params(blur=sigma) for sigma in (0.1, 0.34, 1.0, 2.0)),
    *(params(solarize=threshold) for threshold in (0, 128)),
]


@BOTH
@pytest.mark.parametrize("p", OPERATIONS, ids=str)
def test_each_operation_equals_torchvision(apply: Apply, p: Tensor) -> None:
    view = images(4, 40)
    ours = apply(PLAIN, view, p.expand(4, -1))
    exact = torch.stack([reference(x, p[0]) for x in view.float() / 255])
    assert (ours - exact).abs().mean() < 0.1 / 255
    rounded = torch.stack([reference(x, p[0]) for x in view]).float() / 255
    assert (ours - rounded).abs().mean() < 2 / 255


@BOTH
def test_a_mixed_batch_equals_torchvision_sample_by_sample(apply: Apply) -> None:
    n = 96
    view, p = images(n, 33), drawn(n)
    p[:, Column.JITTER] = torch.arange(n) % 5 > 0
    ours = apply(Photometric(VGGFACE2_MEAN, VGGFACE2_STD), view, p)
    for x, row, out in zip(view.float() / 255, p, ours, strict=True):
        expected = tv.normalize(reference(x, row), list(VGGFACE2_MEAN), list(VGGFACE2_STD))
        assert (out - expected).abs().mean() < 1.0 / 255
    assert ours.is_contiguous(memory_format=torch.channels_last)


@BOTH
@pytest.mark.parametrize(("size", "threads"), [(33, 2), (64, 1)])
def test_a_sample_does_not_depend_on_its_batch(apply: Apply, size: int, threads: int) -> None:
    n, before = 65, torch.get_num_threads()
    view, p = images(n, size), drawn(n)
    try:
        torch.set_num_threads(threads)
        whole = apply(PLAIN, view, p)
        for batch in (1, 7, 32):
            parts = [apply(PLAIN, view[i : i + batch], p[i : i + batch]) for i in range(0, n, batch)]
            assert torch.equal(torch.cat(parts), whole)
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        assert torch.equal(apply(PLAIN, view[shuffled], p[shuffled]), whole[shuffled])
    finally:
        torch.set_num_threads(before)


@BOTH
def test_views_smaller_than_the_kernel_are_blurred(apply: Apply) -> None:
    view = images(3, 4)
    ours = apply(PLAIN, view, params(3, blur=2.0))
    exact = torch.stack([reference(x, params(blur=2.0)[0]) for x in view.float() / 255])
    assert (ours - exact).abs().max() < 5 / 255
    assert apply(PLAIN, view[:, :, :1, :1], params(3, blur=2.0)).isfinite().all()


def test_nothing_waits_for_the_device() -> None:
    # A tensor on the meta device has no values: whatever reads one on the host fails.
    n = 48
    out = PLAIN.apply(images(n, 16).to("meta"), drawn(n))
    assert out.shape == (n, 3, 16, 16)
    assert out.dtype == torch.float32


def test_a_batch_keeps_everything_but_its_views() -> None:
    n = 4
    batch = Batch(
        views=[images(n, 16), images(n, 8)], params=[drawn(n), drawn(n)], index=torch.arange(n), keys=list("abcd")
    )
    photometric = Photometric(VGGFACE2_MEAN, VGGFACE2_STD)
    out = photometric(batch)
    for made, view, p in zip(out.views, batch.views, batch.params, strict=True):
        assert torch.equal(made, photometric.apply(view, p))
    assert out.keys == batch.keys
    assert batch.views[0].dtype == torch.uint8

    plain = photometric(Batch(views=batch.views[:1], params=[], index=batch.index))
    assert torch.equal(plain.views[0], normalize(batch.views[0], VGGFACE2_MEAN, VGGFACE2_STD))
    assert plain.views[0].is_contiguous(memory_format=torch.channels_last)
