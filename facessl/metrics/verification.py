"""Face verification: are two images of one person? Accuracy over folds, TAR at FAR, ROC AUC and EER.

Intervals resample pairs. Pairs that share a person are not independent, so the truth is somewhat wider.

Source: Huang et al., "Labeled Faces in the Wild", 2007 (ten folds; the threshold comes from the other nine).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.metrics.bootstrap import as_array, interval, known_mean, ratio, resampled_counts, with_intervals

_FOLDS = 10  # where the pairs come without


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of (P, C) embeddings, row by row: (P,) float64; 0 if an embedding is zero."""
    a, b = (as_array(x).astype(np.float64) for x in (first, second))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.nan_to_num(ratio((a * b).sum(1), lengths), nan=0.0)


def verification(
    similarity: np.ndarray,
    same: np.ndarray,
    folds: np.ndarray | None = None,
    *,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3),
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of P pairs.

    Args:
        similarity: (P,), larger is more alike (`cosine`).
        same: (P,), 1 if both images show one person.
        folds: (P,) fold of each pair; None: ten folds, dealt in turn among same and among different pairs.
        fars: false accept rates.
        samples, seed: of the bootstrap, which chooses new thresholds in every resample.

    Returns:
        Fractions, ready for JSON, from accuracy on with NAME_interval [low, high] (95 %, over pairs):

        same, different: pairs of each kind.
        standard_error: of the mean accuracy over folds, as LFW's tables give it.
        accuracy: mean over the folds; the threshold of a fold is the best one of the others.
        roc_auc: area under the ROC curve.
        eer: rate at which false accepts and false rejects are equal.
        tar@far=RATE: fraction of same pairs accepted at each false accept rate; None if the different pairs are too
            few for a single false accept at that rate.

    Raises:
        ValueError: similarity, same and folds of different lengths.
        DataError: pairs of one kind only, fewer than two folds, or a similarity that is not finite.
    """
    similarity, same, folds = _checked(similarity, same, folds)
    curve = _Curve(similarity, same, folds)
    all_pairs = np.ones((1, len(same)))
    accuracies, point = curve.fold_accuracies(all_pairs)[0], curve.rates(all_pairs, fars)[0]
    resampled, resampled_accuracy = [], []
    for counts in resampled_counts(len(same), samples=samples, seed=seed):
        resampled.append(curve.rates(counts, fars))
        resampled_accuracy.append(known_mean(curve.fold_accuracies(counts)))
    rates = [interval(value, column) for value, column in zip(point, np.concatenate(resampled).T, strict=True)]
    different = int((~same).sum())
    pairs = zip(fars, rates[2:], strict=True)
    tar = {f"tar@far={far:g}": rate if _allowed(far, different) >= 1 else None for far, rate in pairs}
    accuracy = interval(accuracies.mean(), np.concatenate(resampled_accuracy))
    return {
        "same": int(same.sum()),
        "different": different,
        "standard_error": float(accuracies.std(ddof=1) / len(accuracies) ** 0.5),
        **with_intervals({"accuracy": accuracy, "roc_auc": rates[0], "eer": rates[1], **tar}),
    }


def thresholds(similarity: np.ndarray, same: np.ndarray, folds: np.ndarray | None = None) -> np.ndarray:
    """(P,) float64 threshold of each pair for `accuracy`, which its similarity has to reach: the best one of the other
    folds, infinite if accepting none is best. Arguments and errors as in `verification`."""
    similarity, same, folds = _checked(similarity, same, folds)
    curve = _Curve(similarity, same, folds)
    steps = [step[0] for step, _, _ in curve.chosen(np.ones((1, len(same))))]
    ranked = np.append(np.inf, similarity[curve.order][curve.ends])  # (D + 1,)
    return ranked[steps][np.searchsorted(curve.names, folds)]


def _checked(
    similarity: np.ndarray, same: np.ndarray, folds: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    similarity, same = as_array(similarity).astype(np.float64), as_array(same).astype(bool)
    if folds is None:
        folds = np.empty(len(same), np.int64)
        for kind in (True, False):
            folds[same == kind] = np.arange((same == kind).sum()) % _FOLDS
    folds = as_array(folds)
    if not len(similarity) == len(same) == len(folds):
        raise ValueError(f"{len(similarity)} similarities, {len(same)} answers and {len(folds)} folds")
    return similarity, same, folds


def _allowed(far: float, different: np.ndarray | int) -> np.ndarray:
    """False accepts that a rate allows; a rate times a count may miss a whole number by rounding."""
    return np.floor(np.asarray(far * different) + 1e-9)


class _Curve:
    """The ROC curve of pairs that count any number of times.

    Step j of the curve accepts the pairs of the j largest distinct similarities; step 0 accepts none.
    """

    def __init__(self, similarity: np.ndarray, same: np.ndarray, folds: np.ndarray) -> None:
        if not np.isfinite(similarity).all():
            raise DataError(f"{(~np.isfinite(similarity)).sum()} of {len(similarity)} similarities are not finite")
        if same.all() or not same.any():
            raise DataError(
                f"verification needs pairs of one person and of two, but all {len(same)} pairs are of one kind"
            )
        self.order = np.argsort(-similarity, kind="stable")
        self.same, self.folds = same[self.order], folds[self.order]
        ranked = similarity[self.order]
        self.ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        self.names = np.unique(folds)
        if len(self.names) < 2:
            raise DataError("verification needs at least two folds: one is tested at the threshold of the others")

    def _steps(self, weights: np.ndarray) -> np.ndarray:
        """(r, P) numbers of ranked pairs -> (r, D + 1) their sums over what each step accepts."""
        sums = np.cumsum(weights, axis=1)[:, self.ends]
        return np.concatenate([np.zeros((len(weights), 1)), sums], axis=1)

    def rates(self, counts: np.ndarray, fars: Sequence[float]) -> np.ndarray:
        """(r, P) counts of pairs -> (r, 2 + len(fars)): area, equal error rate, TAR at each FAR."""
        ranked = counts[:, self.order]
        hits, falses = self._steps(ranked * self.same), self._steps(ranked * ~self.same)
        tar, far = ratio(hits, hits[:, -1:]), ratio(falses, falses[:, -1:])  # (r, D + 1)
        area = (np.diff(far) * (tar[:, 1:] + tar[:, :-1]) / 2).sum(1)
        columns = [area, _equal_error(tar, far)]
        rows = np.arange(len(ranked))
        for rate in fars:
            step = (falses <= _allowed(rate, falses[:, -1:])).sum(1) - 1
            columns.append(tar[rows, step])
        return np.stack(columns, axis=1)

    def fold_accuracies(self, counts: np.ndarray) -> np.ndarray:
        """(r, P) counts of pairs -> (r, F) accuracy of each fold, NaN if a resample has no pair of it."""
        rows = np.arange(len(counts))
        return np.stack([ratio(right[rows, step], size[:, -1]) for step, right, size in self.chosen(counts)], axis=1)

    def chosen(self, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(r, P) counts of pairs -> of each fold the step (r,) at its threshold, and the right answers and the pairs
        accepted there up to each step (r, D + 1).

        A threshold is one of the other folds' similarities, and accepts what reaches it, or lies above all of them. Of
        several that are best there, the middle one is taken.
        """
        ranked = counts[:, self.order]
        gain = ranked * np.where(self.same, 1, -1)
        right_all = self._steps(gain) + (ranked * ~self.same).sum(1, keepdims=True)
        size_all = self._steps(ranked)
        for name in self.names:
            inside = self.folds == name
            right = self._steps(gain * inside) + (ranked * (inside & ~self.same)).sum(1, keepdims=True)
            size = self._steps(ranked * inside)
            elsewhere = right_all - right
            elsewhere[:, 1:][np.diff(size_all - size) == 0] = -1  # no similarity of the other folds
            best = elsewhere == elsewhere.max(1, keepdims=True)
            rank = np.cumsum(best, axis=1)
            yield (rank >= (rank[:, -1:] + 1) // 2).argmax(1), right, size


def _equal_error(tar: np.ndarray, far: np.ndarray) -> np.ndarray:
    """(r, D + 1) curves -> (r,) rate where far = 1 - tar, on the line between the steps around it; NaN as they are."""
    excess = far + tar - 1  # from -1 to 1, never falling
    step = np.maximum((excess >= 0).argmax(1), 1)
    rows = np.arange(len(far))
    before, after = excess[rows, step - 1], excess[rows, step]
    part = ratio(-before, after - before)
    return far[rows, step - 1] + part * (far[rows, step] - far[rows, step - 1])
