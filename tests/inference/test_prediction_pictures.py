"""Pictures of predictions: things are drawn where they belong, and words do not cover faces or leave the picture."""

import numpy as np
import pytest

from facessl.data import layouts
from facessl.inference import prediction_pictures as pictures

GRAY = np.full((400, 500, 3), 128, np.uint8)


def test_points_lie_on_their_pixels_and_the_photo_is_not_changed() -> None:
    marks = [[100.0, 120.0], [300.25, 120.0], [200.0, 300.0]]
    image = GRAY.copy()
    picture = pictures.draw(image, [{"box": [0, 0, 500, 400], "landmarks": marks, "layout": None}])
    assert picture.shape == image.shape
    assert (image == GRAY).all()
    for x, y in marks:
        assert tuple(picture[round(y), round(x)]) == pictures._POINT
    changed = np.argwhere((picture != GRAY).any(2))  # rows of y, x
    far = np.min([np.hypot(*(changed - (y, x)).T) for x, y in marks], axis=0)
    assert far.max() < 6  # an unknown order: points alone


@pytest.mark.parametrize("order", layouts.names())
def test_every_known_order_is_joined(order: str) -> None:
    count = layouts.layout(order).points
    points = np.random.default_rng(0).uniform(50, 350, (count, 2))
    face = {"box": [0, 0, 500, 400], "landmarks": points}
    alone, joined, other = (
        pictures.draw(GRAY, [{**face, "landmarks": points[:n], "layout": name}])
        for n, name in ((count, None), (count, order), (5, order))
    )
    has_lines = [(picture == pictures._LINE).all(2).any() for picture in (joined, alone, other)]
    assert has_lines == [True, False, False]


def test_small_pictures_are_enlarged_with_what_is_drawn() -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 10:30] = 1
    small = np.zeros((40, 50, 3), np.uint8)
    faces = [{"box": [-0.5, -0.5, 49.5, 39.5], "mask": mask, "classes": ["background", "skin"]}]
    picture = pictures.draw(small, faces)
    assert picture.shape[0] == 320
    inside = picture[10 * 8 + 2 : 20 * 8 - 2, 10 * 8 + 2 : 30 * 8 - 2]
    assert (inside == (np.array(pictures.class_colors(2)[1]) / 2).round()).all()
    assert (picture[: 10 * 8 - 1, : 50 * 8] == 0).all()
    assert (picture[:, 50 * 8 + 1] == 255).all()  # the panel with the class's name


def test_several_faces_may_overlap_and_keep_their_own_classes() -> None:
    first, second = np.zeros((400, 500), np.uint8), np.zeros((400, 500), np.uint8)
    first[100:200, 100:200], second[100:200, 300:400] = 1, 2
    classes = ["background", "skin", "hair"]
    faces = [{"box": [0, 0, 1, 1], "mask": mask, "classes": classes} for mask in (first, second)]
    picture = pictures.draw(GRAY, faces)
    colors = np.array(pictures.class_colors(3))
    for (y, x), c in (((150, 150), 1), ((150, 350), 2)):
        assert np.abs(picture[y, x] - (64 + colors[c] / 2)).max() <= 1
    assert [words for _, words in pictures._panel_rows(faces)] == ["skin", "hair"]


@pytest.mark.parametrize("box", [[-40, -30, 60, 90], [450, 350, 520, 420], [-0.5, -0.5, 499.5, 399.5]])
def test_a_label_stays_in_the_picture(box: list[float]) -> None:
    face = {"box": box, "label": "surprise", "probabilities": {"surprise": 0.8, "calm": 0.2}}
    changed = np.argwhere((pictures.draw(GRAY, [face]) != GRAY).any(2))
    low, high = changed.min(0), changed.max(0)
    assert (low >= 0).all()
    assert high[1] - low[1] > 60  # all of the word
    dark = (pictures.draw(GRAY, [face]) == pictures._DARK).all(2)
    assert dark[low[0], low[1]]
    assert dark[high[0], high[1]]


def test_likely_attributes_are_listed_beside_the_photo() -> None:
    faces = [
        {"box": [10, 10, 200, 200], "attributes": {"young": 0.7, "hat": 0.2, "big_nose": 0.9}},
        {"box": [250, 10, 450, 200], "attributes": {"young": 0.5}},
    ]
    rows = [words for _, words in pictures._panel_rows(faces)]
    assert rows == ["face 1", "big nose 0.90", "young 0.70", "face 2", "none above 0.5"]
    assert pictures.draw(GRAY, faces).shape[1] > 500
