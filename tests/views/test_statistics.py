"""The views as random variables: the same distribution as torchvision's and Pillow's, over seeded draws.

Two samples pass a Kolmogorov-Smirnov test unless their distributions differ; the threshold of 0.001 means that one in a
thousand tests of equal distributions would fail, and the seeds were not chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms as tv

from facessl.views.geometric import DRAWS, Geometric, crop_box, photometric_params
from facessl.views.normalize import VGGFACE2_MEAN, VGGFACE2_STD
from facessl.views.photometric import Photometric
from facessl.views.spec import FRA_VIEWS, ORDERS, Column, View
from tests.helpers import script, views_of

pipeline = script("pipeline")
N = 2000
FINISHED, SIZE = 1000, 40  # views that are made, and their side


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ks_2samp(ours, theirs).pvalue > 1e-3, f"means {ours.mean():.5g} and {theirs.mean():.5g}"


def close_rates(ours: np.ndarray, rate: float) -> None:
    assert abs(ours.mean() - rate) < 3.5 * (rate * (1 - rate) / len(ours)) ** 0.5


def measures(top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
    """Area, logarithm of the ratio, row and column of the centre of N boxes."""
    return height * width, np.log(width / height), top + height / 2, left + width / 2


@pytest.mark.parametrize(("height", "width"), [(256, 256), (120, 300)])
@pytest.mark.parametrize("view", [View(), View(scale=(0.08, 1.0))], ids=["fra", "byol"])
def test_crop_boxes(view: View, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    ours = np.array([crop_box(view, height, width, rng.random(DRAWS)) for _ in range(N)], float)
    get = tv.RandomResizedCrop.get_params
    theirs = np.array([get(blank, list(view.scale), list(view.ratio)) for _ in range(N)], float)
    for mine, other in zip(measures(*ours.T), measures(*theirs.T), strict=True):
        same(mine, other)


def test_color_parameters() -> None:
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    jitter = tv.ColorJitter(*FRA_VIEWS[0].jitter)
    ours = np.array([photometric_params(FRA_VIEWS[0], rng.random(10)) for _ in range(N)])
    theirs = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)  # order and four factors
        for _ in range(N)
    ]
    for column, name in enumerate((Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION, Column.HUE), start=1):
        same(ours[:, name], np.array([row[column] for row in theirs]))
    places = ORDERS[ours[:, Column.ORDER].astype(int)]
    for slot in range(4):
        for operation in range(4):
            close_rates(places[:, slot] == operation, 1 / 4)


@pytest.fixture(scope="module")
def finished() -> list[tuple[np.ndarray, np.ndarray]]:
    """Both views, ours and the reference's, of one picture: (FINISHED, S, S, 3) in 0..1 each.

    The reference blurs with torchvision's kernel, not with Pillow's approximation of it. Ours are rounded to 8 bits as
    the reference is, whose rounding is a good part of what a strong blur leaves of a Laplacian.
    """
    image = cv2.resize(pipeline.picture(96, 3), (48, 48), interpolation=cv2.INTER_AREA)
    geometric = Geometric(FRA_VIEWS, SIZE)
    photometric = Photometric(VGGFACE2_MEAN, VGGFACE2_STD)
    made = [views_of(geometric, image, np.random.default_rng((2, index))) for index in range(FINISHED)]
    torch.manual_seed(3)
    stored, out = Image.fromarray(image), []
    for number, view in enumerate(FRA_VIEWS):
        crops = torch.from_numpy(np.stack([images[number] for images, _ in made])).permute(0, 3, 1, 2)
        rows = torch.from_numpy(np.stack([params[number] for _, params in made]))
        make = pipeline.reference(view, SIZE, tv.GaussianBlur(23, view.blur_sigma))
        theirs = torch.stack([make(stored) for _ in range(FINISHED)])
        ours = _plain(photometric.apply(crops, rows))
        out.append((np.rint(255 * ours) / np.float32(255), _plain(theirs)))
    return out


def _plain(views: torch.Tensor) -> np.ndarray:
    """Without the normalization, pixels last."""
    return views.permute(0, 2, 3, 1).numpy() * np.float32(VGGFACE2_STD) + np.float32(VGGFACE2_MEAN)


def _colorfulness(views: np.ndarray) -> np.ndarray:
    """Largest minus smallest channel of each pixel; of gray exactly 0."""
    return np.maximum(views.max(-1) - views.min(-1) - 1e-5, 0)


def _blur_strength(views: np.ndarray) -> np.ndarray:
    """Logarithm of the energy of the Laplacian, relative to the contrast: what a blur lowers and a jitter leaves."""
    energy = np.array([cv2.Laplacian(view, cv2.CV_32F).var() for view in views])
    return np.log(energy / views.var(axis=(1, 2, 3)))


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean red": lambda views: views[..., 0].mean((1, 2)),
    "mean green": lambda views: views[..., 1].mean((1, 2)),
    "mean blue": lambda views: views[..., 2].mean((1, 2)),
    "contrast": lambda views: views.std((1, 2, 3)),
    "saturation": lambda views: _colorfulness(views).mean((1, 2)),
    "left against right": lambda views: (views[:, :, :20] - views[:, :, 20:]).mean((1, 2, 3)),
    "blur": _blur_strength,
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("view", [0, 1])
def test_finished_views(finished: list[tuple[np.ndarray, np.ndarray]], view: int, name: str) -> None:
    ours, theirs = finished[view]
    same(MEASURES[name](ours), MEASURES[name](theirs))


@pytest.mark.parametrize("view", [0, 1])
def test_share_of_gray_views(finished: list[tuple[np.ndarray, np.ndarray]], view: int) -> None:
    for views in finished[view]:
        close_rates(_colorfulness(views).max((1, 2)) == 0, FRA_VIEWS[view].grayscale)
