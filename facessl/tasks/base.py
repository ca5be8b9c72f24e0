"""The interface of a downstream task. Nothing here is inherited: a task is any `nn.Module` with these members."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Required, TypedDict

import numpy as np
import torch
from torch import Tensor

from facessl.core.errors import DataError, PluginError
from facessl.core.types import Batch, Progress, Step
from facessl.data.face_square import Frame
from facessl.data.layouts import Layout, layout
from facessl.data.source import Source
from facessl.metrics.bootstrap import bootstrap_mean
from facessl.metrics.fairness import by_group
from facessl.models.backbone import Backbone
from facessl.views.augment import Augment

#: Outputs of `Task.predict` by name, with a row per image.
Predictions = Mapping[str, np.ndarray]
#: How a person's own labels are named on the command line.
_OWN = {
    "label": "labels-csv:FILE?label=COLUMN or a folder with one sub-folder per class",
    "attributes": "labels-csv:FILE?attributes=COLUMN,COLUMN (or *)",
    "identity": "labels-csv:FILE?identity=COLUMN",
    "landmarks": "landmarks-csv:FILE",
    "mask": "masks-folder:PATH",
}


@dataclass(frozen=True)
class Labels:
    """Labels of the training images, kept in the card of a trained model.

    Attributes:
        label_names: classes of an expression source, by index.
        attribute_names: attributes, by column.
        points: K, landmarks of an image; 0: none.
        layout: name of their order in `facessl.data.layouts`; None: unknown, then nothing is mirrored.
        mask_names: classes of the masks, by index, background first.
        mask_flip: class of the mirrored image by class of the image; None: the classes have no sides.
        identities: persons in the training images; 0: unknown.
    """

    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    points: int = 0
    layout: str | None = None
    mask_names: tuple[str, ...] = ()
    mask_flip: tuple[int, ...] | None = None
    identities: int = 0

    @property
    def order(self) -> Layout | None:
        """The landmarks' order, if it is known."""
        return layout(self.layout) if self.layout else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """The labels of a card."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    @classmethod
    def of(cls, source: Source, needs: frozenset[str]) -> Labels:
        """Labels of `source` that a task needs.

        Raises:
            DataError: it lacks a field that the task needs; both are named.
        """
        missing = sorted(needs - source.provides)
        if missing:
            provided = ", ".join(sorted(source.provides)) or "images"
            ways = "; ".join(_OWN[field] for field in missing if field in _OWN)
            raise DataError(
                f"the task needs the {' and '.join(missing)} of every image, and the source has only {provided}"
                + (f": your own come from {ways}" if ways else "")
            )
        points, identities = 0, 0
        if "landmarks" in needs:
            first = source[0].landmarks
            points = 0 if first is None else len(first)
        if "identity" in needs:
            identities = 1 + int(source.column("identity").max())
        return cls(
            label_names=source.label_names if "label" in needs else (),
            attribute_names=source.attribute_names if "attributes" in needs else (),
            points=points,
            layout=source.layout if "landmarks" in needs else None,
            mask_names=source.mask_names if "mask" in needs else (),
            mask_flip=source.mask_flip if "mask" in needs else None,
            identities=identities,
        )


@dataclass(frozen=True)
class Example:
    """One answer of a task beside the label."""

    index: tuple[int, ...]  # position of the image in the source; of a pair both positions
    # label, prediction: as words; empty if only a picture can show them.
    label: str
    prediction: str
    # What `value` is: `probability` of the predicted answer, `cosine similarity` of a pair, or the name of a score (a
    # fraction) of the image alone
    measure: str
    value: float  # the number
    attribute: str = ""  # the attribute that the answer is about, of tasks that answer several; else empty
    keys: tuple[str, ...] = ()  # of the image or both images


@dataclass(frozen=True)
class Examples:
    """All M answers that a meter has collected, one by one."""

    badness: np.ndarray  # (M,) the larger, the worse the mistake; NaN for answers that are right or cannot be judged
    example: Callable[[int], Example]  # position of an answer -> the answer
    # (M,) int, mistakes of each kind are ranked by themselves (attributes); None: all together
    kinds: np.ndarray | None = None


class Meter(Protocol):
    """Collects what a task predicts for one part of a source, and scores it in the stored images' coordinates.

    Optional member:
        examples(): the answers one by one (`Examples`), for the mistakes that the report and the app show.
    """

    def add(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Add predictions (`Task.predict`) of one batch."""

    def result(self) -> dict[str, Any]:
        """Scores ready for JSON, by name:

        headline: the score that weights are selected by and reports begin with, as `headline` makes it. It also stands
            under its own name beside it, like every other score; with NAME_interval, a list of two, a score has an
            interval.
        images: number of images that were scored.
        units (optional): {score: unit} of other scores that are not fractions (`headline` has its own).
        subsets, groups: `Collected.breakdown` gives them from one number per image, where
            the source has published subsets or groups.
        per_class, confusion (optional): drawn by the report; the rows and columns of confusion are `class_names`.
        """
        ...


def headline(
    name: str,
    value: float,
    interval: Sequence[float],
    *,
    better: Literal["higher", "lower"] = "higher",
    unit: str = "fraction",
) -> dict[str, Any]:
    """The headline of `Meter.result`: a score and the low and high end of its interval.

    `better`: which scores are better; the best one is kept. `unit`: `fraction`, from 0 to 1 and shown in per cent; or
    the unit's name (`degrees`), `` for a plain number.
    """
    return {"name": name, "value": value, "interval": list(interval), "better": better, "unit": unit}


_Number = float | None
_Interval = list[_Number] | None


class _Headline(TypedDict, total=False):
    name: Required[str]
    value: _Number
    interval: _Interval
    unit: str | None


class _Group(TypedDict, total=False):
    name: Required[str]
    images: _Number
    value: _Number
    interval: _Interval
    counted: bool | None


class _Groups(TypedDict, total=False):
    groups: list[_Group] | None
    gap: _Number
    gap_by_chance: _Number
    gap_interval: _Interval
    note: str | None


class _Constant(TypedDict):
    answer: str
    scores: dict[str, _Number]


class Scores(TypedDict, total=False):
    """Fields of `Meter.result` that reports read from files, which somebody else may have written."""

    headline: _Headline | None
    images: _Number
    units: dict[str, str] | None
    confusion: list[list[int]] | None
    class_names: list[str] | None
    per_class: dict[str, _Number] | None
    accuracy: dict[str, _Number] | _Number
    f1: dict[str, _Number] | _Number
    subsets: dict[str, dict[str, float | list[Any] | None]] | None
    groups: dict[str, _Groups] | None
    constant: _Constant | None
    majority_class: _Number
    majority: _Number
    same: _Number
    different: _Number


class Selected(TypedDict, total=False):
    """The weights that a fine-tuning run keeps; the last ones have no score."""

    step: Required[int]
    name: str  # of the score
    value: _Number
    by: str | None


class Results(TypedDict, total=False):
    """Content of a fine-tuning run's `results.json`."""

    task: str | None
    protocol: str | None
    run: str
    source: str
    labels: str | None
    selected: Selected | None
    train_images: _Number
    test: Required[Scores]


def check_result(result: Mapping[str, Any], task: Any) -> None:
    """PluginError if `Meter.result` lacks what its contract asks for."""
    headline_of = result.get("headline")
    wrong = None
    if not isinstance(headline_of, Mapping) or not {"name", "value", "interval", "better"} <= headline_of.keys():
        wrong = "no headline with name, value, interval and better (facessl.tasks.base.headline makes it)"
    elif headline_of["better"] not in ("higher", "lower"):
        wrong = f"a headline whose better is {headline_of['better']!r}: higher or lower"
    elif headline_of["name"] not in result:
        wrong = f"no {headline_of['name']}, the score of its headline, under that name"
    elif "images" not in result:
        wrong = "no number of images"
    if wrong:
        raise PluginError(f"the scores of the task {type(task).__name__} (Meter.result) have {wrong}")


class Task(Protocol):
    """A downstream task: `nn.Module`, built as `Task(backbone, labels, **vars(args))`, in a file of its name.

    Attributes:
        Args: frozen dataclass of its settings, each with a default; they become flags (`--task.NAME`).
        needs: fields of `Batch` that its loss or meter reads (a mask is moved to the view only if it is named); a
            source that lacks one is refused (`Labels.of`).
        defaults: protocol -> settings of `FinetuneConfig` of the published protocol, as plain values; `finetune` is
            the protocol that runs if none is named. {} takes the settings of `FinetuneConfig` itself.
        augments: the same protocols -> their published crop and augmentation.
        backbone: what is fine-tuned; further children are its parts (`neck`, `head`), which `optim.lrs` names.
        mask_outside (int): class that a training view's pixels outside the image have. Optional; 255, ignored, without
            it.

    Methods:
        step(batch, progress): loss of a batch with normalized views, and its terms by name without gradients, as of a
            pre-training method, so that one trainer runs both. Means over something else than the images of a batch are
            taken over all ranks (`facessl.core.distributed.rank_mean`).
        predict(x): (B, 3, S, S) normalized -> tensors with B rows, coordinates in pixels of the view.
        meter(source, augment): a `Meter` of predictions on `source`. It is also made before training, so that a source
            which cannot be scored is refused then.
        describe(predictions, row, frame, height, width): one image's prediction in its own pixels, as plain values
            and, for masks, arrays.
        check(augment): raises ConfigError if the loss cannot be computed on such views. Optional.
        cheaper(image_size): settings that make it cheaper for small views, suggested on a CPU. Optional.

    A file without one of these that is not optional is refused by name, and so are scores without what `Meter.result`
    asks for. docs/extending.md has a whole task.
    """

    Args: ClassVar[type[Any]]
    needs: ClassVar[frozenset[str]]
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]]
    augments: ClassVar[Mapping[str, Augment]]
    backbone: Backbone

    def step(self, batch: Batch, progress: Progress) -> Step: ...

    def predict(self, x: Tensor) -> dict[str, Tensor]: ...

    def meter(self, source: Source, augment: Augment) -> Meter: ...

    def describe(self, predictions: Predictions, row: int, frame: Frame, height: int, width: int) -> dict[str, Any]: ...


class Collected:
    """Arrays with one row per image, in the order in which the images came."""

    def __init__(self, source: Source) -> None:
        """`subsets` and `group_names` of the source give the breakdowns."""
        self.source = source
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(self, batch: Batch, **columns: Tensor | np.ndarray | None) -> None:
        """Rows of one batch; a column that is None is left out."""
        for name, values in {"index": batch.index, "group": batch.group, **columns}.items():
            if values is not None:
                array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
                self._parts.setdefault(name, []).append(array)

    def get(self, name: str) -> np.ndarray | None:
        """A column, or None if no image had it."""
        return self[name] if name in self._parts else None

    def __getitem__(self, name: str) -> np.ndarray:
        """(N, ...) rows of a column."""
        return np.concatenate(self._parts[name])

    def breakdown(self, values: Mapping[str, np.ndarray], better: str = "higher") -> dict[str, Any]:
        """`subsets` (mean and interval of each published subset) and `groups` (each group, the gap, the worst).

        Args:
            values: name -> (N,) number of each image.
            better: "higher" or "lower".

        Returns:
            Empty if the source has neither subsets nor groups.
        """
        breakdown: dict[str, Any] = {}
        index = self["index"]
        for subset, positions in self.source.subsets.items():
            rows = np.isin(index, positions)
            if rows.any():
                scores: dict[str, Any] = {}
                for name, numbers in values.items():
                    value, low, high = bootstrap_mean(numbers[rows])
                    scores |= {name: value, f"{name}_interval": [low, high]}
                breakdown.setdefault("subsets", {})[subset] = {"images": int(rows.sum()), **scores}
        names = self.source.group_names
        groups = self.get("group")
        if names and groups is not None:
            breakdown["groups"] = {
                name: by_group(numbers, groups, names, larger_is_better=better == "higher")
                for name, numbers in values.items()
            }
        return breakdown
