"""Answers that do not look at the image, as baselines: the mean shape, or the most frequent class of each pixel."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from facessl.core.types import IGNORE_INDEX
from facessl.data.loader import EvalLoader
from facessl.data.source import Source
from facessl.data.splits import at_most
from facessl.tasks.base import Meter
from facessl.views.augment import Augment
from facessl.views.supervised import Supervised

#: Training images that are averaged, spread over the source.
IMAGES = 500


class Constant:
    """The same answer for every image: `name` is mean shape, or most frequent class of each pixel.

    `answer` has the predictions (`Task.predict`) of one image, without the dimension of the batch: `landmarks` (L, 2),
    or `scores` (S, S), here the number of a class for each pixel.
    """

    def __init__(self, name: str, answer: Mapping[str, Tensor]) -> None:
        self.name, self.answer = name, answer

    def repeated(self, count: int) -> dict[str, Tensor]:
        """Return the predictions of `count` images."""
        return {key: value.expand(count, *value.shape) for key, value in self.answer.items()}

    def result(self, meter: Meter) -> dict[str, Any]:
        """Return `answer`, its name, and `scores`, the plain numbers of a meter that collected it."""
        numbers = {name: value for name, value in meter.result().items() if isinstance(value, float)}
        return {"answer": self.name, "scores": numbers}


def constant(task: Any, train: Source, augment: Augment, *, image_size: int, max_bad: float = 1) -> Constant | None:
    """The answer that does not look at the image: the mean shape of landmarks in the view, of masks the most frequent
    class of each pixel; None for other tasks. Measured on the training images in their crop by `augment`.
    """
    if not {"landmarks", "mask"} & task.needs or not len(train):
        return None
    view = Supervised(
        augment, image_size, needs=task.needs, train=False, mask_outside=getattr(task, "mask_outside", IGNORE_INDEX)
    )
    total = known = counts = torch.zeros(())
    for batch in EvalLoader(at_most(train, IMAGES), view, batch_size=32, max_bad=max_bad):
        if "landmarks" in task.needs and batch.landmarks is not None:
            seen = torch.ones(batch.landmarks.shape[:2]) if batch.visible is None else (batch.visible > 0).float()
            total = total + torch.where(seen[..., None] > 0, batch.landmarks, 0).sum(0)
            known = known + seen.sum(0)[:, None]
        elif batch.mask is not None:
            classes = range(len(train.mask_names))
            counts = counts + torch.stack([(batch.mask == number).sum(0) for number in classes])
    if known.any():
        return Constant("mean shape", {"landmarks": total / known.clamp(min=1)})
    return Constant("most frequent class of each pixel", {"scores": counts.argmax(0)}) if counts.any() else None
