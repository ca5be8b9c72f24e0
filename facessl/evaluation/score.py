"""Scores of a task on a labeled source, by the meter that the task brings."""

from typing import Any

from facessl.core.errors import DataError
from facessl.data.source import Source
from facessl.evaluation.baselines import Constant
from facessl.models.forward import PassOptions, forward
from facessl.tasks.base import Meter, check_result
from facessl.views.augment import Augment
from facessl.views.supervised import Supervised


def score(
    task: Any, source: Source, augment: Augment, *, image_size: int, baseline: Constant | None = None, **options: Any
) -> tuple[dict[str, Any], Meter]:
    """Score a task on a source, in the stored images' coordinates.

    Args:
        augment: gives the crop; nothing random is done.
        image_size: side of the views in pixels.
        baseline: an answer that is scored on the same images.
        options: batch_size, workers, precision and max_bad (default 1), as in `facessl.embed`.

    Returns:
        The `result` of the task's meter, with `skipped`, the number of images that could not be read, and with a
        `baseline` also `constant` (`Constant.result`); and the meter.

    Raises:
        DataError: no image could be read.
        PluginError: the meter's scores lack what its contract asks for.
    """
    meter: Meter = task.meter(source, augment)
    other: Meter | None = None
    chosen, seen = PassOptions(**options), 0
    loader = chosen.loader(source, Supervised(augment, image_size, needs=task.needs, train=False), task.backbone)
    for batch in loader:
        predictions = forward(task, batch.views[0], chosen.precision, task.predict)
        meter.add(predictions, batch)
        if baseline and baseline.answer.keys() == predictions.keys():  # a plug-in may predict something else
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
    return result, meter
