"""Agreement of a method's regions with the parts of a face: `metrics/region_discovery` on a labeled source."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from facessl.core.errors import DataError
from facessl.core.markdown import markdown_table
from facessl.core.types import Sample
from facessl.data.loader import EvalLoader, SampleViews
from facessl.data.source import Source, open_source
from facessl.data.splits import at_most
from facessl.inference.region_pictures import heatmaps
from facessl.metrics.region_discovery import discover
from facessl.metrics.region_maps import HeatmapsOf
from facessl.models.backbone import Backbone
from facessl.tasks.base import Labels
from facessl.views.augment import Augment
from facessl.views.supervised import DRAWS, Supervised

#: The images as stored, and random windows of them with 0.65 to 0.85 of the side.
FACES = {
    "aligned": Augment(),
    "moved": Augment(crop_scale=0.7367, scale=0.1333, shift=0.15, rotation=15, flip=0.5, border="reflect"),
}
_COLUMNS = ("nmi", "nmi_image", "nmi_position", "ari", "foreground_iou", "nme_interocular", "consistency")


def score_regions(method: nn.Module, source: str | Source, *, count: int = 300, seed: int = 0) -> dict[str, Any]:
    """Scores of a method's regions beside their baselines on the same images, as stored and moved.

    On faces that lie alike a map that knows the position alone scores high: only what also holds on moved faces comes
    from their content.

    Args:
        method: one with regions (FRA).
        source: images with masks, landmarks or both.
        count: at most so many of its images, spread evenly over it.
        seed: of the moves, baselines, halves and bootstrap.

    Returns:
        By the names of `FACES`, as `facessl.metrics.region_discovery.discover`, with the rows "full" and, of a method
        with a prior over the image, "content only" and "prior alone", and the names of the masks' classes.

    Raises:
        ConfigError: the method has no regions.
        DataError: the source has neither masks nor landmarks, or none of its images can be read.
    """
    opened = open_source(source)
    if not {"mask", "landmarks"} & opened.provides:
        raise DataError(
            "regions are compared with masks or landmarks, and the source has neither: use masks-folder:, "
            "landmarks-csv: or synthetic:"
        )
    backbone = method.backbone
    assert isinstance(backbone, Backbone)
    opened = at_most(opened, count)
    variants: dict[str, HeatmapsOf] = {"full": partial(heatmaps, method)}
    if getattr(method, "has_prior", False):
        variants["content only"] = partial(heatmaps, method, prior="off")
        table = partial(heatmaps, method, prior="alone")  # the same for every image
        variants["prior alone"] = lambda images: table(images[:1]).expand(len(images), -1, -1, -1)
    names = list(opened.mask_names)
    return {
        name: {"classes": names}
        | discover(variants, **labeled_images(opened, augment, size=backbone.image_size, seed=seed), seed=seed)
        for name, augment in FACES.items()
    }


def labeled_images(source: Source, augment: Augment, *, size: int, seed: int) -> dict[str, Any]:
    """Images of a source with the labels that `discover` compares, cropped and moved as `augment` says.

    Returns:
        Arguments of `discover`: images (M, size, size, 3) uint8; masks, 255 outside of the stored image, and classes;
        landmarks and ocular, if the order of the points is known.
    """
    order = Labels(layout=source.layout).order
    flip = source.mask_flip or range(len(source.mask_names))
    view = Supervised(augment, size, layout=order, mask_flip=flip)
    batches = list(EvalLoader(source, _Seeded(view, seed), batch_size=32))
    if not batches:
        raise DataError("none of the images of the source can be read")
    labeled: dict[str, Any] = {"images": np.concatenate([b.views[0].permute(0, 2, 3, 1).numpy() for b in batches])}
    for field, name in (("mask", "masks"), ("landmarks", "landmarks")):
        parts = [getattr(b, field) for b in batches]
        if all(part is not None for part in parts):
            labeled[name] = np.concatenate([part.numpy() for part in parts])
    if order is None:
        labeled.pop("landmarks", None)  # without the order of the points nobody knows which are eyes
    elif "landmarks" in labeled:
        labeled["ocular"] = order.ocular
    return labeled | {"classes": len(source.mask_names) or None}


class _Seeded:
    sizes, reduction = (), None

    def __init__(self, view: Supervised, seed: int) -> None:
        self._view, self._rng = view, np.random.default_rng(seed)

    def draw(self, rng: np.random.Generator | None) -> _Seeded:
        """Itself: the draws of an image are taken when it is there."""
        return self

    def __call__(self, sample: Sample, image: np.ndarray, out: Sequence[np.ndarray] = ()) -> SampleViews:
        return self._view.apply(sample, image, self._rng.random(DRAWS))


def region_table(scores: dict[str, Any]) -> str:
    """Markdown tables of `score_regions`."""
    sections = []
    for name, part in scores.items():
        rows = part["rows"]
        columns = [c for c in _COLUMNS if any(row.get(c) is not None for row in rows)]
        maps = [
            {"map": row["name"], **{c: _cell(row.get(c), row.get(f"{c}_interval")) for c in columns}} for row in rows
        ]
        tables = ["\n".join(markdown_table(table)) for table in (maps, _best_regions(part["classes"], rows)) if table]
        sections += [f"Faces {name}:", *tables]
    return "\n\n".join(sections)


def _best_regions(classes: Sequence[str], rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The best region of each class, beside that of the mean map: IoU (number of the region, as in the picture)."""
    shown = [row for row in rows if row["name"] in ("full", "content only", "own mean map") and "parts" in row]
    return [
        {"IoU (region)": name, **{row["name"]: f"{row['parts'][i][1]:.3f} ({row['parts'][i][0] + 1})" for row in shown}}
        for i, name in enumerate(classes)
        if shown and all(row["parts"][i] for row in shown)
    ]


def _cell(value: float | None, between: list[float] | None) -> str:
    return "-" if value is None else f"{value:z.3f}" + (f" [{between[0]:z.3f}, {between[1]:z.3f}]" if between else "")
