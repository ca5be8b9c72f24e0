"""The views as random variables: the same distribution as torchvision's, over seeded draws.

Two samples pass a Kolmogorov-Smirnov test unless their distributions differ; the threshold of 0.001 means that one in a
thousand tests of equal distributions would fail, and the seeds were not chosen.
"""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision import transforms as tv

from facessl.views.geometric import DRAWS, crop_box, photometric_params
from facessl.views.spec import FRA_VIEWS, ORDERS, Column, View

N = 2000


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ks_2samp(ours, theirs).pvalue > 1e-3, f"means {ours.mean():.5g} and {theirs.mean():.5g}"


def close_rates(ours: np.ndarray, rate: float) -> None:
    assert abs(ours.mean() - rate) < 3.5 * (rate * (1 - rate) / len(ours)) ** 0.5


def measures(top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, ...]:
    """Area, logarithm of the ratio, row and column of the center of N boxes."""
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
    for column, rate in ((Column.JITTER, 0.8), (Column.GRAYSCALE, 0.2)):
        close_rates(ours[:, column] == 1, rate)
    places = ORDERS[ours[:, Column.ORDER].astype(int)]
    for slot in range(4):
        for operation in range(4):
            close_rates(places[:, slot] == operation, 1 / 4)


def test_blur_and_solarization_are_drawn_as_often_as_asked() -> None:
    rng = np.random.default_rng(2)
    rows = np.array([photometric_params(View(blur=0.6, solarize=0.3), rng.random(10)) for _ in range(N)])
    sigma = rows[:, Column.BLUR]
    close_rates(sigma > 0, 0.6)
    same(sigma[sigma > 0], np.random.default_rng(3).uniform(0.1, 2.0, N))
    close_rates(rows[:, Column.SOLARIZE] == 128, 0.3)
    assert set(rows[:, Column.SOLARIZE]) == {128, 256}
