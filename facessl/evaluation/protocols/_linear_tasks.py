"""Targets of a linear map for each task, and its outputs as predictions for the task's own meter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facessl.core.errors import ConfigError
from facessl.data.label_fractions import same_classes
from facessl.data.source import Source
from facessl.evaluation.baselines import Constant
from facessl.evaluation.features import Features
from facessl.evaluation.protocols._solvers import Loss
from facessl.tasks.alignment import AlignmentArgs, AlignmentMeter
from facessl.tasks.attributes import AttributesMeter
from facessl.tasks.base import Labels
from facessl.tasks.expression import ExpressionMeter
from facessl.views.augment import Augment


@dataclass(frozen=True)
class Kind:
    """A task that a linear map can have."""

    needs: str  # the field of `Sample` that is predicted
    loss: Loss  # of the map
    chosen_by: str  # the score that penalties are chosen by, `-` before one of which less is better
    meter: Callable[[Source, Labels, Augment], Any]  # the task's own, with a headline that is a mean over images
    # (N, M) float64 outputs and the side of the views in pixels -> what `Task.predict` gives
    predictions: Callable[[Tensor, int], dict[str, Tensor]]


def _alignment_meter(source: Source, labels: Labels, augment: Augment) -> AlignmentMeter:
    args = AlignmentArgs(unit="interocular" if labels.layout else "box")
    return AlignmentMeter(source, labels, args, augment)


KINDS = {
    "expression": Kind(
        needs="label",
        loss="classes",
        chosen_by="accuracy",
        meter=lambda source, labels, _: ExpressionMeter(labels.label_names, source),
        predictions=lambda outputs, _: {"probabilities": outputs.softmax(1)},
    ),
    "attributes": Kind(
        needs="attributes",
        loss="attributes",
        chosen_by="mean_accuracy",
        meter=lambda source, labels, _: AttributesMeter(labels.attribute_names, source),
        predictions=lambda outputs, _: {"probabilities": outputs.sigmoid()},
    ),
    # The map gives the landmarks' places in the view, as fractions of its side.
    "alignment": Kind(
        needs="landmarks",
        loss="squares",
        chosen_by="-nme",
        meter=_alignment_meter,
        predictions=lambda outputs, size: {"landmarks": outputs.reshape(len(outputs), -1, 2) * size - 0.5},
    ),
}


@dataclass(frozen=True)
class Loaded:
    """One part of the data: features, and the numbers (N,) or (N, M) to predict from them."""

    source: Source
    features: Features
    target: np.ndarray

    def rows(self, chosen: np.ndarray) -> Loaded:
        return Loaded(self.source, self.features.rows(chosen), self.target[chosen])


class LinearTask:
    """A task with its training images' labels."""

    def __init__(self, name: str, train: Source, augment: Augment, size: int) -> None:
        """`name` is in `KINDS`; `augment` and `size` (pixels) are those of the views of the features."""
        self.name, self.kind, self.augment, self.size = name, KINDS[name], augment, size
        self.labels = Labels(label_names=train.label_names, attribute_names=train.attribute_names, layout=train.layout)
        self._named = bool(train.label_names)
        self._mean: np.ndarray | None = None

    def check(self, source: Source, part: str) -> None:
        """Raise ConfigError or DataError if `source` cannot be the part (training, validation, test) called `part`."""
        if self.kind.needs not in source.provides:
            given = ", ".join(sorted(source.provides)) or "images only"
            raise ConfigError(f"the task {self.name} needs {self.kind.needs}, and the {part} source gives {given}")
        if self.kind.loss == "classes":
            same_classes(np.zeros(0, np.int64), source.label_names, self.labels.label_names, part)
        self.kind.meter(source, self.labels, self.augment)

    def load(self, source: Source, features: Features) -> Loaded:
        """A part with its target; the training part comes first."""
        if self.kind.needs not in features.fields:
            raise ConfigError(f"{self.kind.needs} has another shape in some images, so that no linear map can give it")
        target = features.fields[self.kind.needs]
        if self.kind.loss == "squares":
            return Loaded(source, features, self._places(features))
        if self.kind.loss == "classes":
            target = same_classes(target, source.label_names, self.labels.label_names)
            if not self._named:
                count = max(len(self.labels.label_names), 1 + int(target.max()))
                self.labels = replace(self.labels, label_names=tuple(map(str, range(count))))
            features = replace(features, fields={**features.fields, "label": target})
        return Loaded(source, features, target)

    def _places(self, features: Features) -> np.ndarray:
        """(N, 2K) landmarks; a point that is not annotated has its mean place in training."""
        places = (features.fields["landmarks"].astype(np.float64) + 0.5) / self.size
        known = features.fields.get("visible", np.ones(places.shape[:2])).astype(bool)[..., None]
        if self._mean is None:
            self._mean = np.where(known, places, 0).sum(0) / known.sum(0).clip(1)
        return np.where(known, places, self._mean).reshape(len(places), -1)

    def scores(self, part: Loaded, outputs: list[np.ndarray]) -> np.ndarray:
        """(L, N) scores of every image by the outputs (N, M) of L maps; larger is better, NaN if there is none."""
        scores: np.ndarray = self._measured(part, outputs).per_image().reshape(len(outputs), -1)
        return -scores if self.kind.chosen_by.startswith("-") else scores

    def result(self, part: Loaded, outputs: np.ndarray) -> dict[str, Any]:
        """The meter's scores of the test images; for landmarks also `constant`, those of training's mean landmarks."""
        result: dict[str, Any] = self._measured(part, [outputs]).result()
        if self._mean is not None:
            always = Constant("mean shape", {"landmarks": torch.from_numpy(self._mean * self.size - 0.5)})
            meter = self._measured(part, [])
            meter.add(always.repeated(len(outputs)), part.features.batch(self.size))
            result["constant"] = always.result(meter)
        return result

    def _measured(self, part: Loaded, outputs: list[np.ndarray]) -> Any:
        meter, batch = self.kind.meter(part.source, self.labels, self.augment), part.features.batch(self.size)
        for one in outputs:
            meter.add(self.kind.predictions(torch.from_numpy(one).double(), self.size), batch)
        return meter
