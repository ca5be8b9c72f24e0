"""What a linear map is fitted to for each task, how a penalty is chosen, and how the test images are scored."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from facessl.core.errors import ConfigError
from facessl.core.types import Batch
from facessl.data.labels import same_classes
from facessl.data.layouts import layout
from facessl.data.source import Source
from facessl.evaluation.features import Features, Framing, view_points
from facessl.evaluation.protocols._solvers import Loss
from facessl.metrics import nme
from facessl.metrics.accuracy import accuracy
from facessl.metrics.multilabel import attribute_scores
from facessl.metrics.verification import cosine, verification
from facessl.tasks.base import Collected


class LinearTask(Protocol):
    """A task for `linear`.

    Attributes:
        needs: the field of `Sample` that is predicted.
        loss: of the map.
        chosen_by: name of the score that penalties are chosen by.
    """

    needs: str
    loss: Loss
    chosen_by: str

    def check(self, source: Source, part: str) -> None:
        """ConfigError where `source` cannot be the part (training, validation, test) called `part`."""
        ...

    def target(self, found: Features, source: Source) -> np.ndarray:
        """(N,) or (N, M) numbers that the map is fitted to."""
        ...

    def score(self, outputs: np.ndarray, found: Features, target: np.ndarray) -> float:
        """How good (N, M) outputs are; larger is better."""
        ...

    def report(self, outputs: np.ndarray, found: Features, target: np.ndarray, source: Source) -> dict[str, Any]:
        """The scores of the test images, with intervals."""
        ...


class Expression:
    """One of K classes."""

    needs, chosen_by = "label", "accuracy"
    loss: Loss = "classes"

    def __init__(self, train: Source) -> None:
        self.names = tuple(train.label_names)

    def check(self, source: Source, part: str) -> None:
        same_classes(np.zeros(0, np.int64), tuple(source.label_names), self.names, part)

    def target(self, found: Features, source: Source) -> np.ndarray:
        return same_classes(found.fields["label"], tuple(source.label_names), self.names)

    def score(self, outputs: np.ndarray, found: Features, target: np.ndarray) -> float:
        return float((outputs.argmax(1) == target).mean())

    def report(self, outputs: np.ndarray, found: Features, target: np.ndarray, source: Source) -> dict[str, Any]:
        predicted = outputs.argmax(1)
        scores = accuracy(predicted, target)
        names = self.names
        return {
            "headline": _headline("accuracy", scores.accuracy, scores.accuracy_interval),
            "accuracy": scores.accuracy,
            "accuracy_interval": list(scores.accuracy_interval),
            "mean_class_accuracy": scores.mean_class_accuracy,
            "mean_class_accuracy_interval": list(scores.mean_class_accuracy_interval),
            "macro_f1": scores.macro_f1,
            "macro_f1_interval": list(scores.macro_f1_interval),
            "majority_class": float(np.bincount(target).max() / len(target)),
            "per_class": {names[c] if c < len(names) else str(c): share for c, share in scores.per_class.items()},
            **_breakdown(found, source, "accuracy", (predicted == target).astype(float)),
        }


class Attributes:
    """A yes-or-no answers."""

    needs, chosen_by = "attributes", "mean_accuracy"
    loss: Loss = "attributes"

    def __init__(self, train: Source) -> None:
        self.names = tuple(train.attribute_names)

    def check(self, source: Source, part: str) -> None:
        if tuple(source.attribute_names) != self.names:
            raise ConfigError(
                f"the {len(source.attribute_names)} attributes of the {part} source are not the {len(self.names)} of "
                "training: name sources with the same attributes in the same order"
            )

    def target(self, found: Features, source: Source) -> np.ndarray:
        return found.fields["attributes"]

    def score(self, outputs: np.ndarray, found: Features, target: np.ndarray) -> float:
        return float(((outputs >= 0) == (target > 0)).mean())

    def report(self, outputs: np.ndarray, found: Features, target: np.ndarray, source: Source) -> dict[str, Any]:
        probabilities = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        scores = attribute_scores(probabilities, target, names=self.names)
        right = ((outputs >= 0) == (target > 0)).mean(1)
        return {
            "headline": _headline("mean_accuracy", scores["mean_accuracy"], scores["mean_accuracy_interval"]),
            **scores,
            **_breakdown(found, source, "mean_accuracy", right),
        }


class Alignment:
    """K landmarks: the map gives their places in the view, as fractions of its side."""

    needs, chosen_by = "landmarks", "-nme"
    loss: Loss = "squares"

    def __init__(self, train: Source, framing: Framing) -> None:
        self.size = framing.size
        self.layout = train.layout
        self.unit = "interocular" if self.layout else "box"
        self._mean: np.ndarray | None = None

    def check(self, source: Source, part: str) -> None:
        if source.layout != self.layout:
            raise ConfigError(
                f"the landmarks of the {part} source are ordered as {source.layout}, those of training as "
                f"{self.layout}: name sources with the same order"
            )

    def target(self, found: Features, source: Source) -> np.ndarray:
        """(N, 2K); a point that is not annotated stands where it is on average in training."""
        places = (view_points(found.fields["landmarks"], found.fields["frame"]) + 0.5) / self.size
        known = _visible(found)
        if self._mean is None:  # the first part is that of training
            count = known.sum(0)[:, None].clip(1)
            self._mean = np.where(known[..., None], places, 0).sum(0) / count
        return np.where(known[..., None], places, self._mean).reshape(len(places), -1)

    def score(self, outputs: np.ndarray, found: Features, target: np.ndarray) -> float:
        return -float(np.nanmean(self._errors(outputs, found)))

    def report(self, outputs: np.ndarray, found: Features, target: np.ndarray, source: Source) -> dict[str, Any]:
        errors = self._errors(outputs, found)
        assert self._mean is not None
        always = np.broadcast_to(self._mean.reshape(-1), outputs.shape)
        name = f"nme_{self.unit}"
        scores = nme.landmark_scores(errors, unit=self.unit)
        return {
            "headline": _headline(name, scores[name], scores[f"{name}_interval"], better="lower"),
            **scores,
            "mean_shape_nme": float(np.nanmean(self._errors(always, found))),
            **_breakdown(found, source, name, errors),
        }

    def _errors(self, outputs: np.ndarray, found: Features) -> np.ndarray:
        """(N,) errors in stored pixels."""
        truth = found.fields["landmarks"]
        places = outputs.reshape(truth.shape).astype(np.float64) * self.size - 0.5
        predicted = view_points(places, np.linalg.inv(found.fields["frame"].astype(np.float64)))
        return nme.nme(predicted, truth, unit=self._lengths(found), visible=_visible(found))

    def _lengths(self, found: Features) -> np.ndarray:
        truth = found.fields["landmarks"]
        if self.layout:
            return nme.eye_distance(truth, *layout(self.layout).ocular)
        return nme.box_size(found.fields.get("box", np.concatenate([truth.min(1), truth.max(1)], axis=1)))


def verified(found: Features, source: Source) -> dict[str, Any]:
    """Scores of the source's pairs by the cosine of their features; pairs with an unreadable image are left out."""
    place = np.full(len(source), -1, np.int64)
    place[found.index] = np.arange(len(found))
    pairs = place[np.asarray(source.pairs)]
    kept = (pairs >= 0).all(1)
    folds = source.folds
    scores = verification(
        cosine(found.array[pairs[kept, 0]], found.array[pairs[kept, 1]]),
        np.asarray(source.same)[kept],
        None if folds is None else np.asarray(folds)[kept],
    )
    return {
        "headline": _headline("accuracy", scores["accuracy"], scores["accuracy_interval"]),
        **scores,
        "pairs_left_out": int((~kept).sum()),
    }


def _visible(found: Features) -> np.ndarray:
    """(N, K) bool."""
    visible = found.fields.get("visible")
    return np.ones(found.fields["landmarks"].shape[:2], bool) if visible is None else visible.astype(bool)


def _headline(name: str, value: float, interval: Any, better: str = "higher") -> dict[str, Any]:
    return {"name": name, "value": value, "interval": list(interval), "better": better}


def _breakdown(found: Features, source: Source, name: str, values: np.ndarray) -> dict[str, Any]:
    """Scores of published subsets and of groups, where the source has them."""
    if source.streaming:
        return {}
    import torch

    group = found.fields.get("group")
    rows = Collected(source)
    index, groups = torch.from_numpy(found.index), None if group is None else torch.from_numpy(group)
    rows.add(Batch(views=[], params=[], index=index, group=groups))
    return rows.breakdown({name: values})
