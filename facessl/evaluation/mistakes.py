"""Mistakes of a trained task on labeled images, and pictures of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from facessl.core.errors import ConfigError
from facessl.core.types import IGNORE_INDEX, Sample
from facessl.data.decode import pixels
from facessl.data.face_square import Frame
from facessl.data.label_fractions import class_mapping, usable
from facessl.data.source import Source, open_source
from facessl.evaluation.baselines import constant
from facessl.evaluation.score import score
from facessl.inference import prediction_pictures
from facessl.inference.trained_task import Trained
from facessl.tasks.base import Example, Examples

#: The shorter side of an image in a picture in pixels, at least and at most, and the gap between two.
_LOW, _HIGH, _GAP = prediction_pictures.READABLE, 480, 12


@dataclass(frozen=True)
class Mistakes:
    """The worst answers of a trained task on a source."""

    trained: Trained  # the task
    source: Source  # the images; `Example.index` points into it
    scores: dict[str, Any]  # of all images (`Meter.result`, and `skipped`)
    # Wrong answers, the worst first: the most confident ones (expression, attributes, verification), or the images with
    # the largest error (alignment, parsing). Of attributes the worst of each attribute, in their order. Empty if a
    # plug-in's meter has no `examples`.
    worst: list[Example]
    typical: list[Example]  # answers spread evenly over the source, right or wrong
    precision: str = "fp32"  # of the forward pass

    def picture(self, example: Example, *, panel: bool = True) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the part of the image that the task sees, with what it predicts drawn on it.

        Landmarks and masks of the labels are drawn on the same part to its right. Of a pair both images are shown, as
        they are. `panel`: to the right of all, name the colors of a mask, or list the attributes that were predicted.
        DataError: the image can no longer be read.
        """
        shown = [_Shown.of(self.trained, self.source[index]) for index in example.index]
        if len(shown) > 1:
            return _beside([one.image for one in shown])
        one, task = shown[0], self.trained.task
        raw = self.trained.predict([one.whole], [one.frame], precision=self.precision)
        predicted = task.describe(raw, 0, one.frame, *one.whole.shape[:2])
        faces = [face for face in (predicted, _label(self.source, one.sample, predicted)) if face]
        picture = _beside([one.drawn(face) for face in faces])
        return prediction_pictures.with_panel(picture, faces) if panel else picture


def find_mistakes(
    trained: Trained, source: str | Source, *, count: int = 12, train: Source | None = None, **options: Any
) -> Mistakes:
    """The worst and the most confident mistakes of a trained task on labeled images, by the pass that scores it.

    ```
    found = find_mistakes(load_trained("runs/expression"), "labeled/test")
    for mistake in found.worst:
        print(mistake.keys, mistake.label, mistake.prediction, mistake.value)
        picture = found.picture(mistake)
    ```

    Args:
        trained: from `facessl.load_trained`; computed on the device its weights are on.
        source: images with the labels of the task, of verification with pairs.
        count: mistakes, at most; of attributes of each one. Also the number of typical answers.
        train: training images, whose mean shape or most frequent class of each pixel is scored as well
            (`scores["constant"]`).
        options: batch_size, workers, precision and max_bad (default 1), as in `facessl.embed`.

    Raises:
        ConfigError: `count` is below 1, the source is a stream, or has classes that training lacks.
        DataError: the source lacks the labels, or no image of it can be read.
    """
    if count < 1:
        raise ConfigError(f"count = {count} is out of range: give 1 or more")
    opened = open_source(source)
    if opened.streaming:
        raise ConfigError("mistakes are found on images by position, and the source is a stream: use shards on a disk")
    task = trained.task
    opened = usable(opened, task.needs if opened.pairs is None else ())
    crop, size = trained.augment, trained.image_size
    baseline = None if train is None else constant(task, train, crop, image_size=size)
    scores, meter = score(task, opened, crop, image_size=size, baseline=baseline, **options)
    answers: Examples | None = meter.examples() if hasattr(meter, "examples") else None
    worst = [] if answers is None else ranked(answers.badness, count, answers.kinds)
    typical = [] if answers is None else spread(len(answers.badness), count)

    def example(position: int) -> Example:
        assert answers is not None
        answer = answers.example(position)
        return replace(answer, keys=tuple(opened.key(index) for index in answer.index))

    shown = [example(i) for i in worst], [example(i) for i in typical]
    return Mistakes(trained, opened, scores, *shown, options.get("precision", "fp32"))


def ranked(badness: np.ndarray, count: int, kinds: np.ndarray | None = None) -> list[int]:
    """Positions of the `count` largest numbers of each kind, NaN left out; kinds in their order, the largest first."""
    known = np.flatnonzero(~np.isnan(badness))
    order = known[np.argsort(-badness[known], kind="stable")]
    if kinds is None:
        return order[:count].tolist()
    return [int(i) for kind in np.unique(kinds) for i in order[kinds[order] == kind][:count]]


def spread(total: int, count: int) -> list[int]:
    """`count` positions spread evenly over `total`, each once."""
    middles = (np.arange(min(count, total)) + 0.5) * total / max(1, min(count, total))
    return middles.astype(int).tolist()


@dataclass(frozen=True)
class _Shown:
    """The part of an image that a view shows."""

    sample: Sample
    whole: np.ndarray  # (H, W, 3) uint8, the stored image
    frame: Frame
    part: tuple[slice, slice]  # its rows and columns
    image: np.ndarray  # (h, w, 3) uint8 of the part, its shorter side brought to `_LOW` to `_HIGH` pixels
    factor: float  # by which it was resized

    @classmethod
    def of(cls, trained: Trained, sample: Sample) -> _Shown:
        image = pixels(sample)
        frame = trained.augment.frame(sample, image.shape, trained.image_size)
        ends = np.array([(x, y) for x in (-0.5, frame.size - 0.5) for y in (-0.5, frame.size - 0.5)])
        corners, (height, width) = frame.inverse_points(ends) + 0.5, image.shape[:2]
        left, top = np.floor(corners.min(0)).clip(0, (width - 1, height - 1)).astype(int).tolist()
        right, bottom = np.ceil(corners.max(0)).clip((left + 1, top + 1), (width, height)).astype(int).tolist()
        side, part = min(bottom - top, right - left), (slice(top, bottom), slice(left, right))
        factor = min(max(side, _LOW), _HIGH) / side
        size = max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor))
        filter = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        shown = image[part] if factor == 1 else cv2.resize(image[part], size, interpolation=filter)
        return cls(sample, image, frame, part, shown, factor)

    def drawn(self, face: Mapping[str, Any]) -> np.ndarray:
        """The part with a face, given in pixels of the whole image, drawn on it."""
        moved, (height, width) = dict(face), self.image.shape[:2]
        if "landmarks" in face:
            rows, columns = self.part
            points = np.asarray(face["landmarks"], np.float64).reshape(-1, 2) - (columns.start, rows.start)
            moved["landmarks"] = (points + 0.5) * self.factor - 0.5
        if "mask" in face:
            moved["mask"] = cv2.resize(face["mask"][self.part], (width, height), interpolation=cv2.INTER_NEAREST)
        moved["box"] = (-0.5, -0.5, width - 0.5, height - 0.5)
        return prediction_pictures.draw(self.image, [moved], panel=False)


def _label(source: Source, sample: Sample, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """The label as `prediction_pictures.draw` takes it, of tasks whose answer it takes a picture to show."""
    if "landmarks" in predicted and sample.landmarks is not None:
        known = np.ones(len(sample.landmarks), bool) if sample.visible is None else sample.visible > 0
        layout = predicted.get("layout") if known.all() else None
        return {"landmarks": sample.landmarks[known], "layout": layout} if known.any() else {}
    if "mask" in predicted and sample.mask is not None:
        names = predicted["classes"]
        classes = np.zeros(256, np.uint8)
        classes[: len(source.mask_names)] = class_mapping(source.mask_names, names, "mask classes")
        return {"mask": np.where(sample.mask == IGNORE_INDEX, 0, classes[sample.mask]), "classes": names}
    return {}


def _beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    tallest = max(picture.shape[0] for picture in pictures)
    pads = [((0, tallest - picture.shape[0]), (0, _GAP), (0, 0)) for picture in pictures]
    columns = [np.pad(picture, pad, constant_values=255) for picture, pad in zip(pictures, pads, strict=True)]
    return np.concatenate(columns, axis=1)[:, :-_GAP]
