"""Expression: one class per image, by a linear layer on the pooled embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from facessl.core.errors import ConfigError, DataError, listed
from facessl.core.precision import at_least_float32
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FROM_0, Rule, check_values
from facessl.data.face_square import Frame
from facessl.data.label_fractions import class_mapping, same_classes
from facessl.data.source import Source
from facessl.metrics.accuracy import accuracy, confusion
from facessl.models.backbone import Backbone
from facessl.models.layers.cam import class_activation_maps, flip_consistency
from facessl.tasks.base import Collected, Example, Examples, Labels, Predictions, headline
from facessl.views.augment import EAC_EXPRESSION, FRA_EXPRESSION, Augment

#: Largest number of classes with a confusion matrix in the result.
_CONFUSION = 100


@dataclass(frozen=True)
class ExpressionArgs:
    """Settings of the expression task.

    Attributes:
        consistency: weight of EAC's attention consistency (5 in its paper); 0: cross entropy alone.
        smoothing: label smoothing of the cross entropy, 0 or more and less than 1.
    """

    consistency: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        rules: dict[str, Rule] = {
            "consistency": FROM_0,
            "smoothing": (lambda v: 0 <= v < 1, "0 or more and less than 1"),
        }
        check_values(self, rules, prefix="task.")


class Expression(nn.Module):
    """Expression, or any other set of classes.

    `finetune` has the settings of FRA's section 4.2 and its released script (AdamW 2e-4, weight decay 0.05, cosine to
    1e-6, 5 epochs of warm-up, 100 epochs, batch 256); with `frozen: true` that is its linear probing. `eac` is erasing
    attention consistency (Zhang et al., ECCV 2022, Eq. 1-5): cross entropy of the image plus `consistency` times the
    mean squared difference between its class activation maps and the mirrored maps of the mirrored image. The
    images of a pair are erased independently, as the paper describes; `augment.shared_erasing: true` is its release.
    As there, each view goes through the network by itself, so that batch norm sees one view at a time, and the linear
    layer starts as PyTorch's does; without consistency it starts as FRA's (weights N(0, 0.01), no bias).
    """

    Args: ClassVar[type[ExpressionArgs]] = ExpressionArgs
    needs: ClassVar[frozenset[str]] = frozenset({"label"})
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "finetune": {"image_size": 224, "batch_size": 256, "epochs": 100},
        "eac": {
            "image_size": 224,
            "batch_size": 32,
            "epochs": 60,
            "optim": {
                **{"name": "adam", "lr": 1e-4, "weight_decay": 1e-4, "warmup_epochs": 0},
                **{"schedule": "exponential", "gamma": 0.9},
            },
            "task": {"consistency": 5.0},
        },
    }
    augments: ClassVar[Mapping[str, Augment]] = {"finetune": FRA_EXPRESSION, "eac": EAC_EXPRESSION}

    def __init__(self, backbone: Backbone, labels: Labels, **values: Any) -> None:
        """The classes are `labels.label_names`; `values` are fields of `ExpressionArgs`. DataError: fewer than two."""
        super().__init__()
        self.args = ExpressionArgs(**values)
        self.names = labels.label_names
        if len(self.names) < 2:
            raise DataError(f"an expression task needs two or more classes, and the source has {len(self.names)}")
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, len(self.names))
        if self.args.consistency == 0:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def check(self, augment: Augment) -> None:
        """ConfigError if consistency and pairs of views do not go together."""
        if self.args.consistency > 0 and not augment.pairs:
            raise ConfigError(
                f"task.consistency = {self.args.consistency:g} needs the mirrored image as a second view: use "
                "--augment.pairs true, or --task.consistency 0"
            )
        if self.args.consistency == 0 and augment.pairs:
            raise ConfigError(
                "augment.pairs = true makes a second view that task.consistency = 0 leaves unused: use "
                "--augment.pairs false, or --task.consistency 5"
            )

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Cross entropy of the first view; logs `cross_entropy` and, with two views, `attention_consistency`."""
        assert batch.label is not None
        if self.args.consistency == 0:
            logits = self.head(self.backbone(batch.views[0]))
            loss = F.cross_entropy(at_least_float32(logits), batch.label, label_smoothing=self.args.smoothing)
            return Step(loss, {"cross_entropy": loss.detach()})
        features, pooled = self.backbone.forward_both(batch.views[0])
        mirrored = self.backbone.forward_features(batch.views[1])
        logits = self.head(pooled)
        cross_entropy = F.cross_entropy(at_least_float32(logits), batch.label, label_smoothing=self.args.smoothing)
        maps = [class_activation_maps(m, self.head.weight) for m in (features, mirrored)]  # (B, K, h, w) each
        consistency = flip_consistency(*maps)
        loss = cross_entropy + self.args.consistency * consistency
        return Step(loss, {"cross_entropy": cross_entropy.detach(), "attention_consistency": consistency.detach()})

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) normalized -> probabilities (B, K)."""
        return {"probabilities": self.head(self.backbone(x)).float().softmax(1)}

    def meter(self, source: Source, augment: Augment) -> ExpressionMeter:
        """Scores on `source`, whose classes must be among those of the training images."""
        if not source.label_names:
            raise DataError(f"the test source has no classes; those of training are {listed(self.names)}")
        return ExpressionMeter(self.names, source, tuple(source.label_names))

    def describe(self, predictions: Predictions, row: int, frame: Frame, height: int, width: int) -> dict[str, Any]:
        """The likeliest class and the probability of each."""
        probabilities = predictions["probabilities"][row]
        return {
            "label": self.names[int(probabilities.argmax())],
            "probabilities": {name: round(float(p), 4) for name, p in zip(self.names, probabilities, strict=True)},
        }


class ExpressionMeter:
    """Accuracy, mean class accuracy, macro F1 and confusion."""

    def __init__(self, names: tuple[str, ...], source: Source, own: tuple[str, ...] = ()) -> None:
        """`own` are the class names of the source's labels if they are numbered otherwise than `names`.

        ConfigError: one of `own` is not among `names`.
        """
        self.names, self.own = names, own
        class_mapping(own, names)
        self.collected = Collected(source)

    def add(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Predictions of one batch."""
        assert batch.label is not None
        target = same_classes(batch.label.cpu().numpy(), self.own, self.names)
        probabilities = predictions["probabilities"]
        self.collected.add(batch, predicted=probabilities.argmax(1), probability=probabilities.amax(1), target=target)

    def per_image(self) -> np.ndarray:
        """(N,) 1 if an image was classified correctly, else 0."""
        return (self.collected["predicted"] == self.collected["target"]).astype(float)

    def examples(self) -> Examples:
        """One answer per image; the wrong ones by their probability."""
        columns = ("index", "predicted", "target", "probability")
        index, predicted, target, probability = map(self.collected.__getitem__, columns)

        def example(row: int) -> Example:
            names = (self.names[int(target[row])], self.names[int(predicted[row])])
            return Example((int(index[row]),), *names, "probability", float(probability[row]))

        return Examples(np.where(predicted != target, probability, np.nan), example)

    def result(self) -> dict[str, Any]:
        """Scores with intervals; headline `accuracy` (top-1, as the papers report it)."""
        predicted, target = self.collected["predicted"], self.collected["target"]
        scores, classes = accuracy(predicted, target), len(self.names)
        cells = confusion(predicted, target, classes).tolist() if classes <= _CONFUSION else None
        return {
            "headline": headline("accuracy", scores["accuracy"], scores["accuracy_interval"]),
            **scores,
            "majority_class": float(np.bincount(target).max() / len(target)),
            "per_class": {self.names[c]: value for c, value in scores["per_class"].items()},
            **({"class_names": list(self.names), "confusion": cells} if cells else {}),
            **self.collected.breakdown({"accuracy": self.per_image()}),
            "images": len(target),
        }
