"""What a downstream task is. Nothing here is inherited: a task is any `nn.Module` with these members."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from facessl.backbones import Backbone
from facessl.batch import Batch
from facessl.data.crop import Frame
from facessl.data.layouts import Layout, layout
from facessl.data.source import Source, trait
from facessl.errors import DataError
from facessl.methods.base import Progress, Step
from facessl.views.augment import Augment


@dataclass(frozen=True)
class Labels:
    """What a task has to know about its training images; kept in the card of a trained model.

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
        """The landmarks' order, where it is known."""
        return layout(self.layout) if self.layout else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a card."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Labels:
        """The labels of a card."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    @classmethod
    def of(cls, source: Source, needs: frozenset[str]) -> Labels:
        """What `source` says about itself, where a task needs it.

        Raises:
            DataError: it lacks a field that the task needs; both are named.
        """
        missing = sorted(needs - source.provides)
        if missing:
            given = ", ".join(sorted(source.provides)) or "images only"
            raise DataError(f"the task needs {', '.join(missing)} of every image, and the source gives {given}")
        points, identities = 0, 0
        if "landmarks" in needs:
            first = source[0].landmarks
            points = 0 if first is None else len(first)
        if "identity" in needs:
            column = getattr(source, "column", None)
            persons = column("identity") if column else [source[i].identity or 0 for i in range(len(source))]
            identities = 1 + int(max(persons))
        flip = trait(source, "mask_flip")
        return cls(
            label_names=tuple(source.label_names) if "label" in needs else (),
            attribute_names=tuple(source.attribute_names) if "attributes" in needs else (),
            points=points,
            layout=trait(source, "layout") if "landmarks" in needs else None,
            mask_names=tuple(trait(source, "mask_names")) if "mask" in needs else (),
            mask_flip=None if flip is None or "mask" not in needs else tuple(flip),
            identities=identities,
        )


class Meter(Protocol):
    """Collects what a task predicts for one part of a source, and scores it in the stored images' coordinates."""

    def add(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Predictions of one batch (`Task.predict`), and the batch that they were made for."""
        ...

    def result(self) -> dict[str, Any]:
        """Scores ready for JSON. `headline` is {name, value, interval, better ("higher" or "lower")}."""
        ...


@runtime_checkable
class Task(Protocol):
    """A downstream task: `nn.Module`, built as `Task(backbone, labels, **vars(args))`.

    Class members:
        Args: frozen dataclass of its settings.
        needs: fields of `Batch` that its loss reads.
        defaults: protocol -> settings of `FinetuneConfig` of the published protocol, as plain values.
        augments: protocol -> its published crop and augmentation.

    Members:
        backbone: what is fine-tuned; further children are its parts (`neck`, `head`).
        step(batch, progress), after_step(progress): as of a pre-training method, so that one trainer runs both.
        predict(x): (B, 3, S, S) normalised -> tensors with B rows, coordinates in pixels of the view.
        meter(source, augment): scores predictions on `source`.
        describe(predictions, row, frame, height, width): one image's prediction in its own pixels, as plain values
            and, for masks, arrays.
        mask_outside (optional): class that a training view's pixels outside the image have; 255, ignored, without it.
    """

    Args: ClassVar[type[Any]]
    needs: ClassVar[frozenset[str]]
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]]
    augments: ClassVar[Mapping[str, Augment]]
    backbone: Backbone

    def step(self, batch: Batch, progress: Progress) -> Step: ...

    def after_step(self, progress: Progress) -> None: ...

    def predict(self, x: Tensor) -> dict[str, Tensor]: ...

    def meter(self, source: Source, augment: Augment) -> Meter: ...

    def describe(
        self, predictions: Mapping[str, np.ndarray], row: int, frame: Frame, height: int, width: int
    ) -> dict[str, Any]: ...
