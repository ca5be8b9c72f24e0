"""How far the regions of a method are parts of a face: `metrics/region_discovery` on a labelled source."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from facessl.core.errors import DataError
from facessl.data.loader import EvalLoader
from facessl.data.source import Source, open_source
from facessl.data.splits import at_most
from facessl.inference.region_pictures import heatmaps
from facessl.metrics.region_discovery import discover
from facessl.models.backbone import Backbone
from facessl.tasks.base import Labels
from facessl.views.augment import Augment
from facessl.views.supervised import Supervised

_COLUMNS = ("nmi", "ari", "foreground_iou", "nme_interocular", "consistency")


def score_regions(method: nn.Module, source: str | Source, *, count: int = 300, seed: int = 0) -> dict[str, Any]:
    """Scores of a method's regions beside their baselines on the same images.

    Args:
        method: one with regions (FRA).
        source: images with masks, landmarks or both.
        count: at most so many of its images, spread evenly over it.
        seed: of baselines, halves and bootstrap.

    Returns:
        As `facessl.metrics.region_discovery.discover`.

    Raises:
        ConfigError: the method has no regions.
        DataError: the source has neither masks nor landmarks, or none of its images can be read.
    """
    opened = open_source(source) if isinstance(source, str) else source
    if not {"mask", "landmarks"} & opened.provides:
        raise DataError(
            "regions are compared with masks or landmarks, and the source has neither: use masks-folder:, "
            "landmarks-csv: or synthetic:"
        )
    backbone = method.backbone
    assert isinstance(backbone, Backbone)
    view = Supervised(Augment(), backbone.image_size, train=False)
    batches = list(EvalLoader(at_most(opened, count), view, batch_size=32))
    if not batches:
        raise DataError("none of the images of the source can be read")
    images = np.concatenate([b.views[0].permute(0, 2, 3, 1).numpy() for b in batches])
    found: dict[str, Any] = {}
    for field, name in (("mask", "masks"), ("landmarks", "landmarks")):
        parts = [getattr(b, field) for b in batches]
        if all(part is not None for part in parts):
            found[name] = np.concatenate([part.numpy() for part in parts])
    order = Labels(layout=opened.layout).order
    if order is None:
        found.pop("landmarks", None)  # without the order of the points nobody knows which are eyes
    elif "landmarks" in found:
        found["ocular"] = order.ocular
    classes = len(opened.mask_names) or None
    return discover(lambda pictures: heatmaps(method, pictures).numpy(), images, **found, classes=classes, seed=seed)


def region_table(found: dict[str, Any]) -> str:
    """Markdown table of `score_regions`."""
    columns = [c for c in _COLUMNS if any(row.get(c) is not None for row in found["rows"])]
    lines = ["| map | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row in found["rows"]:
        lines.append(
            f"| {row['name']} | " + " | ".join(_cell(row.get(c), row.get(f"{c}_interval")) for c in columns) + " |"
        )
    return "\n".join(lines)


def _cell(value: float | None, between: list[float] | None) -> str:
    return "-" if value is None else f"{value:.3f}" + (f" [{between[0]:.3f}, {between[1]:.3f}]" if between else "")
