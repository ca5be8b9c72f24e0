"""Choosing the penalty of a linear map without its test part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from facessl.core.errors import ConfigError
from facessl.data.splits import inseparable_groups
from facessl.evaluation.protocols import _solvers as solvers
from facessl.evaluation.protocols._linear_tasks import LinearTask, Loaded

#: Penalties that are tried, by solver, the largest first: half decades. Of adamw and sgd it is the weight decay.
LAMBDAS: dict[str, tuple[float, ...]] = {
    "lbfgs": tuple(10.0 ** (e / 2) for e in range(2, -11, -1)),
    "ridge": tuple(10.0 ** (e / 2) for e in range(8, -7, -1)),
    "adamw": (0.05,),
    "sgd": (0.0,),
}
#: Below so many features in all, everything is computed in float64.
_SMALL = 4_000_000

Fit = Callable[[Loaded, Sequence[float]], solvers.Path]


def fit_by(loss: solvers.Loss, solver: str, balanced: bool, device: torch.device, **descent: Any) -> Fit:
    """Return the fit of a path of penalties to a part; arguments as in `linear`, `descent` are lr, epochs and seed."""

    def fit(part: Loaded, lambdas: Sequence[float]) -> solvers.Path:
        x, y = part.features.array, part.target
        # MPS has no float64, which the decompositions need.
        options: dict[str, Any] = {"device": device if device.type == "cuda" else "cpu"}
        if balanced:
            counts = np.bincount(y)
            options["weights"] = len(y) / (np.count_nonzero(counts) * counts[y])
        if solver in solvers.RECIPES:
            return solvers.descent(x, y, lambdas, loss=loss, solver=solver, **descent, **options)
        options["dtype"] = torch.float64 if x.size < _SMALL else torch.float32
        if solver == "lbfgs":
            return solvers.logistic(x, y, lambdas, loss=loss, **options)
        if loss != "squares":  # -1 and 1
            y = 2.0 * (np.eye(int(y.max()) + 1)[y] if loss == "classes" else y) - 1
        return solvers.ridge(x, y, lambdas, **options)

    return fit


@dataclass(frozen=True)
class Chosen:
    """The map with the best penalty, of equally good ones the largest."""

    outputs: Callable[[np.ndarray], np.ndarray]  # (n, D) features -> (n, M)
    at: int  # position of the penalty
    scores: list[float | None]  # of all penalties; None if nothing had to be chosen
    images: str  # that gave the scores, in words


def choose(
    task: LinearTask,
    fit: Fit,
    order: tuple[float, ...],
    learned: Loaded,
    held: Loaded | None,
    *,
    refit: bool,
    folds: int,
    seed: int,
) -> Chosen:
    """Choose a penalty of `order` on the part `held`, or by cross-validation, and fit it; arguments as in `linear`."""
    at, scores, solved = 0, None, None
    images = "nothing to choose"
    if held is not None:
        solved = fit(learned, order)
        scores = task.scores(held, solved.outputs(held.features.array))
        images = f"{len(held.features)} validation images"
    elif len(order) > 1:
        fold = _folds(task, learned, folds, seed)
        scores = np.empty((len(order), len(fold)))
        for part in np.unique(fold):
            outside = learned.rows(np.flatnonzero(fold == part))
            path = fit(learned.rows(np.flatnonzero(fold != part)), order)
            scores[:, fold == part] = task.scores(outside, path.outputs(outside.features.array))
        images = f"{fold.max() + 1}-fold cross-validation on training images"
    means: list[float | None] = [None]
    if scores is not None:
        mean = np.nanmean(scores, axis=1).round(12)  # equally good penalties are equal
        at, means = int(mean.argmax()), mean.tolist()
    if held is not None and refit:
        images += ", then fitted again on all of them and the training images"
        array = np.concatenate([learned.features.array, held.features.array])
        target = np.concatenate([learned.target, held.target])
        learned, solved = replace(learned, features=replace(learned.features, array=array), target=target), None
    path, place = (fit(learned, (order[at],)), 0) if solved is None else (solved, at)
    return Chosen(lambda x: path.outputs(x)[place], at, means, images)


def _folds(task: LinearTask, learned: Loaded, folds: int, seed: int) -> np.ndarray:
    """(N,) folds; images that belong together are in one fold, classes are dealt evenly."""
    features = learned.features
    keys = [] if learned.source.streaming else [learned.source.key(int(i)) for i in features.index]
    groups = inseparable_groups(len(features), features.fields.get("identity"), features.fields.get("label"), keys)
    count = int(groups.max()) + 1
    if folds < 2 or count < 2:
        raise ConfigError(
            f"{folds}-fold cross-validation on {len(features)} images of {count} groups is not possible: give one "
            "lambda, a validation source, or more images"
        )
    first = np.unique(groups, return_index=True)[1]
    kind = learned.target[first] if task.kind.loss == "classes" else np.zeros(count, np.int64)
    shuffled = np.random.default_rng((seed, 2)).permutation(count)
    dealt = shuffled[np.argsort(kind[shuffled], kind="stable")]  # class after class
    fold = np.empty(count, np.int64)
    fold[dealt] = np.arange(count) % min(folds, count)
    return fold[groups]
