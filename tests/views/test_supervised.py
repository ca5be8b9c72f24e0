"""Labels move with the pixels; what is drawn is what the augmentation says; presets run through a loader."""

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data.face_square import Frame, resize
from facessl.data.layouts import layout
from facessl.data.loader import EvalLoader, TrainLoader
from facessl.views import augment as presets
from facessl.views import degrade
from facessl.views.augment import Augment
from facessl.views.geometric import BOX_DRAWS
from facessl.views.spec import Column
from facessl.views.supervised import Supervised
from tests.helpers import views_of
from tests.tasks import faces as tasks_faces

SIZE = 64
#: The mask classes of `Synthetic`, which are LaPa's: brows 2, 3 and eyes 4, 5 have sides.
SIDES = (0, 1, 3, 2, 5, 4, 6, 7, 8, 9, 10)
IBUG = layout("ibug68")
STRONG = Augment(shift=0.1, rotation=30, scale=0.3, flip=0.5)
PRESETS = {name: value for name, value in vars(presets).items() if isinstance(value, Augment)}


class Faces(tasks_faces.Faces):
    """Faces with points that are not annotated."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample.visible = (np.arange(68) % 3 > 0).astype(np.uint8)
        return sample


@pytest.fixture(scope="module")
def face() -> Sample:
    return Faces(n=6, size=128, seed=5, yaw=10, roll=5)[1]


def pixels(sample: Sample) -> np.ndarray:
    return sample.image


def known(augment: Augment, size: int = SIZE, **options: Any) -> Supervised:
    return Supervised(augment, size, layout=IBUG, mask_flip=SIDES, **options)


def draw(augment: Augment, face: Sample, seed: int) -> tuple[Sample, list[np.ndarray], list[np.ndarray]]:
    return known(augment).draw(np.random.default_rng(seed))(face, pixels(face))[:3]


@pytest.mark.parametrize("warp", [0.0, 0.8])
@pytest.mark.parametrize("crop", ["whole", "box", "five_points"])
def test_predictions_in_the_view_come_back_to_the_original(face: Sample, crop: Any, warp: float) -> None:
    for seed in range(8):
        moved, _, _ = draw(replace(STRONG, crop=crop, warp=warp), face, seed)
        assert moved.frame.dtype == np.float32
        back = Frame(moved.frame.astype(float), SIZE, warp).inverse_points(moved.landmarks)  # type: ignore[arg-type]
        flipped = np.linalg.det(moved.frame) < 0
        target = face.landmarks[list(IBUG.flip)] if flipped else face.landmarks
        assert np.abs(back - target).max() < 0.02


def test_a_flip_swaps_every_label_with_a_side(face: Sample) -> None:
    still, plain, _ = draw(Augment(), face, 0)
    moved, mirrored, _ = draw(Augment(flip=1.0), face, 0)
    assert np.array_equal(mirrored[0], plain[0][:, ::-1])
    flip = list(IBUG.flip)
    assert moved.landmarks[:, 0] == pytest.approx(SIZE - 1 - still.landmarks[flip, 0], abs=1e-4)
    assert (moved.landmarks[36:42, 0] < moved.landmarks[42:48, 0].min()).all()  # eyes of the image's left stay there
    assert np.array_equal(moved.visible, still.visible[flip])  # type: ignore[index, arg-type]
    assert moved.five_points[0, 0] < moved.five_points[1, 0]
    assert moved.five_points[3, 0] < moved.five_points[4, 0]
    assert np.array_equal(moved.mask, np.array(SIDES)[still.mask[:, ::-1]])  # type: ignore[index, arg-type]
    assert moved.pose == pytest.approx(face.pose * np.array((-1, 1, -1)))  # type: ignore[operator]
    assert moved.box == pytest.approx((SIZE - 1 - still.box[2], still.box[1], SIZE - 1 - still.box[0], still.box[3]))  # type: ignore[index]


def test_a_turn_to_the_right_raises_the_roll(face: Sample) -> None:
    eyes = face.landmarks[[36, 45]]
    for seed in range(6):
        moved, _, _ = draw(Augment(rotation=40), face, seed)
        turned = moved.landmarks[[36, 45]]  # type: ignore[index]
        angles = [math.degrees(math.atan2(*(p[1] - p[0])[::-1])) for p in (eyes, turned)]
        assert moved.pose[2] - face.pose[2] == pytest.approx(angles[1] - angles[0], abs=1e-3)  # type: ignore[index]


def test_mask_and_image_stay_on_each_other(face: Sample) -> None:
    """Away from the classes' edges, every pixel has the color of its class."""
    flat = np.random.default_rng(0).integers(40, 256, (11, 3)).astype(np.uint8)
    sample = replace(face, image=flat[face.mask])
    for seed in range(6):
        moved, views, *_ = known(replace(STRONG, flip=0.0, border="edge")).draw(np.random.default_rng(seed))(
            sample, flat[face.mask]
        )
        inner = cv2.erode(moved.mask, np.ones((5, 5))) == cv2.dilate(moved.mask, np.ones((5, 5)))
        inner &= moved.mask != 255
        assert inner.mean() > 0.1
        assert np.abs(views[0].astype(int) - flat[moved.mask.clip(0, 10)])[inner].max() < 8


def test_a_mask_that_the_task_does_not_need_is_left_out_and_nothing_else_changes(face: Sample) -> None:
    for train in (True, False):
        rng = [np.random.default_rng(3) if train else None for _ in range(2)]
        full, views, *_ = known(STRONG, train=train).draw(rng[0])(face, pixels(face))
        needs = frozenset({"landmarks"})
        lean, same, *_ = known(STRONG, train=train, needs=needs).draw(rng[1])(face, pixels(face))
        assert full.mask is not None
        assert lean.mask is None
        assert (same[0] == views[0]).all()
        assert np.array_equal(lean.landmarks, full.landmarks)  # type: ignore[arg-type]


def test_a_mask_of_another_size_covers_the_same_area(face: Sample) -> None:
    half = replace(face, mask=face.mask[::2, ::2])
    small, *_ = known(Augment()).draw(None)(half, pixels(face))
    assert np.array_equal(small.mask, half.mask)  # 128 pixels in a view of 64, a mask of 64


def test_evaluation_is_the_resized_image_whatever_the_augmentation(face: Sample) -> None:
    strong = replace(STRONG, erasing=1.0, noise=1.0, gamma=1.0, pairs=True)
    expected = resize(pixels(face), SIZE)
    for transform, rng in ((known(strong), None), (known(strong, train=False), np.random.default_rng(0))):
        moved, views, params, _ = transform.draw(rng)(face, pixels(face))
        assert len(views) == 1
        assert params == []
        assert np.array_equal(views[0], expected)
        assert moved.landmarks == pytest.approx((face.landmarks + 0.5) / 2 - 0.5)  # type: ignore[operator]


def geometry(augment: Augment, n: int) -> np.ndarray:
    """(n, 4): shift x, shift y as shares, degrees, scale; shifts are those of the view's center."""
    rows = []
    for seed in range(n):
        move, _, _ = known(augment)._move(np.random.default_rng(seed).random(8).tolist())
        middle = np.full(2, (SIZE - 1) / 2)
        shift = (move[:2, :2] @ middle + move[:2, 2] - middle) / SIZE
        rows.append((*shift, math.degrees(math.atan2(move[1, 0], move[0, 0])), math.hypot(move[0, 0], move[1, 0])))
    return np.array(rows)


def test_moves_are_distributed_as_asked() -> None:
    uniform = geometry(Augment(shift=0.1, rotation=20, scale=0.2), 2000)
    widths = np.array((0.1, 0.1, 20, 0.2))
    center = np.array((0, 0, 0, 1))
    assert (np.abs(uniform - center) <= widths + 1e-9).all()
    assert uniform.std(0) == pytest.approx(widths / math.sqrt(3), rel=0.05)
    normal = Augment(shift=0.1, rotation=20, scale=0.2, distribution="normal", shift_distribution="normal")
    values = geometry(normal, 2000)
    assert values.std(0) == pytest.approx(widths, rel=0.07)
    assert np.abs(values - center).mean(0) == pytest.approx(widths * math.sqrt(2 / math.pi), rel=0.07)
    assert np.abs(values.mean(0) - center).max() < 0.1 * 20
    half = geometry(Augment(shift=0.1, rotation=20, scale=0.2, shift_p=0.5, rotation_p=0.25, scale_p=0.0), 2000)
    moved = (np.abs(half - center) > 1e-9).mean(0)
    assert moved == pytest.approx((0.5, 0.5, 0.25, 0.0), abs=0.04)


@pytest.mark.parametrize(
    "off", ["flip", "noise", "occlusion", "gamma", "fusion", "erasing", "jitter_p", "grayscale", "blur"]
)
def test_turning_one_thing_off_leaves_the_rest_of_the_draws(face: Sample, off: str) -> None:
    chances = ("flip", "noise", "occlusion", "gamma", "fusion", "erasing", "jitter_p", "grayscale", "blur")
    every = replace(STRONG, jitter=(0.4, 0.4, 0.4, 0.1), pairs=True, **dict.fromkeys(chances, 1.0))  # type: ignore[arg-type]
    without = replace(every, **{off: 0.0})  # type: ignore[arg-type]
    a, a_views, a_params = draw(every, face, 3)
    b, b_views, b_params = draw(without, face, 3)
    column = {"jitter_p": Column.JITTER, "grayscale": Column.GRAYSCALE, "blur": Column.BLUR}
    if off in column:
        assert np.flatnonzero(a_params[0] != b_params[0]).tolist() == [column[off]]
        assert np.array_equal(a_views, b_views)
    else:
        assert np.array_equal(a_params, b_params)
        assert not np.array_equal(a_views[0], b_views[0])
    mirror = np.array([(-1, 0, SIZE - 1), (0, 1, 0), (0, 0, 1)]) if off == "flip" else np.eye(3)
    assert a.frame == pytest.approx(mirror @ b.frame, abs=1e-4)


def test_the_views_of_a_pair_mirror_each_other_but_for_their_erased_areas(face: Sample) -> None:
    gray = np.full((SIZE, SIZE, 3), 50, np.uint8)
    fill = round(255 * 0.485)
    own, shared = [], []
    for seed in range(40):
        for augment, log in (
            (presets.EAC_EXPRESSION, own),
            (replace(presets.EAC_EXPRESSION, shared_erasing=True), shared),
        ):
            augment = replace(augment, noise=0.0)
            views, params = views_of(Supervised(augment, SIZE), gray, np.random.default_rng(seed))
            assert np.array_equal(params[0], params[1])
            first, second = views[0][..., 0], views[1][:, ::-1, 0]
            log.append((first == fill, second == fill))
            same = (first != fill) & (second != fill)
            assert np.array_equal(first[same], second[same])
    assert all(np.array_equal(a, b) for a, b in shared)
    erased = np.array([(a.any(), b.any()) for a, b in own])
    assert 8 < erased[:, 0].sum() < 32
    assert (erased[:, 0] != erased[:, 1]).sum() > 4
    areas = np.array([a.mean() for a, _ in own if a.any()])
    assert areas.min() > 0.01
    assert areas.max() < 0.26
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(own, shared, strict=True))


def test_erased_boxes_are_distributed_as_torchvision_draws_them() -> None:
    from torchvision.transforms import RandomErasing

    rng, n = np.random.default_rng(0), 3000
    scale, ratio = (0.02, 0.33), (0.3, 3.3)
    ours = [degrade.erase_box(SIZE, rng.random(BOX_DRAWS), scale, ratio) for _ in range(n)]
    torch.manual_seed(0)
    blank = torch.empty(3, SIZE, SIZE)
    theirs = [RandomErasing.get_params(blank, scale, ratio)[:4] for _ in range(n)]
    a, b = np.array(ours, float), np.array(theirs, float)
    assert np.abs(a.mean(0) - b.mean(0)).max() < 4 * b.std(0).max() * (2 / n) ** 0.5
    assert np.abs(a.std(0) / b.std(0) - 1).max() < 0.08
    assert (a[:, 0] + a[:, 2]).max() <= SIZE
    assert (a[:, 1] + a[:, 3]).max() <= SIZE


def test_degradations_do_what_they_say() -> None:
    gray = np.full((200, 200, 3), 100, np.uint8)
    noisy = degrade.add_noise(gray, math.sqrt(30), 0.3).astype(float)
    assert noisy.var() == pytest.approx(30, rel=0.05)
    assert noisy.mean() == pytest.approx(100, abs=0.1)
    fused = degrade.fuse_noise(gray, 0.5, 0.3).astype(float)
    assert fused.mean() == pytest.approx(50 + 127.5 / 2, abs=0.5)
    assert np.ptp(fused) == pytest.approx(127, abs=2)
    assert degrade.apply_gamma(gray, 2.0)[0, 0, 0] == round(255 * (100 / 255) ** 2)
    shares = []
    rng = np.random.default_rng(0)
    for _ in range(300):
        draws = rng.random(4)
        draws[2:] = 0.5  # nothing is cut off
        black = degrade.occlude(gray, draws, False)[..., 0] == 0
        shares.append((black.any(1).mean(), black.any(0).mean()))
        assert (degrade.occlude(gray, draws, True)[..., 0] == 0).sum() < 0.9 * black.sum() + 40
    height, width = np.array(shares).T
    assert height.min() == pytest.approx(0.1, abs=0.015)
    assert height.max() == pytest.approx(0.4, abs=0.015)
    assert np.abs(width - height).max() < 0.115


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_through_the_loaders(name: str) -> None:
    augment = PRESETS[name]
    source = Faces(n=6, size=64)
    needs = frozenset({"landmarks", "mask"})
    batch = next(iter(TrainLoader(source, known(augment, 48, needs=needs), batch_size=6, seed=0)))
    assert len(batch.views) == len(batch.params) == (2 if augment.pairs else 1)
    assert batch.views[0].shape == (6, 3, 48, 48)
    assert batch.frame.dtype == torch.float32
    assert batch.mask.shape == (6, 48, 48)
    evaluation = next(iter(EvalLoader(source, known(augment, 48, train=False), batch_size=6)))
    assert len(evaluation.views) == 1
    assert evaluation.params == []
    assert evaluation.landmarks is not None
    inside = (evaluation.landmarks > -0.5) & (evaluation.landmarks < 47.5)
    assert inside.float().mean() > 0.9


def test_flips_that_labels_cannot_follow_are_refused_or_leave_the_labels_out(face: Sample) -> None:
    for field, options in (("landmarks", {"mask_flip": SIDES}), ("mask", {"layout": IBUG})):
        with pytest.raises(ConfigError, match=rf"flip=0\.5.*{field} cannot be mirrored: set flip to 0"):
            Supervised(STRONG, SIZE, needs=frozenset({field}), **options)  # type: ignore[arg-type]
        Supervised(replace(STRONG, flip=0.0), SIZE, needs=frozenset({field}))
    transform = Supervised(STRONG, SIZE, needs=frozenset({"label"}))
    moved, *_ = transform.draw(np.random.default_rng(0))(face, pixels(face))
    assert moved.landmarks is None
    assert moved.mask is None
    assert moved.five_points is not None
    kept, *_ = transform.draw(None)(face, pixels(face))
    assert kept.landmarks is not None
    wrong = Supervised(replace(STRONG, flip=1.0), SIZE, layout=layout("wflw98"))
    with pytest.raises(DataError, match="68 landmarks, but the source's layout has 98"):
        wrong.draw(np.random.default_rng(0))(face, pixels(face))


@pytest.mark.parametrize(
    "change",
    [
        {"crop": "face"},
        {"flip": 1.5},
        {"rotation": -1},
        {"warp": 2.0},
        {"erasing_scale": (0.3, 1.0)},
        {"blur_sigma": (0.0, 1.0)},
        {"distribution": "gauss"},
        {"crop_scale": 0},
    ],
)
def test_an_augmentation_that_cannot_work_names_field_and_value(change: dict[str, Any]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ConfigError) as error:
        Augment(**change)
    message = str(error.value)
    assert f"augment.{name} is " in message
    assert str(value) in message
