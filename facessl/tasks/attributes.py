"""Attributes: forty yes-or-no questions (or any number of them) about one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from facessl.core.errors import DataError, listed
from facessl.core.types import Batch, Progress, Step
from facessl.data.face_square import Frame
from facessl.data.label_fractions import class_mapping
from facessl.data.source import Source
from facessl.metrics.multilabel import attribute_scores
from facessl.models.backbone import Backbone
from facessl.tasks.base import Collected, Example, Examples, Labels, Predictions, headline
from facessl.views.augment import FRA_ATTRIBUTES, Augment


@dataclass(frozen=True)
class AttributesArgs:
    """Settings of the attribute task.

    Attributes:
        head: fra (its released three layers) or linear.
    """

    head: Literal["fra", "linear"] = "fra"


class Attributes(nn.Module):
    """Multi-label attributes: binary cross entropy, accuracy as the mean over images and attributes.

    `finetune` has the settings of FRA's section 4.2 and its released script (main_far.py): a head C-512-256-A with
    batch norm, dropout 0.2 and ReLU behind the first two.
    """

    Args: ClassVar[type[AttributesArgs]] = AttributesArgs
    needs: ClassVar[frozenset[str]] = frozenset({"attributes"})
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "finetune": {"image_size": 224, "batch_size": 256, "epochs": 100},
    }
    augments: ClassVar[Mapping[str, Augment]] = {"finetune": FRA_ATTRIBUTES}

    def __init__(self, backbone: Backbone, labels: Labels, **values: Any) -> None:
        """The questions are `labels.attribute_names`; `values` are fields of `AttributesArgs`. DataError: none."""
        super().__init__()
        args = AttributesArgs(**values)
        self.names = labels.attribute_names
        if not self.names:
            raise DataError("an attribute task needs at least one attribute, and the source names none")
        self.backbone = backbone
        count = len(self.names)
        if args.head == "linear":
            self.head: nn.Module = nn.Linear(backbone.num_features, count)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
        else:
            self.head = nn.Sequential(
                *(nn.Linear(backbone.num_features, 512), nn.BatchNorm1d(512), nn.Dropout(0.2), nn.ReLU()),
                *(nn.Linear(512, 256), nn.BatchNorm1d(256), nn.Dropout(0.2), nn.ReLU()),
                nn.Linear(256, count),
            )

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Mean binary cross entropy over images and attributes; logs `binary_cross_entropy`."""
        assert batch.attributes is not None
        logits = self.head(self.backbone(batch.views[0]))  # (B, A)
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.attributes.float())
        return Step(loss, {"binary_cross_entropy": loss.detach()})

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) normalized -> probabilities (B, A)."""
        return {"probabilities": self.head(self.backbone(x)).float().sigmoid()}

    def meter(self, source: Source, augment: Augment) -> AttributesMeter:
        """Scores on `source`, whose attributes must be among those of the training images."""
        return AttributesMeter(self.names, source)

    def describe(self, predictions: Predictions, row: int, frame: Frame, height: int, width: int) -> dict[str, Any]:
        """The probability of each attribute."""
        probabilities = predictions["probabilities"][row]
        return {"attributes": {name: round(float(p), 4) for name, p in zip(self.names, probabilities, strict=True)}}


class AttributesMeter:
    """Mean accuracy over images and attributes, and a row per attribute."""

    def __init__(self, names: tuple[str, ...], source: Source) -> None:
        if not source.attribute_names:
            raise DataError(f"the test source has no attributes; those of training are {listed(names)}")
        self.names = tuple(source.attribute_names)
        self.columns = class_mapping(self.names, names, "attributes")
        self.collected = Collected(source)

    def add(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Predictions of one batch."""
        self.collected.add(batch, predicted=predictions["probabilities"][:, self.columns], target=batch.attributes)

    def per_image(self) -> np.ndarray:
        """(N,) fraction of right answers on each image."""
        return ((self.collected["predicted"] >= 0.5) == (self.collected["target"] > 0)).mean(1)

    def examples(self) -> Examples:
        """One answer per image and attribute; the wrong ones of an attribute by their probability."""
        index, probability = self.collected["index"], self.collected["predicted"]
        target, answer = self.collected["target"] > 0, probability >= 0.5  # (N, A)
        confidence = np.where(answer, probability, 1 - probability)
        count = len(self.names)

        def example(position: int) -> Example:
            row, column = divmod(position, count)
            label, prediction = (("no", "yes")[int(values[row, column])] for values in (target, answer))
            value = float(confidence[row, column])
            return Example((int(index[row]),), label, prediction, "probability", value, self.names[column])

        badness = np.where(answer == target, np.nan, confidence)
        return Examples(badness.ravel(), example, kinds=np.tile(np.arange(count), len(index)))

    def result(self) -> dict[str, Any]:
        """Scores with intervals; headline `mean_accuracy`."""
        scores = attribute_scores(self.collected["predicted"], self.collected["target"], names=self.names)
        return {
            "headline": headline("mean_accuracy", scores["mean_accuracy"], scores["mean_accuracy_interval"]),
            **scores,
            **self.collected.breakdown({"mean_accuracy": self.per_image()}),
        }
