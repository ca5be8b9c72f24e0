"""Scores of a task on a labeled source, by the meter that the task brings."""

from typing import Any

from torch import Tensor

from facessl.core.errors import DataError
from facessl.data.loader import EvalLoader
from facessl.data.source import Source
from facessl.evaluation.baselines import Constant
from facessl.models.forward import autocast, evaluating
from facessl.tasks.base import Meter, check_result
from facessl.views.augment import Augment
from facessl.views.normalize import normalize
from facessl.views.supervised import Supervised


def score(task: Any, source: Source, augment: Augment, **options: Any) -> dict[str, Any]:
    """Scores of a task on a source, in the stored images' coordinates; everything else as in `measure`."""
    return measure(task, source, augment, **options)[1]


def measure(
    task: Any,
    source: Source,
    augment: Augment,
    *,
    image_size: int,
    batch_size: int = 64,
    workers: int = 0,
    precision: str = "fp32",
    max_bad: float = 1,
    baseline: Constant | None = None,
) -> tuple[Meter, dict[str, Any]]:
    """The meter of a task with the answers on a source, and its scores in the stored images' coordinates.

    Args:
        augment: gives the crop; nothing random is done.
        image_size: side of the views in pixels.
        batch_size, workers, precision, max_bad: as in `facessl.embed`.
        baseline: an answer that is scored on the same images.

    Returns:
        The meter, and its `result` with `skipped`, the number of images that could not be read, and with `constant`
        where there is a `baseline` (`Constant.result`).

    Raises:
        DataError: no image could be read.
        PluginError: the meter's scores lack what its contract asks for.
    """
    meter: Meter = task.meter(source, augment)
    other: Meter | None = None
    backbone = task.backbone
    device = next(backbone.parameters()).device
    view = Supervised(augment, image_size, needs=task.needs, train=False)
    pinned = device.type == "cuda"
    loader = EvalLoader(source, view, batch_size=batch_size, workers=workers, pin_memory=pinned, max_bad=max_bad)
    seen = 0
    for batch in loader:
        x = normalize(batch.views[0].to(device, non_blocking=True), backbone.mean, backbone.std)
        with evaluating(task), autocast(device, precision):
            found: dict[str, Tensor] = task.predict(x)
        meter.add(found, batch)
        if baseline and baseline.answer.keys() == found.keys():  # a plug-in may predict something else
            other = other or task.meter(source, augment)
            other.add(baseline.repeated(len(batch)), batch)
        seen += len(batch)
    if not seen:
        first = ": ".join(loader.skipped[0]) if loader.skipped else "it has none"
        raise DataError(f"no image that was to be scored could be read (the first: {first}): correct the paths")
    result: dict[str, Any] = {**meter.result(), "skipped": len(loader.skipped)}
    check_result(result, task)
    if baseline and other:
        result["constant"] = baseline.result(other)
    return meter, result
