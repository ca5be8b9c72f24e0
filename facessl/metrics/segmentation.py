"""Face parsing: F1 per class, mIoU and pixel accuracy from one confusion matrix over all images.

Source: the released scorer of FaRL (Zheng et al., CVPR 2022): pixels of the whole test set, in the original images'
pixels, fill one matrix; F1 of a class comes from that matrix, the mean leaves the background out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import IGNORE_INDEX
from facessl.metrics.accuracy import confusion
from facessl.metrics.bootstrap import as_array, interval, known_mean, ratio, resampled_sums, with_intervals


class ConfusionMatrix:
    """Counts of (true, predicted) class pairs, 0 the background, by image, so that images can be resampled."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._images: list[np.ndarray] = []

    def update(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Count one image: (H, W) class indices in the original image's pixels; 255 in `truth` does not count.

        ValueError: shapes differ. DataError: a class outside 0 to K - 1.
        """
        predicted, truth = as_array(predicted), as_array(truth)
        if predicted.shape != truth.shape:
            raise ValueError(f"the prediction is {predicted.shape} and the mask {truth.shape}: map it back first")
        counted = truth != IGNORE_INDEX
        try:
            counts = confusion(predicted[counted], truth[counted], self.classes)
        except ValueError as error:
            fix = f"check the number of classes or mark pixels {IGNORE_INDEX}"
            raise DataError(f"image {len(self)} of the parsing scores: {error}; {fix}") from None
        self._images.append(counts.astype(np.int32))

    def __len__(self) -> int:
        return len(self._images)

    @property
    def per_image(self) -> np.ndarray:
        """(M, K, K) int32: image, true class, predicted class."""
        return np.stack(self._images) if self._images else np.zeros((0, self.classes, self.classes), np.int32)

    def total(self) -> np.ndarray:
        """(K, K) int64 over all images."""
        return self.per_image.sum(0, dtype=np.int64)


def f1_per_class(matrix: np.ndarray) -> np.ndarray:
    """(..., K, K) counts (true, predicted) -> (..., K) F1 scores; NaN for a class neither true nor predicted."""
    return ratio(2 * np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1) + matrix.sum(-2))


def mean_f1(matrix: np.ndarray) -> np.ndarray:
    """(..., K, K) counts -> (...) mean F1 over the classes without background; absent classes do not count."""
    return known_mean(f1_per_class(matrix)[..., 1:])


def mean_iou(matrix: np.ndarray) -> np.ndarray:
    """(..., K, K) counts -> (...) mean IoU over all classes with background; absent classes do not count."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return known_mean(ratio(hits, matrix.sum(-1) + matrix.sum(-2) - hits))


def pixel_accuracy(matrix: np.ndarray) -> np.ndarray:
    """(..., K, K) counts -> (...) fraction of pixels that are right."""
    return ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def parsing_scores(matrix: ConfusionMatrix, *, names: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of all images that `matrix` has counted; `names` are the K class names, empty: the indices.

    Returns:
        Fractions, ready for JSON, the first three with NAME_interval [low, high] (95 %, over images):

        mean_f1: over the classes without background (LaPa 10, CelebAMask-HQ 18) that occur or were predicted.
        mean_iou: over all classes, background included, that occur or were predicted.
        pixel_accuracy: right pixels over all.
        f1: by class name, background included; None for a class in no mask and no prediction.
        images: number of images.

    Raises:
        DataError: nothing was counted, or the names are not K.
    """
    K, rows = matrix.classes, matrix.per_image.reshape(len(matrix), -1)
    if not rows.any():
        raise DataError("the parsing scores have no pixel to count: the masks are missing or ignored everywhere")
    names = tuple(names) or tuple(str(k) for k in range(K))
    if len(names) != K:
        raise DataError(f"{len(names)} class names for {K} classes: {', '.join(names)}")
    total = matrix.total()
    resampled = resampled_sums(rows).reshape(-1, K, K)
    means = {score.__name__: interval(score(total), score(resampled)) for score in (mean_f1, mean_iou, pixel_accuracy)}
    each = [None if np.isnan(f1) else float(f1) for f1 in f1_per_class(total)]
    return {"images": len(matrix), **with_intervals(means), "f1": dict(zip(names, each, strict=True))}
