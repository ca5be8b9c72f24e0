"""Choosing the penalty of a linear map without its test part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from facessl.core.errors import ConfigError
from facessl.data.splits import together
from facessl.evaluation.protocols import _solvers as solvers
from facessl.evaluation.protocols._linear_tasks import LinearTask, Loaded

#: Penalties that are tried, by solver: half decades. Of adamw and sgd it is the weight decay.
LAMBDAS: dict[str, tuple[float, ...]] = {
    "lbfgs": tuple(10.0 ** (e / 2) for e in range(2, -11, -1)),
    "ridge": tuple(10.0 ** (e / 2) for e in range(8, -7, -1)),
    "adamw": (0.05,),
    "sgd": (0.0,),
}
#: Below so many features in all, everything is computed in float64.
_SMALL = 4_000_000

Fit = Callable[[Loaded, tuple[float, ...]], solvers.Path]


@dataclass(frozen=True)
class Solve:
    """Fits a path of penalties to a part; as `linear` takes the fields."""

    loss: solvers.Loss
    solver: str
    balanced: bool
    epochs: int | None
    lr: float | None
    seed: int
    device: torch.device

    def __call__(self, part: Loaded, lambdas: tuple[float, ...]) -> solvers.Path:
        x, y = part.found.array, part.target
        # MPS has no float64, which the decompositions need.
        options: dict[str, Any] = {"device": self.device if self.device.type == "cuda" else "cpu"}
        if self.balanced:
            counts = np.bincount(y)
            options["weights"] = len(y) / (np.count_nonzero(counts) * counts[y])
        if self.solver in solvers.RECIPES:
            recipe = solvers.RECIPES[self.solver]
            recipe = replace(recipe, epochs=self.epochs or recipe.epochs, lr=self.lr or recipe.lr)
            options |= {"loss": self.loss, "seed": self.seed, "solver": self.solver, "recipe": recipe}
            return solvers.descent(x, y, lambdas, **options)
        options["dtype"] = torch.float64 if x.size < _SMALL else torch.float32
        if self.solver == "lbfgs":
            return solvers.logistic(x, y, lambdas, loss=self.loss, **options)
        if self.loss != "squares":  # -1 and 1
            y = 2.0 * (np.eye(int(y.max()) + 1)[y] if self.loss == "classes" else y) - 1
        return solvers.ridge(x, y, lambdas, **options)


@dataclass(frozen=True)
class Choice:
    """Penalty number `at`, the scores of all, the images that gave them, and the solutions where they are known."""

    at: int
    scores: tuple[float | None, ...]
    images: str
    solved: solvers.Path | None = None


def choose(
    made: LinearTask, fit: Fit, order: tuple[float, ...], learnt: Loaded, held: Loaded | None, folds: int, seed: int
) -> Choice:
    """The best penalty, of equally good ones the largest."""
    if held is not None:
        solved = fit(learnt, order)
        scores = _mean(made.scores(held, solved.outputs(held.found.array)))
        return Choice(int(scores.argmax()), tuple(scores.tolist()), f"{len(held.found)} validation images", solved)
    if len(order) == 1:
        return Choice(0, (None,), "nothing to choose")
    fold = _folds(made, learnt, folds, seed)
    each = np.empty((len(order), len(fold)))
    for part in np.unique(fold):
        outside = learnt.rows(np.flatnonzero(fold == part))
        solved = fit(learnt.rows(np.flatnonzero(fold != part)), order)
        each[:, fold == part] = made.scores(outside, solved.outputs(outside.found.array))
    scores = _mean(each)
    images = f"{fold.max() + 1}-fold cross-validation on training images"
    return Choice(int(scores.argmax()), tuple(scores.tolist()), images)


def final(
    fit: Fit, order: tuple[float, ...], choice: Choice, learnt: Loaded, held: Loaded | None, refit: bool
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """The map with the chosen penalty, (n, D) features -> (n, M), and the images that chose it, in words."""
    images, solved, at = choice.images, choice.solved, choice.at
    if refit and held is not None:
        images += ", then fitted again on all of them and the training images"
        array = np.concatenate([learnt.found.array, held.found.array])
        target = np.concatenate([learnt.target, held.target])
        learnt, solved = replace(learnt, found=replace(learnt.found, array=array), target=target), None
    if solved is None:
        solved, at = fit(learnt, (order[choice.at],)), 0
    return lambda x: solved.outputs(x)[at], images


def _mean(scores: np.ndarray) -> np.ndarray:
    """(L, N) -> (L,), rounded, so that equally good penalties are equal."""
    return np.nanmean(scores, axis=1).round(12)


def _folds(made: LinearTask, learnt: Loaded, folds: int, seed: int) -> np.ndarray:
    """(N,) fold of each training image; images that belong together are in one fold, classes are dealt evenly."""
    found = learnt.found
    keys = [] if learnt.source.streaming else [learnt.source.key(int(i)) for i in found.index]
    groups = together(len(found), found.fields.get("identity"), found.fields.get("label"), keys)
    count = int(groups.max()) + 1
    if folds < 2 or count < 2:
        raise ConfigError(
            f"{folds}-fold cross-validation on {len(found)} images of {count} groups is not possible: give one lambda, "
            "a validation source, or more images"
        )
    first = np.unique(groups, return_index=True)[1]
    kind = learnt.target[first] if made.kind.loss == "classes" else np.zeros(count, np.int64)
    shuffled = np.random.default_rng((seed, 2)).permutation(count)
    dealt = shuffled[np.argsort(kind[shuffled], kind="stable")]  # class after class
    fold = np.empty(count, np.int64)
    fold[dealt] = np.arange(count) % min(folds, count)
    return fold[groups]
