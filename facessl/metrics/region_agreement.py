"""How well do regions agree with masks? Scores of contingency tables, one per image or summed over images.

A table (R, L) counts pixels by region and by true class. Scores take tables with any leading axes.
"""

from __future__ import annotations

import numpy as np

from facessl.core.types import IGNORE_INDEX
from facessl.metrics.bootstrap import ratio


def contingency(regions: np.ndarray, masks: np.ndarray, *, count: int, classes: int) -> np.ndarray:
    """Pixels by region and class, image by image.

    Args:
        regions: (M, g, g) region of each pixel, 0 to count - 1.
        masks: (M, g, g) class of each pixel, 0 to classes - 1; 255 does not count.

    Returns:
        (M, R, L) int64 with R = count and L = classes.
    """
    tables = np.empty((len(masks), count, classes), np.int64)
    for i, (region, mask) in enumerate(zip(regions, masks, strict=True)):
        counted = mask != IGNORE_INDEX
        cells = region[counted].astype(np.int64) * classes + mask[counted]
        tables[i] = np.bincount(cells, minlength=count * classes).reshape(count, classes)
    return tables


def nmi(tables: np.ndarray) -> np.ndarray:
    """(..., R, L) -> (...) normalized mutual information: 2 I(region; class) / (H(region) + H(class)).

    0 where regions say nothing about the class, 1 where they are the classes (also where there is one of each).
    """
    joint = ratio(tables, tables.sum((-2, -1), keepdims=True))
    parts = _entropy(joint.sum(-1)) + _entropy(joint.sum(-2))
    both = _entropy(joint.reshape(*joint.shape[:-2], -1))
    return np.nan_to_num(2 * ratio(parts - both, parts), nan=1.0)


def ari(tables: np.ndarray) -> np.ndarray:
    """(..., R, L) -> (...) adjusted Rand index: 0 is the mean of random regions of these sizes, 1 the classes.

    Source: Hubert and Arabie, "Comparing partitions", 1985, Eq. 5.
    """
    together = _pairs(tables).sum((-2, -1))
    regions, classes = _pairs(tables.sum(-1)).sum(-1), _pairs(tables.sum(-2)).sum(-1)
    expected = ratio(regions * classes, _pairs(tables.sum((-2, -1))))
    return np.nan_to_num(ratio(together - expected, (regions + classes) / 2 - expected), nan=1.0)


def foreground_iou(tables: np.ndarray) -> np.ndarray:
    """(..., R, L) -> (...) intersection over union of the foreground with those regions that together fit it best.

    The best set takes regions in the order of their fraction of foreground; all of them score the foreground's fraction
    of the image, the floor. Class 0 is the background.
    """
    behind = tables[..., 0].astype(np.float64)  # (..., R)
    front = tables.sum(-1) - behind
    order = np.argsort(-np.nan_to_num(ratio(front, front + behind), nan=-1.0), axis=-1, kind="stable")
    front, behind = (np.cumsum(np.take_along_axis(x, order, -1), -1) for x in (front, behind))
    return ratio(front, front[..., -1:] + behind).max(-1)


def _entropy(fractions: np.ndarray) -> np.ndarray:
    """(..., K) -> (...) in nats."""
    return -(fractions * np.log(np.where(fractions > 0, fractions, 1.0))).sum(-1)


def _pairs(counts: np.ndarray) -> np.ndarray:
    """n over 2."""
    return counts * (counts - 1.0) / 2
