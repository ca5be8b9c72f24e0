"""Crops and parameters of the views: what is drawn, from what generator, and how well it is resampled."""

from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
import torchvision.transforms.v2.functional as tv

from facessl.core.errors import ConfigError
from facessl.core.types import Sample
from facessl.data.decode import decode
from facessl.views.geometric import DRAWS, Geometric, crop_box, resize
from facessl.views.spec import FRA_VIEWS, Column, View
from tests.helpers import views_of

NOTHING = Sample(b"", key="an image without labels")
WHOLE: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo_like(height: int, width: int) -> np.ndarray:
    """Noise with about the 1/f spectrum of photographs: octaves of equal contrast."""
    layers = np.zeros((height, width, 3), np.float32)
    for octave in range(6):
        grid = noise(max(2, height >> octave), max(2, width >> octave), octave).astype(np.float32)
        layers += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    layers = (layers - layers.mean()) / layers.std()
    return np.clip(128 + 50 * layers, 0, 255).astype(np.uint8)


def draw(view: View, image: np.ndarray, seed: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    images, params = views_of(Geometric([view], size), image, np.random.default_rng(seed))
    return images[0], params[0]


@pytest.mark.parametrize("off", ["flip", "jitter_p", "grayscale", "blur", "solarize"])
def test_a_probability_of_zero_leaves_the_other_draws_alone(off: str) -> None:
    on: dict[str, Any] = dict.fromkeys(["flip", "jitter_p", "grayscale", "blur", "solarize"], 1.0)
    column = {
        "jitter_p": Column.JITTER,
        "grayscale": Column.GRAYSCALE,
        "blur": Column.BLUR,
        "solarize": Column.SOLARIZE,
    }
    image = noise(40, 40)
    with_it, without = (Geometric([View(**kw), View(**on)], 16) for kw in (on, on | {off: 0.0}))
    a_images, a_params = views_of(with_it, image, np.random.default_rng(3))
    b_images, b_params = views_of(without, image, np.random.default_rng(3))
    assert np.array_equal(a_images[1], b_images[1])
    assert np.array_equal(a_params[1], b_params[1])
    assert np.array_equal(a_images[0], b_images[0]) == (off != "flip")
    changed = np.flatnonzero(a_params[0] != b_params[0]).tolist()
    assert changed == ([column[off]] if off in column else [])


def test_flip_mirrors_the_view_in_half_of_the_draws() -> None:
    image = noise(16, 16)
    outcomes = [draw(View(**WHOLE), image, seed)[0] for seed in range(400)]
    flipped = sum(np.array_equal(out, image[:, ::-1]) for out in outcomes)
    assert flipped + sum(np.array_equal(out, image) for out in outcomes) == 400
    assert 160 < flipped < 240


@pytest.mark.parametrize("source", [(60, 50), (112, 112), (150, 130), (260, 300), (900, 700)])
def test_a_crop_looks_as_torchvision_resamples_it(source: tuple[int, int]) -> None:
    size, image = 112, photo_like(*source)
    errors = []
    for seed in range(8):
        draws = np.random.default_rng(seed).random(DRAWS)
        top, left, h, w = crop_box(View(), *source, draws)
        ours = resize(image[top : top + h, left : left + w], size)
        chw = torch.from_numpy(image).permute(2, 0, 1)
        theirs = tv.resized_crop(chw, top, left, h, w, [size, size], antialias=True).permute(1, 2, 0)
        errors.append(np.abs(ours.astype(float) - theirs.numpy()).mean())
    assert max(errors) < 0.5


@pytest.mark.parametrize("source", [(150, 130), (20, 300), (32, 32)])
def test_crops_say_what_was_cut(source: tuple[int, int]) -> None:
    image, seen = photo_like(*source), set()
    height, width = source
    for seed in range(20):
        _, views, _, crops = Geometric(FRA_VIEWS, 24).draw(np.random.default_rng(seed))(NOTHING, image)
        for view, crop in zip(views, crops, strict=True):
            assert (crop.shape, crop.dtype) == ((5,), np.float32)
            left, right = round(crop[0] * width), round((crop[0] + crop[2]) * width)
            top, bottom = round(crop[1] * height), round((crop[1] + crop[3]) * height)
            again = resize(image[top:bottom, left:right], 24)
            assert np.array_equal(view, again[:, ::-1] if crop[4] else again)
            seen.add(float(crop[4]))
    assert seen == {0.0, 1.0}


@pytest.mark.parametrize("source", [(150, 130), (20, 300), (32, 32), (16, 16)])
def test_views_are_written_where_they_are_wanted(source: tuple[int, int]) -> None:
    geometric, image = Geometric([View(flip=0.0), View(flip=1.0)], 32), photo_like(*source)
    expected, params = views_of(geometric, image, np.random.default_rng(4))
    batch = np.zeros((2, 3, 32, 32, 3), np.uint8)
    _, views, again, _ = geometric.draw(np.random.default_rng(4))(NOTHING, image, [batch[0, 1], batch[1, 1]])
    for number in range(2):
        assert np.shares_memory(views[number], batch)
        assert np.array_equal(batch[number, 1], expected[number])
        assert not batch[number, ::2].any()
        assert np.array_equal(again[number], params[number])


@pytest.mark.parametrize("side", [100, 500, 1000, 2000, 4000])
def test_an_image_is_reduced_only_where_every_crop_stays_larger_than_its_view(side: int) -> None:
    factors = set()
    for seed in range(100):
        drawn = Geometric(FRA_VIEWS, 112).draw(np.random.default_rng(seed))
        factor = drawn.reduction(side, side + 7)
        boxes = [crop_box(view, side, side + 7, row) for view, row in zip(FRA_VIEWS, drawn._draws, strict=True)]
        smallest = min(min(h, w) for _, _, h, w in boxes)
        assert factor == max(f for f in (1, 2, 4, 8) if f == 1 or smallest >= 1.5 * 112 * f)
        factors.add(factor)
    assert factors == {100: {1}, 500: {1, 2}, 1000: {2, 4}, 2000: {4, 8}, 4000: {8}}[side]


@pytest.mark.parametrize("factor", [2, 4])
def test_a_reduced_image_gives_the_views_of_the_full_one(factor: int) -> None:
    """The box moves by a reduced pixel or two; within it, the pixels are those of the full image, resized."""
    size, side = 64, 180 * factor
    smooth = cv2.resize(photo_like(side // 2, side // 2), (side, side), interpolation=cv2.INTER_CUBIC)
    data = simplejpeg.encode_jpeg(smooth, quality=95)
    full, view = decode(data, key=""), View(scale=(0.5, 1.0), flip=0.0)
    for seed in range(6):
        drawn = Geometric([view], size).draw(np.random.default_rng(seed))
        assert drawn.reduction(side, side) == factor
        reduced = decode(data, key="", reduction=drawn.reduction)
        assert reduced.shape[:2] == (side // factor, side // factor)
        draws = np.random.default_rng(seed).random(DRAWS)
        box, exact = (np.array(crop_box(view, s, s, draws)) for s in (side // factor, side))
        assert np.abs(factor * box - exact).max() < 2 * factor
        top, left, h, w = factor * box
        expected = resize(full[top : top + h, left : left + w], size)
        assert np.abs(drawn(NOTHING, reduced)[1][0].astype(float) - expected).mean() < 1.2  # of photographs half of it


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (2, 3), (7, 500)])
@pytest.mark.parametrize("view", [View(), View(**WHOLE), View(scale=(0.01, 0.02), ratio=(3.0, 4.0))])
def test_thin_and_tiny_images_give_a_view(shape: tuple[int, int], view: View) -> None:
    image = noise(*shape)
    for seed in range(20):
        out, params = draw(view, image, seed, size=24)
        assert out.shape == (24, 24, 3)
        assert out.dtype == np.uint8
        assert params.shape == (len(Column),)
        assert params.dtype == np.float32


def test_view_sizes_follow_the_image_size() -> None:
    geometric = Geometric([View(), View(size=96 / 224, scale=(0.05, 0.14))], 224)
    images, _ = views_of(geometric, noise(64, 64), np.random.default_rng(0))
    assert [image.shape[:2] for image in images] == [(224, 224), (96, 96)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0.0),
        ("scale", (0.5, 0.2)),
        ("scale", (0.0, 1.0)),
        ("ratio", (0.0, 1.0)),
        ("flip", 1.5),
        ("jitter", (0.4, 0.4, 0.2)),
        ("jitter", (0.4, 0.4, 0.2, 0.6)),
        ("grayscale", float("nan")),
        ("blur_sigma", (0.0, 2.0)),
        ("solarize_threshold", 300),
    ],
)
def test_a_view_that_cannot_work_names_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        View(**{field: value})
    assert f"view.{field} is {value}: give " in str(error.value)
    with pytest.raises(ConfigError, match="image size 0"):
        Geometric(FRA_VIEWS, 0)
