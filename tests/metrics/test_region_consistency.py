import math

import numpy as np
import pytest
import torch

from facessl.core.errors import DataError
from facessl.metrics.region_scores import Similarity, consistency


@pytest.fixture
def images() -> np.ndarray:
    """10 images of three smooth blobs, one per color channel."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(48), np.arange(48))
    out = np.empty((10, 48, 48, 3))
    for image in out:
        for channel, (u, v) in enumerate(rng.uniform(8, 40, (3, 2))):
            image[..., channel] = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 300)
    return out.astype(np.uint8)


def by_color(images: np.ndarray) -> np.ndarray:
    """One map per channel, 12x12: moves with the image."""
    return images.reshape(len(images), 12, 4, 12, 4, 3).mean((2, 4)).transpose(0, 3, 1, 2)


def by_place(images: np.ndarray) -> np.ndarray:
    """Three stripes, whatever the image."""
    stripes = np.arange(12)[None, :] // 4 == np.arange(3)[:, None]
    return np.broadcast_to(stripes[None, :, None, :].astype(float), (len(images), 3, 12, 12))


def test_a_dot_lands_where_the_similarity_says() -> None:
    warp = Similarity(angle=30, scale=1.2, shift=(0.1, -0.05))
    dots = torch.zeros(1, 1, 101, 101)
    dots[0, 0, 40:43, 69:72] = 1  # center (70, 41), the image's is (50, 50)
    moved = warp.apply(dots)[0, 0].numpy()
    y, x = np.mgrid[:101, :101]
    found = (moved * x).sum() / moved.sum(), (moved * y).sum() / moved.sum()
    a = math.radians(30)
    u, v = 20 * math.cos(a) + 9 * math.sin(a), 20 * math.sin(a) - 9 * math.cos(a)  # (20, -9), clockwise as seen
    assert found == pytest.approx((50 + 1.2 * u + 10.1, 50 + 1.2 * v - 5.05), abs=0.05)


def test_the_image_is_compared_with_itself_only(images: np.ndarray) -> None:
    _, inside = Similarity(angle=0, scale=0.5, shift=(0, 0)).sources(8)
    assert inside.sum() == 16  # the middle quarter
    with pytest.raises(DataError, match="out of sight"):
        consistency(by_color, images, Similarity(shift=(3, 0)))


def test_nothing_moves_nothing_changes_and_one_region_agrees_by_chance(images: np.ndarray) -> None:
    found = consistency(by_color, images, Similarity(angle=0, scale=1, shift=(0, 0)))
    assert (found["consistency"], found["consistency_interval"], found["consistency_unmoved"]) == (1, [1, 1], 1)
    found = consistency(lambda x: np.ones((len(x), 1, 3, 3)), images, Similarity())
    assert found["consistency"] == found["consistency_by_chance"] == 1


def test_regions_of_the_image_move_and_regions_of_the_place_stay(images: np.ndarray) -> None:
    warp = Similarity(angle=40, scale=0.9)
    moves, stays = consistency(by_color, images, warp), consistency(by_place, images, warp)
    assert moves["consistency_interval"][0] > max(0.9, moves["consistency_unmoved"] + 0.1)
    assert stays["consistency_unmoved"] == 1
    assert stays["consistency_interval"][1] < 0.8
    assert moves["consistency_by_chance"] < 0.6
