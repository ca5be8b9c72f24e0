"""Frames: points, pixels and classes move together, and come back."""

import math

import cv2
import numpy as np
import pytest

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.face_square import TEMPLATES, Frame, frame_of, from_box, from_five_points, resize, similarity, whole
from facessl.data.sources.synthetic import Synthetic

SIZE = 96


@pytest.fixture(scope="module")
def faces() -> list[Sample]:
    source = Synthetic(n=4, size=160, seed=3)
    return [source[i] for i in range(4)]


def box_of(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)])


def five_of(points: np.ndarray) -> np.ndarray:
    eyes = points[36:42].mean(0), points[42:48].mean(0)
    return np.stack([*eyes, points[30], points[48], points[54]])


def frames(face: Sample) -> list[Frame]:
    """Every crop, then turned, scaled, shifted and mirrored, with and without warp."""
    five = five_of(face.landmarks)
    crops = [whole(160, 160, SIZE), from_box(box_of(face.landmarks), SIZE, 1.25), from_five_points(five, SIZE)]
    moves = [np.eye(3), similarity(SIZE, rotation=30, scale=0.8, shift=(0.05, -0.1), flip=True)]
    return [Frame(move @ crop.matrix, SIZE, warp) for crop in crops for move in moves for warp in (0.0, 0.8)]


def test_points_come_back_to_where_they_were(faces: list[Sample]) -> None:
    for face in faces:
        for frame in frames(face):
            back = frame.inverse_points(frame.points(face.landmarks))
            assert np.abs(back - face.landmarks).max() < 1e-3
            # float32 is what a batch carries.
            single = Frame(frame.matrix.astype(np.float32).astype(float), SIZE, frame.warp)
            back = single.inverse_points(frame.points(face.landmarks).astype(np.float32))
            assert np.abs(back - face.landmarks).max() < 5e-3


def test_a_dot_on_a_landmark_is_found_at_the_moved_landmark(faces: list[Sample]) -> None:
    for face in faces[:2]:
        for frame in frames(face):
            for x, y in face.landmarks[::11]:
                sharp = np.zeros((160, 160, 3), np.uint8)
                grid = np.mgrid[:160, :160]
                sharp[:] = (255 * np.exp(-((grid[1] - x) ** 2 + (grid[0] - y) ** 2) / 18))[..., None]
                view = frame.image(sharp)[..., 0].astype(float)
                place = frame.points(np.array((x, y)))
                if (np.abs(place - (SIZE - 1) / 2) > SIZE / 2 - 14).any():
                    continue  # the dot is cut off
                view[view < 0.2 * view.max()] = 0
                rows, columns = np.mgrid[:SIZE, :SIZE]
                found = np.array([(view * columns).sum(), (view * rows).sum()]) / view.sum()
                # The warp is not straight within a dot.
                assert np.abs(found - place).max() < (0.5 if frame.warp else 0.15)


def test_mask_and_image_move_alike(faces: list[Sample]) -> None:
    for frame in frames(faces[0]):
        mask = (np.indices((160, 160)).sum(0) // 24 % 2).astype(np.uint8)
        view = frame.mask(mask)
        image = frame.image(np.repeat((mask * 255)[..., None], 3, 2), "edge")[..., 0]
        clear = (view != 255) & ((image < 20) | (image > 235))
        assert clear.mean() > 0.2
        assert (view[clear] == (image[clear] > 127)).mean() > 0.995


def test_pixels_outside_the_image_are_ignored_in_masks_and_black_in_images() -> None:
    frame = from_box((60, 60, 160, 160), 50)
    view = frame.mask(np.zeros((100, 100), np.uint8))
    image = frame.image(np.full((100, 100, 3), 200, np.uint8))
    edge = frame.image(np.full((100, 100, 3), 200, np.uint8), "edge")
    assert (view[:20, :20] == 0).all()
    assert (view[20:, :] == 255).all()
    assert (image[21:] == 0).all()
    assert (edge == 200).all()


def test_warp_equals_the_plain_loop_of_its_definition() -> None:
    frame = Frame(np.eye(3), 100, 0.8)
    for x in (-300.0, -20.0, 3.3, 40.0, 49.5, 58.0, 90.0, 250.0):
        c = (x + 0.5) / 100 * 2 - 1
        if c > 0.2:
            c = 0.8 * math.tanh((c - 0.2) / 0.8) + 0.2
        elif c < -0.2:
            c = 0.8 * math.tanh((c + 0.2) / 0.8) - 0.2
        expected = (c + 1) / 2 * 100 - 0.5
        assert frame.points(np.array((x, 49.5))) == pytest.approx((expected, 49.5))
    assert np.isfinite(frame.inverse_points(np.array([(-50.0, 400.0), (99.5, -0.5)]))).all()


@pytest.mark.parametrize("shape", [(60, 50), (96, 96), (300, 200), (96, 240)])
def test_the_whole_image_has_the_pixels_of_resize(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    frame = frame_of(Sample(image, "a"), image.shape, size=SIZE)
    assert np.array_equal(frame.image(image), resize(image, SIZE))
    mirrored = frame.compose(similarity(SIZE, flip=True))
    assert np.array_equal(mirrored.image(image), resize(image, SIZE)[:, ::-1])
    stored = Frame(frame.matrix.astype(np.float32).astype(float), SIZE)
    assert np.array_equal(stored.image(image), resize(image, SIZE))


@pytest.mark.parametrize("factor", [1.4, 2.0, 3.7, 9.0])
def test_a_frame_that_shrinks_is_filtered_as_resize_is(factor: float) -> None:
    """A hair's breadth beside the whole image, the picture is nearly that of `resize`; unfiltered it is not."""
    side = round(factor * SIZE)
    image = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    frame = whole(side, side, SIZE).compose(similarity(SIZE, rotation=0.01))
    smooth = resize(image, SIZE).astype(float)
    ours = frame.image(image, "edge").astype(float)
    unfiltered = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR).astype(float)
    difference, alias = (np.abs(x - smooth)[3:-3, 3:-3].mean() for x in (ours, unfiltered))
    assert difference < 0.5 * alias
    assert ours[3:-3, 3:-3].std() == pytest.approx(smooth[3:-3, 3:-3].std(), rel=0.15)


def test_a_shrinking_crop_of_a_part_has_no_offset() -> None:
    image = np.zeros((900, 700, 3), np.uint8)
    rows, columns = np.mgrid[:900, :700]
    image[:] = (255 * np.exp(-((columns - 411.3) ** 2 + (rows - 502.6) ** 2) / (2 * 15**2)))[..., None]
    frame = from_box((311, 397, 520, 606), 40).compose(similarity(40, rotation=25))
    view = frame.image(image)[..., 0].astype(float)
    rows, columns = np.mgrid[:40, :40]
    found = np.array([(view * columns).sum(), (view * rows).sum()]) / view.sum()
    assert np.abs(found - frame.points(np.array((411.3, 502.6)))).max() < 0.05


def test_inverse_mask_gives_back_the_classes_of_the_original(faces: list[Sample]) -> None:
    face = faces[0]
    for frame in [f for f in frames(face) if not f.warp]:
        big = Frame(np.diag((4.0, 4.0, 1.0)) @ frame.matrix + np.array([(0, 0, 1.5), (0, 0, 1.5), (0, 0, 0)]), 4 * SIZE)
        view = big.mask(face.mask)
        known = np.where(view == 255, 0, view)
        inside = big.inverse_mask(np.ones(view.shape, np.uint8), 160, 160) > 0
        for answer in (np.eye(11, dtype=np.float32)[known].transpose(2, 0, 1), known):
            back = big.inverse_mask(answer, 160, 160)
            assert (back[inside] == face.mask[inside]).mean() > 0.97
            assert (back[~inside] == 0).all()


def test_scores_are_blended_before_the_choice_is_made() -> None:
    frame = whole(8, 8, 2)
    scores = np.zeros((2, 2, 2), np.float32)
    scores[1] = [[1, -0.2], [1, -0.2]]  # class 1 wins until 5/6 of the way from one column to the next
    wins = frame.inverse_mask(scores, 8, 8)
    assert wins.mean(0).tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert frame.inverse_mask(scores.argmax(0), 8, 8).mean(0).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_a_box_becomes_the_square_around_its_center() -> None:
    frame = from_box((10, 20, 50, 100), 64, scale=1.25)
    assert frame.points(np.array((30, 60))) == pytest.approx((31.5, 31.5))
    assert frame.points(np.array((30 - 50, 60 + 50))) == pytest.approx((-0.5, 63.5))


def test_five_points_land_on_the_template_and_are_never_mirrored() -> None:
    target = TEMPLATES["farl"] * 512 - 0.5
    move = similarity(512, rotation=37, scale=0.3, shift=(0.2, 0.1))
    points = target @ move[:2, :2].T + move[:2, 2]
    assert from_five_points(points, 512).points(points) == pytest.approx(target)
    assert np.linalg.det(from_five_points(points * (-1, 1), 512).matrix) > 0
    smaller = from_five_points(points, 512, scale=1.25).points(points)
    assert np.ptp(smaller[:, 0]) == pytest.approx(np.ptp(target[:, 0]) / 1.25)


def test_five_points_are_a_least_squares_fit() -> None:
    points = TEMPLATES["celeba"] * 100 + np.random.default_rng(0).normal(0, 3, (5, 2))
    frame, target = from_five_points(points, 90, "celeba"), TEMPLATES["celeba"] * 90 - 0.5
    best = ((frame.points(points) - target) ** 2).sum()
    for change in np.random.default_rng(1).normal(0, 1e-3, (50, 4)):
        a, b, x, y = change
        other = frame.compose(np.array([(1 + a, -b, 90 * x), (b, 1 + a, 90 * y), (0, 0, 1)]))
        assert ((other.points(points) - target) ** 2).sum() > best


def test_similarity_turns_clockwise_then_shifts_then_mirrors() -> None:
    def moved(**move: float | bool | tuple[float, float]) -> list[float]:
        matrix = similarity(101, **move)  # type: ignore[arg-type]
        return [round(v, 6) for v in matrix[:2, :2] @ (50, 10) + matrix[:2, 2]]  # 40 above the center (50, 50)

    assert moved(rotation=90) == [90, 50]
    assert moved(rotation=90, scale=0.5, shift=(0.1, 0)) == [80.1, 50]
    assert moved(rotation=90, scale=0.5, shift=(0.1, 0), flip=True) == [19.9, 50]


def test_a_sample_without_what_the_crop_needs_is_named() -> None:
    sample = Sample(b"", "a/b.jpg")
    for crop in ("box", "five_points"):
        with pytest.raises(DataError, match=rf"a/b\.jpg has no {crop}"):
            frame_of(sample, (10, 10, 3), crop=crop, size=8)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no area"):
        from_box((5, 5, 5, 9), 8)
    with pytest.raises(DataError, match="five different"):
        from_five_points(np.zeros((5, 2)), 8)
