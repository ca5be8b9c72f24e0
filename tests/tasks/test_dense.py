"""Alignment and parsing: losses against loops, and scores in the pixels of the stored images."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from facessl.core.errors import DataError
from facessl.core.types import Batch, Progress, Sample
from facessl.data.face_square import Frame, similarity
from facessl.data.loader import EvalLoader, TrainLoader
from facessl.models.backbone import Backbone
from facessl.tasks.alignment import Alignment, AlignmentArgs, AlignmentMeter
from facessl.tasks.base import Labels
from facessl.tasks.parsing import Parsing, ParsingMeter
from facessl.training import finetune
from facessl.views import augment as presets
from facessl.views.augment import Augment
from facessl.views.supervised import Supervised
from tests.tasks.faces import Faces

SIZE = 32
IBUG = Labels(points=68, layout="ibug68")


def build(**values: Any) -> Alignment:
    torch.manual_seed(0)
    labels = Labels(points=3)
    task = Alignment(Backbone("test_resnet", image_size=SIZE), labels, width=8, unit="box", **values)
    return task.double().eval()


def test_alignment_loss_against_loops() -> None:
    task = build(heatmap_size=6, sigma=0.8, coordinate_weight=3.0, heatmap_weight=2.0)
    view = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    marks = 4 + 20 * torch.rand(2, 3, 2, dtype=torch.float64)
    visible = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.uint8)
    batch = Batch(views=[view], params=[], index=torch.arange(2), landmarks=marks, visible=visible)
    own = task.head(task.backbone.forward_pyramid(view))  # what is decoded
    assert own.shape == (2, 3, 8, 8)
    logits = torch.nn.functional.interpolate(own, size=(6, 6), mode="bilinear", align_corners=False)
    coordinate = heatmap = 0.0
    for b, k in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):  # (0, 2) is not annotated
        cell = (marks[b, k] + 0.5) * 6 / SIZE - 0.5
        mass = mx = my = 0.0
        for y in range(8):
            for x in range(8):
                p = 1 / (1 + math.exp(-float(own[b, k, y, x].detach())))
                mass, mx, my = mass + p, mx + p * x, my + p * y
        for y in range(6):
            for x in range(6):
                p = 1 / (1 + math.exp(-float(logits[b, k, y, x].detach())))
                away = math.hypot(x - float(cell[0]), y - float(cell[1]))
                truth = math.exp(-(away**2) / (2 * 0.8**2)) if away <= 4 * 0.8 else 0.0
                heatmap -= (truth * math.log(p) + (1 - truth) * math.log(1 - p)) / 36 / 5
        at = [(mean / mass + 0.5) * SIZE / 8 - 0.5 for mean in (mx, my)]
        coordinate += math.hypot(at[0] - float(marks[b, k, 0]), at[1] - float(marks[b, k, 1])) / SIZE / 5
    np.testing.assert_allclose(task.predict(view)["landmarks"][1, 2].detach().numpy(), at)
    found = task.step(batch, Progress(step=0, total_steps=1))
    assert found.logs["coordinate"].item() == pytest.approx(coordinate, rel=1e-5)
    assert found.logs["heatmap"].item() == pytest.approx(heatmap, rel=1e-5)
    assert found.loss.item() == pytest.approx(3 * coordinate + 2 * heatmap, rel=1e-5)


def test_a_fresh_head_starts_with_nearly_empty_heatmaps() -> None:
    """Half-full cells would put every landmark into the center, and the loss would have to empty them first."""
    task = build(heatmap_size=None)
    logits = task.head(task.backbone.forward_pyramid(torch.zeros(1, 3, SIZE, SIZE).double()))
    assert logits.shape[-1] == SIZE // 4
    assert float(logits.detach().sigmoid().mean()) < 0.05


class Turned(Supervised):
    """An evaluation whose frames are turned, moved and, every other one, mirrored."""

    reduction = None

    def draw(self, rng: Any) -> Any:
        return self

    def __call__(self, sample: Sample, image: np.ndarray, out: Any) -> Any:
        self.seen = getattr(self, "seen", -1) + 1
        move = similarity(self.size, rotation=25 * self.seen, scale=0.5, shift=(0.05, -0.04))
        real = self._frame_of(sample, image).compose(move)
        return self._move_labels(sample, image, real), [real.image(image)], [], []

    def _frame_of(self, sample: Sample, image: np.ndarray) -> Frame:
        _, height, width = 0, *image.shape[:2]
        plain, *_ = super().draw(None)(sample, image)
        assert height == width
        return Frame(plain.frame.astype(np.float64), self.size, self.augment.warp)


CROPS = [
    Augment(),
    Augment(crop="box", crop_scale=1.3),
    Augment(crop="five_points"),
    presets.FARL_PARSING_LAPA,
]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("crop", CROPS, ids=["whole", "box", "five points", "tanh warp"])
@pytest.mark.parametrize("unit", ["interocular", "box"])
def test_the_moved_truth_has_no_error_in_the_stored_image(unit: Any, crop: Augment, turned: bool) -> None:
    source = Faces(n=7, size=96, yaw=10)
    view = (Turned if turned else Supervised)(crop, SIZE, train=False)
    meter = AlignmentMeter(source, IBUG, AlignmentArgs(unit=unit), crop)
    off = AlignmentMeter(source, IBUG, AlignmentArgs(unit=unit), crop)
    for batch in EvalLoader(source, view, batch_size=3):
        meter.add({"landmarks": batch.landmarks}, batch)
        off.add({"landmarks": batch.landmarks + torch.tensor([1.0, 0.0])}, batch)
    assert meter.per_image().max() < 1e-4
    result = off.result()
    if crop == Augment() and not turned:  # a pixel of the view is three of the image
        expected = []
        for i in range(7):
            marks, box = source[i].landmarks, source[i].box
            length = {
                "interocular": float(np.linalg.norm(marks[36] - marks[45])),
                "box": math.sqrt((box[2] - box[0]) * (box[3] - box[1])),
            }[unit]
            expected.append(3.0 / length)
        assert result["headline"]["value"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert result["headline"]["name"] == f"nme_{unit}"


def test_points_that_are_not_annotated_do_not_count_even_where_they_are_nan() -> None:
    class Partly(Faces):
        provides = frozenset({"landmarks", "visible"})  # no box of its own

        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            hidden = np.arange(68) % 5 == 2
            sample.landmarks = np.where(hidden[:, None], np.nan, sample.landmarks)
            sample.visible = (~hidden).astype(np.uint8)
            return sample

    source = Partly(n=3, size=48)
    for unit in ("box", "diag", "interocular"):
        meter = AlignmentMeter(source, IBUG, AlignmentArgs(unit=unit), Augment())  # type: ignore[arg-type]
        for batch in EvalLoader(source, Supervised(Augment(), SIZE, train=False), batch_size=2):
            meter.add({"landmarks": batch.landmarks.nan_to_num(0)}, batch)
        assert meter.result()["headline"]["value"] < 1e-4, unit


@pytest.mark.parametrize("hidden", [False, True])
def test_points_marked_invisible_count_where_it_is_asked_for(hidden: bool) -> None:
    """AFLW-19: FaRL trains and scores on all its points. One without coordinates counts in neither."""

    class Partly(Faces):
        provides = Faces.provides | {"visible"}

        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.landmarks[67] = np.nan
            sample.visible = (np.arange(68) < 30).astype(np.uint8)
            return sample

    source = Partly(n=2, size=SIZE)
    (batch,) = EvalLoader(source, Supervised(Augment(), SIZE, train=False), batch_size=2)
    off = torch.zeros(68, 2)
    off[40:60, 0] = 1.0  # a pixel, on points that are marked invisible
    args = AlignmentArgs(unit="diag", hidden=hidden, thresholds=())
    meter = AlignmentMeter(source, IBUG, args, Augment())
    meter.add({"landmarks": batch.landmarks.nan_to_num(0) + off}, batch)
    boxes = [source[i].box for i in range(2)]
    sides = [math.hypot(b[2] - b[0], b[3] - b[1]) for b in boxes if b is not None]
    wanted = float(np.mean([20 / 67 / side for side in sides])) if hidden else 0.0
    result = meter.result()
    assert result["nme_diag"] == pytest.approx(wanted, abs=1e-6)
    assert not [name for name in result if "@" in name]

    torch.manual_seed(0)
    task = Alignment(Backbone("test_resnet", image_size=SIZE), IBUG, width=8, unit="diag", hidden=hidden).eval()
    losses = []
    for marks in (batch.landmarks, batch.landmarks + off):
        view = batch.views[0].float()
        one = Batch(views=[view], params=[], index=batch.index, landmarks=marks, visible=batch.visible)
        losses.append(float(task.step(one, Progress(step=0, total_steps=1)).loss))
    assert math.isfinite(losses[0])
    assert (losses[0] != losses[1]) == hidden


def test_other_landmarks_than_those_of_training_are_said() -> None:
    source = Faces(n=3, size=48)
    with pytest.raises(DataError, match=r"ibug68.*wflw98"):
        AlignmentMeter(source, Labels(points=98, layout="wflw98"), AlignmentArgs(), Augment())
    meter = AlignmentMeter(source, Labels(points=5), AlignmentArgs(unit="box"), Augment())
    (batch,) = EvalLoader(source, Supervised(Augment(), SIZE, train=False), batch_size=3)
    with pytest.raises(DataError, match="68 landmarks"):
        meter.add({"landmarks": torch.zeros(3, 5, 2)}, batch)


@pytest.mark.parametrize("crop", CROPS, ids=["whole", "box", "five points", "tanh warp"])
def test_oracle_scores_give_the_mask_back(crop: Augment) -> None:
    """Views larger than the images, so that what is lost is at edges only; nothing outside the crop is counted."""
    size = 256
    source = Faces(n=5, size=64, yaw=10, roll=10)
    crop = crop if crop.crop == "whole" or crop.warp else Augment(crop=crop.crop, crop_scale=3.0)
    meter = ParsingMeter(source.mask_names, source, crop)
    for batch in EvalLoader(source, Supervised(crop, size, train=False), batch_size=2):
        classes = batch.mask.long().where(batch.mask != 255, 0)
        meter.add({"scores": torch.nn.functional.one_hot(classes, 11).permute(0, 3, 1, 2).float()}, batch)
    found = meter.result()
    assert found["headline"]["value"] > 0.97
    assert found["subsets"]["first"]["mean_f1_per_image"] > 0.95


def test_parsing_loss_leaves_out_what_is_ignored() -> None:
    torch.manual_seed(0)
    task = Parsing(Backbone("test_resnet", image_size=SIZE), Labels(mask_names=("none", "skin")), width=8).eval()
    view = torch.randn(1, 3, SIZE, SIZE)
    mask = torch.randint(0, 2, (1, SIZE, SIZE), dtype=torch.uint8)
    mask[:, :9] = 255
    batch = Batch(views=[view], params=[], index=torch.arange(1), mask=mask)
    with torch.no_grad():
        scores = task.predict(view)["scores"]
        full = torch.nn.functional.interpolate(scores, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        found = task.step(batch, Progress(step=0, total_steps=1)).loss.item()
    logs = full[0].log_softmax(0)
    cells = [-float(logs[int(mask[0, y, x]), y, x]) for y in range(9, SIZE) for x in range(SIZE)]
    assert found == pytest.approx(sum(cells) / len(cells), rel=1e-5)


@pytest.mark.parametrize("outside", ["background", "ignored"])
def test_what_lies_outside_the_image_is_background_as_in_farl(outside: Any) -> None:
    """It counts or not as is asked for; pixels that the masks themselves leave out never do."""

    class Partly(Faces):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.mask = np.full_like(sample.mask, 3)
            sample.mask[:, :12] = 255
            return sample

    source = Partly(n=2, size=SIZE)
    labels = Labels.of(source, Parsing.needs)
    task = Parsing(Backbone("test_resnet", image_size=SIZE), labels, width=8, outside=outside)
    crop = Augment(crop_scale=2.0, flip=1.0)
    view = finetune.training_view(task, labels, crop)
    batch = next(iter(TrainLoader(source, view, batch_size=2, seed=0)))
    mirrored, beyond = 2, 0 if outside == "background" else 255  # brows have sides
    inside = batch.mask[:, 8:24, 8:24]
    assert (inside[..., 10:] == 255).all()
    assert (inside[..., :10] == mirrored).all()
    assert (batch.mask[:, :8] == beyond).all()
    assert (batch.mask[:, :, 24:] == beyond).all()
