"""Fitting linear maps to parts of a data set, and choosing the penalty without its test part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from facessl.core.errors import ConfigError
from facessl.data.source import Source
from facessl.data.splits import together
from facessl.evaluation.features import Features
from facessl.evaluation.protocols import _solvers as solvers
from facessl.evaluation.protocols._linear_tasks import LinearTask

#: Penalties that are tried, by solver: half decades. Of adamw and sgd it is the weight decay.
LAMBDAS: dict[str, tuple[float, ...]] = {
    "lbfgs": tuple(10.0 ** (e / 2) for e in range(2, -11, -1)),
    "ridge": tuple(10.0 ** (e / 2) for e in range(8, -7, -1)),
    "adamw": (0.05,),
    "sgd": (0.0,),
}
#: Below so many features in all, everything is computed in float64.
_SMALL = 4_000_000


@dataclass
class Loaded:
    """Features of one part with the numbers to predict."""

    source: Source
    found: Features
    target: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def rows(self, chosen: np.ndarray) -> Loaded:
        return replace(self, found=self.found.rows(chosen), target=self.target[chosen])


@dataclass(frozen=True)
class Fit:
    """Solves for a path of penalties."""

    solver: str
    balanced: bool
    epochs: int | None
    lr: float | None
    seed: int
    device: torch.device

    def __call__(self, made: LinearTask, part: Loaded, lambdas: tuple[float, ...]) -> solvers.Path:
        x, y = part.found.array, part.target
        weights = self._weights(made, y)
        # MPS has no float64, which the decompositions need.
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        if self.solver in ("adamw", "sgd"):
            recipe = solvers.RECIPES[self.solver]
            recipe = replace(recipe, epochs=self.epochs or recipe.epochs, lr=self.lr or recipe.lr)
            options: dict[str, Any] = {"loss": made.loss, "weights": weights, "device": device, "seed": self.seed}
            return solvers.descent(x, y, lambdas, solver=self.solver, recipe=recipe, **options)
        dtype = torch.float64 if x.size < _SMALL else torch.float32
        if self.solver == "ridge":
            return solvers.ridge(x, _numbers(made.loss, y), lambdas, weights=weights, dtype=dtype, device=device)
        return solvers.logistic(x, y, lambdas, loss=made.loss, weights=weights, dtype=dtype, device=device)

    def _weights(self, made: LinearTask, y: np.ndarray) -> np.ndarray | None:
        if not self.balanced:
            return None
        if made.loss != "classes":
            raise ConfigError(f"balanced is for classes, and {made.needs} are none: leave it out")
        counts = np.bincount(y)
        return len(y) / (np.count_nonzero(counts) * counts[y])


@dataclass(frozen=True)
class Choice:
    """Penalty number `at`, the scores of all, the images that gave them, and the solutions where they are known."""

    at: int
    scores: tuple[float | None, ...]
    images: str
    solved: solvers.Path | None
    own: bool = False

    def again(self, solved: solvers.Path) -> Choice:
        """The same choice, with a solution of its own."""
        more = ", then fitted again on all of them and the training images" if self.solved is not None else ""
        return replace(self, solved=solved, own=True, images=self.images + more)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        assert self.solved is not None
        return self.solved.outputs(x, 0 if self.own else self.at)[0]


def choose(
    made: LinearTask,
    fit: Fit,
    order: tuple[float, ...],
    learnt: Loaded,
    held: Loaded | None,
    folds: int,
) -> Choice:
    """The best penalty, of equally good ones the largest."""
    if held is not None:
        solved = fit(made, learnt, order)
        scores = [made.score(outputs, held.found, held.target) for outputs in solved.outputs(held.found.array)]
        return Choice(int(np.argmax(scores)), tuple(scores), f"{len(held.found)} validation images", solved)
    if len(order) == 1:
        return Choice(0, (None,), "nothing to choose", None)
    parts = _folds(made, learnt, folds, fit.seed)
    total = np.zeros(len(order))
    for part in np.unique(parts):
        inside, outside = learnt.rows(np.flatnonzero(parts != part)), learnt.rows(np.flatnonzero(parts == part))
        found = fit(made, inside, order).outputs(outside.found.array)
        total += [len(outside.found) * made.score(outputs, outside.found, outside.target) for outputs in found]
    mean = total / len(learnt.found)
    count = len(np.unique(parts))
    return Choice(int(mean.argmax()), tuple(mean.tolist()), f"{count}-fold cross-validation on training images", None)


def _folds(made: LinearTask, learnt: Loaded, folds: int, seed: int) -> np.ndarray:
    """(N,) fold of each training image; images that belong together are in one fold, classes are dealt evenly."""
    found = learnt.found
    keys = [] if learnt.source.streaming else [learnt.source.key(int(i)) for i in found.index]
    label = found.fields.get("label")
    groups = together(len(found), found.fields.get("identity"), label, keys)
    count = int(groups.max()) + 1
    if folds < 2 or count < 2:
        raise ConfigError(
            f"{folds}-fold cross-validation on {len(found)} images of {count} groups is not possible: give one lambda, "
            "a validation source, or more images"
        )
    first = np.unique(groups, return_index=True)[1]
    kind = learnt.target[first] if made.loss == "classes" else np.zeros(count, np.int64)
    shuffled = np.random.default_rng((seed, 2)).permutation(count)
    dealt = shuffled[np.argsort(kind[shuffled], kind="stable")]  # class after class
    fold = np.empty(count, np.int64)
    fold[dealt] = np.arange(count) % min(folds, count)
    return fold[groups]


def joined(a: Loaded, b: Loaded) -> Loaded:
    """Both parts for a fit; the rest of `a`."""
    array = np.concatenate([a.found.array, b.found.array])
    return replace(a, found=replace(a.found, array=array), target=np.concatenate([a.target, b.target]))


def _numbers(loss: str, target: np.ndarray) -> np.ndarray:
    """(N, M) numbers for least squares: -1 and 1 for classes and attributes."""
    if loss == "squares":
        return target
    yes = np.eye(int(target.max()) + 1)[target] if loss == "classes" else target.astype(np.float64)
    return 2 * yes - 1
