"""The mistakes of a task whose answers are planted: the labels of synthetic faces, wrong in a few known places."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from facessl.core import plugins
from facessl.evaluation.mistakes import Mistakes, find_mistakes
from facessl.inference import prediction_pictures
from facessl.inference.trained_task import Trained
from facessl.models.backbone import Backbone
from facessl.tasks.base import Labels
from facessl.views.augment import Augment
from tests.tasks.faces import Faces

SIZE = 32
SOURCE = Faces(n=12, size=SIZE, identities=3)
SAMPLES = [SOURCE[i] for i in range(len(SOURCE))]


def found_by(name: str, answers: dict[str, Tensor], count: int = 3, train: Any = None, **values: Any) -> Mistakes:
    """What is found where a task answers image by image with the rows of `answers`."""
    kind = plugins.find("tasks", name)
    task = kind(Backbone("test_resnet", image_size=SIZE), Labels.of(SOURCE, kind.needs), **values)
    pixels = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in SAMPLES])  # type: ignore[arg-type]
    mean, std = (torch.tensor(v)[:, None, None] for v in (task.backbone.mean, task.backbone.std))

    def predict(x: Tensor) -> dict[str, Tensor]:
        raw = (x * std + mean) * 255  # which image a view shows
        rows = [(pixels - view).abs().sum((1, 2, 3)).argmin().item() for view in raw]
        return {key: values[rows] for key, values in answers.items()}

    task.predict = predict
    trained = Trained(task.eval(), SIZE, Augment(), {"task": {"name": name}})
    return find_mistakes(trained, SOURCE, count=count, batch_size=5, train=train)


def test_wrong_expressions_are_ranked_by_their_probability() -> None:
    label = torch.tensor([s.label for s in SAMPLES])
    classes = len(SOURCE.label_names)
    sure, told = torch.full((12,), 0.95), label.clone()
    for row, probability in ((3, 0.6), (7, 0.9), (4, 0.7), (10, 0.5)):
        told[row], sure[row] = (label[row] + 1) % classes, probability
    answers = torch.full((12, classes), 0.0)
    answers[torch.arange(12), told] = sure
    found = found_by("expression", {"probabilities": answers})
    assert [(m.index, m.measure, round(m.value, 6)) for m in found.worst] == [
        ((7,), "probability", 0.9), ((4,), "probability", 0.7), ((3,), "probability", 0.6),
    ]  # fmt: skip
    first = found.worst[0]
    names = SOURCE.label_names
    assert (first.label, first.prediction) == (names[int(label[7])], names[int(told[7])])
    assert first.keys == (SOURCE.key(7),)
    assert found.scores["accuracy"] == pytest.approx(8 / 12)
    assert [e.index for e in found.typical] == [(2,), (6,), (10,)]


def test_wrong_attributes_are_ranked_within_each() -> None:
    truth = torch.from_numpy(np.stack([s.attributes for s in SAMPLES]).astype(np.float32))  # type: ignore[misc]
    answers = 0.5 + 0.4 * (2 * truth - 1)
    answers[5, 1], answers[6, 1], answers[8, 2] = (
        1 - truth[5, 1],
        0.5 - 0.2 * (2 * truth[6, 1] - 1),
        0.5 - 0.3 * (2 * truth[8, 2] - 1),
    )
    found = found_by("attributes", {"probabilities": answers})
    names = SOURCE.attribute_names
    assert [(m.index[0], m.attribute, round(m.value, 3)) for m in found.worst] == [
        (5, names[1], 1.0), (6, names[1], 0.7), (8, names[2], 0.8),
    ]  # fmt: skip
    assert all({m.label, m.prediction} == {"yes", "no"} for m in found.worst)
    assert found.worst[0].label == ("yes" if truth[5, 1] else "no")


def test_landmarks_are_ranked_by_their_error_and_drawn_beside_the_label() -> None:
    points = torch.from_numpy(np.stack([s.landmarks for s in SAMPLES]))  # type: ignore[misc]
    moved = points.clone()
    for row, shift in ((2, 3.0), (9, 5.0)):
        moved[row, :, 0] += shift
    found = found_by("alignment", {"landmarks": moved}, count=2, width=8, heatmap_size=8)
    assert [m.index for m in found.worst] == [(9,), (2,)]
    eyes = float(np.linalg.norm(points[9, 36] - points[9, 45]))
    assert found.worst[0].value == pytest.approx(5 / eyes, rel=1e-5)
    assert found.worst[0].measure == "nme_interocular"
    picture = found.picture(found.worst[0])
    high, factor = 320, 320 / SIZE
    assert picture.shape == (high, 2 * high + 12, 3)
    for predicted, left in ((moved, 0), (points, high + 12)):
        x, y = ((predicted[9, 30].numpy() + 0.5) * factor - 0.5).round().astype(int)
        assert tuple(picture[y, left + x]) == prediction_pictures._POINT


def test_masks_are_ranked_by_the_mean_f1_of_the_image() -> None:
    classes = len(SOURCE.mask_names)
    masks = torch.from_numpy(np.stack([s.mask for s in SAMPLES]).astype(np.int64))  # type: ignore[misc]
    told = masks.clone()
    told[6] = 0  # nothing is found: no class but the background has an F1 above 0
    told[1, :, : SIZE // 2] = 0
    scores = torch.nn.functional.one_hot(told, classes).permute(0, 3, 1, 2).float()
    found = found_by("parsing", {"scores": scores}, count=2, width=8)
    assert [m.index for m in found.worst] == [(6,), (1,)]
    assert found.worst[0].value == 0
    hits = [2 * ((told[1] == c) & (masks[1] == c)).sum() / ((told[1] == c).sum() + (masks[1] == c).sum())
            for c in range(1, classes) if ((told[1] == c) | (masks[1] == c)).any()]  # fmt: skip
    assert found.worst[1].value == pytest.approx(float(np.mean(hits)), rel=1e-5)
    assert found.picture(found.worst[0]).shape[0] == 320


def test_wrong_pairs_are_ranked_by_their_distance_from_the_threshold() -> None:
    who = torch.from_numpy(SOURCE.column("identity"))
    embeddings = torch.eye(3)[who]
    embeddings[0] = torch.eye(3)[(who[0] + 1) % 3]  # looks like the next person
    found = found_by("verification", {"embeddings": embeddings}, count=50, dim=8)
    wrong = [i for i, pair in enumerate(SOURCE.pairs) if 0 in pair and (
        SOURCE.same[i] or who[pair].eq((who[0] + 1) % 3).any())]  # fmt: skip
    assert {m.index for m in found.worst} == {tuple(SOURCE.pairs[i].tolist()) for i in wrong}
    assert len(wrong) > 1
    for mistake in found.worst:
        first, second = mistake.index
        assert (mistake.label == "same person") == bool(who[first] == who[second])
        assert mistake.label != mistake.prediction
        assert mistake.value == pytest.approx(float(embeddings[first] @ embeddings[second]))
    assert found.picture(found.worst[0]).shape == (320, 2 * 320 + 12, 3)


def test_training_images_mean_shape_and_most_frequent_class_of_each_pixel_are_scored() -> None:
    points = np.stack([s.landmarks for s in SAMPLES])  # type: ignore[misc]
    found = found_by("alignment", {"landmarks": torch.from_numpy(points)}, train=SOURCE, width=8, heatmap_size=8)
    eyes = np.linalg.norm(points[:, 36] - points[:, 45], axis=1)
    errors = np.linalg.norm(points - points.mean(0), axis=2).mean(1) / eyes
    assert found.scores["nme_interocular"] < 1e-6
    assert found.scores["constant"]["answer"] == "mean shape"
    assert found.scores["constant"]["scores"]["nme_interocular"] == pytest.approx(errors.mean(), rel=1e-5)
    masks = np.stack([s.mask for s in SAMPLES])  # type: ignore[misc]
    mode = np.array([np.bincount(column).argmax() for column in masks.reshape(12, -1).T]).reshape(SIZE, SIZE)
    scores = torch.nn.functional.one_hot(torch.from_numpy(masks).long(), 11).permute(0, 3, 1, 2).float()
    other = found_by("parsing", {"scores": scores}, train=SOURCE, width=8).scores
    assert other["pixel_accuracy"] == 1
    assert other["constant"]["scores"]["pixel_accuracy"] == pytest.approx((masks == mode).mean())
