"""Linear maps from fixed features: ridge and logistic regression for a whole path of penalties, AdamW and SGD.

All of them minimise, with the bias b free of any penalty,

    sum_i w_i loss(W x_i + b, y_i) / sum_i w_i + penalty,

so that a lambda means the same for any number of images. Ridge: squared error + lambda |W|^2, scikit-learn's Ridge with
alpha = lambda N. Logistic: cross entropy + lambda / 2 |W|^2, scikit-learn's LogisticRegression with C = 1 / (lambda N).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["classes", "attributes", "squares"]

#: Numbers of one piece of features held in float64 at once: 128 MB.
_PIECE = 2**24
#: Directions whose share of the largest variance is below this are rounding errors of an (N, N) matrix in float32.
_RANK = 1e-6
#: Largest curvature of the loss in an output: Boehning's bound for the softmax, 1/4 for the sigmoid.
_CURVATURE = {"classes": 0.5, "attributes": 0.25}


class Basis:
    """Standardised features, turned into the eigenvectors of their covariance.

    One decomposition serves every penalty: ridge is a division there, and the logistic problem well conditioned.
    With more features than images (D > N) the (N, N) matrix of inner products is decomposed instead.

    Attributes:
        spectrum: (R,) variances along the directions, R <= D.
    """

    def __init__(
        self,
        train: np.ndarray,
        weights: np.ndarray | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            train: (N, D) features, float16 or float32, also mapped from a file; kept where D > N.
            weights: (N,) of the images; None: all alike.
            dtype, device: of the turned features.
        """
        w = np.ones(len(train)) if weights is None else np.asarray(weights, np.float64)
        self.dtype, self.device = dtype, torch.device(device)
        self._root = torch.from_numpy(np.sqrt(w / w.sum())).to(self.device)  # (N,)
        self.mean, self.scale = self._moments(train)
        wide = train.shape[1] > len(train)
        self._train = train if wide else None
        # Wide matrices are large: float32, summed piece by piece, is enough for the penalties that suit them.
        working = dtype if wide else torch.float64
        gram = self._inner(train, working) if wide else self._outer(train)
        spectrum, vectors = torch.linalg.eigh(gram)
        if wide:
            kept = spectrum > spectrum[-1] * (_RANK if dtype == torch.float32 else 1e-12)
            spectrum, vectors = spectrum[kept], vectors[:, kept]
            vectors = vectors / spectrum.sqrt()
        self.spectrum = spectrum.clamp_min(0).to(dtype)
        self._vectors = vectors.to(dtype)

    def turn(self, x: np.ndarray) -> Tensor:
        """(n, D) features -> (n, R) on `device`."""
        if self._train is None:
            return torch.cat([rows @ self._vectors for _, rows in self._pieces(x, self.dtype)])
        out = torch.zeros(len(x), len(self._train), dtype=self.dtype, device=self.device)
        for part, rows in self._pieces(self._train, self.dtype):
            weighted = rows * self._root[part, None].to(self.dtype)
            for of, others in self._pieces(x, self.dtype):
                out[of, part] = others @ weighted.T
        return out @ self._vectors

    def _moments(self, x: np.ndarray) -> tuple[Tensor, Tensor]:
        """Weighted mean and standard deviation (D,) float64; features that never change have deviation 1."""
        share = self._root.square()
        mean = torch.zeros(x.shape[1], dtype=torch.float64, device=self.device)
        for part, rows in self._raw(x, torch.float64):
            mean += share[part] @ rows
        variance = torch.zeros_like(mean)
        for part, rows in self._raw(x, torch.float64):
            variance += share[part] @ (rows - mean).square()
        scale = variance.sqrt()
        return mean, torch.where(scale > 1e-7 * mean.abs().clamp_min(1e-30), scale, 1.0)

    def _outer(self, x: np.ndarray) -> Tensor:
        """(D, D) float64 covariance of the standardised features."""
        total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=self.device)
        for part, rows in self._pieces(x, torch.float64):
            weighted = rows * self._root[part, None]
            total.addmm_(weighted.T, weighted)
        return total

    def _inner(self, x: np.ndarray, dtype: torch.dtype) -> Tensor:
        """(N, N) float64 inner products of the weighted, standardised features."""
        root = self._root.to(dtype)
        total = torch.zeros(len(x), len(x), dtype=torch.float64, device=self.device)
        for a, rows in self._pieces(x, dtype):
            for b, others in self._pieces(x[: a.stop], dtype):
                block = ((rows * root[a, None]) @ (others * root[b, None]).T).double()
                total[a, b] = block
                total[b, a] = block.T
        return total

    def _pieces(self, x: np.ndarray, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Standardised rows, piece by piece."""
        mean, scale = self.mean.to(dtype), self.scale.to(dtype)
        for part, rows in self._raw(x, dtype):
            yield part, (rows - mean) / scale

    def _raw(self, x: np.ndarray, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        step = max(1, _PIECE // x.shape[1])
        for start in range(0, len(x), step):
            part = slice(start, min(start + step, len(x)))
            yield part, torch.tensor(x[part]).to(self.device, dtype)


@dataclass(frozen=True)
class Path:
    """Solutions for several penalties.

    Attributes:
        lambdas: L penalties, the largest first.
        basis: what the features are turned with; None: they are taken as they are.
        maps: L pairs of W (R, M) and b (M,).
    """

    lambdas: tuple[float, ...]
    basis: Basis | None
    maps: tuple[tuple[Tensor, Tensor], ...]

    def outputs(self, x: np.ndarray, at: int | None = None) -> list[np.ndarray]:
        """Outputs (n, M) float32 for every penalty, or for number `at` alone."""
        maps = self.maps if at is None else self.maps[at : at + 1]
        weight = maps[0][0]
        z = self.basis.turn(x) if self.basis else torch.tensor(np.asarray(x)).to(weight.device, weight.dtype)
        return [(z @ weight + bias).float().cpu().numpy() for weight, bias in maps]

    def coefficients(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """W (D, M) and b (M,) for the features as they are, float64 (not where D > N, where W would be large)."""
        weight, bias = (part.double() for part in self.maps[at])
        if self.basis is None:
            return weight.cpu().numpy(), bias.cpu().numpy()
        assert self.basis._train is None
        full = (self.basis._vectors.double() @ weight) / self.basis.scale[:, None]
        return full.cpu().numpy(), (bias - self.basis.mean @ full).cpu().numpy()


def ridge(
    train: np.ndarray,
    target: np.ndarray,
    lambdas: Sequence[float],
    *,
    weights: np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Path:
    """Least squares with a penalty, in closed form for every penalty from one decomposition.

    Args:
        train: (N, D) features; they are standardised.
        target: (N, M) numbers.
        lambdas: penalties, above 0.
        weights: (N,) of the images.
        dtype, device: of the computation; decompositions are in float64.
    """
    basis = Basis(train, weights, dtype=dtype, device=device)
    z = basis.turn(train)
    share = basis._root.square()
    y = torch.from_numpy(np.asarray(target, np.float64)).to(basis.device)
    bias = share @ y  # (M,)
    moment = ((y - bias).mul(share[:, None]).to(dtype).T @ z).T  # (R, M)
    order = tuple(sorted(lambdas, reverse=True))
    maps = tuple((moment / (basis.spectrum + value)[:, None], bias.to(dtype)) for value in order)
    return Path(order, basis, maps)


def logistic(
    train: np.ndarray,
    target: np.ndarray,
    lambdas: Sequence[float],
    *,
    loss: Loss = "classes",
    weights: np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> Path:
    """Logistic regression by L-BFGS, each penalty started from the solution of the next larger one.

    The variables are W in the eigenbasis of the features, divided by the root of an upper bound of their curvature
    (Boehning, "Multinomial logistic regression algorithm", 1992), in which L-BFGS needs tens of steps where it would
    need thousands on raw features.

    Args:
        train: (N, D) features; they are standardised.
        target: (N,) class indices (`classes`, softmax), or (N, A) zeros and ones (`attributes`, A sigmoids).
        lambdas: penalties, above 0.
        weights: (N,) of the images.
        dtype, device: of the computation.
        tolerance: largest gradient in those variables at which a solution counts as found.
        max_iterations: L-BFGS steps per penalty.
    """
    basis = Basis(train, weights, dtype=dtype, device=device)
    z = basis.turn(train)
    share = basis._root.square().to(dtype)
    objective = _objective(loss, torch.from_numpy(np.asarray(target)).to(basis.device), share)
    outputs = int(target.max()) + 1 if loss == "classes" else target.shape[1]
    weight = torch.zeros(z.shape[1], outputs, dtype=dtype, device=basis.device)
    bias = torch.zeros(outputs, dtype=dtype, device=basis.device)
    order = tuple(sorted(lambdas, reverse=True))
    maps = []
    for value in order:
        unit = 1 / (_CURVATURE[loss] * basis.spectrum + value).sqrt()[:, None]  # (R, 1)
        weight, bias = _minimise(z, objective, weight / unit, bias, unit, value, tolerance, max_iterations)
        maps.append((weight, bias))
    return Path(order, basis, tuple(maps))


def _objective(loss: str, target: Tensor, share: Tensor) -> Callable[[Tensor], Tensor]:
    if loss == "classes":
        return lambda logits: share @ F.cross_entropy(logits, target, reduction="none")
    wanted = target.to(share.dtype)
    return lambda logits: share @ F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)


def _minimise(
    z: Tensor,
    objective: Callable[[Tensor], Tensor],
    scaled: Tensor,
    bias: Tensor,
    unit: Tensor,
    value: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor]:
    """W (R, M) and b (M,) of one penalty, from W / unit and b."""
    # (M, R): the gradient is then G^T z, which reads z row by row, ten times as fast on a CPU as z^T G.
    scaled, unit = scaled.T.contiguous().requires_grad_(), unit.T
    bias = bias.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [scaled, bias],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0.0 if z.dtype == torch.float64 else 1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        weight = unit * scaled
        total = objective(F.linear(z, weight, bias)) + 0.5 * value * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(closure)
    return (unit * scaled.detach()).T, bias.detach()


@dataclass(frozen=True)
class Recipe:
    """How a linear layer is trained by gradient steps.

    Attributes:
        lr: peak learning rate.
        epochs: passes over the images.
        warmup: epochs of linear warm-up.
        milestones: epochs at which the learning rate is divided by ten; empty: cosine to `final_lr`.
        final_lr: at the end of the cosine.
        batch_size: images per step.
    """

    lr: float
    epochs: int
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    final_lr: float = 0.0
    batch_size: int = 256

    def rate(self, epoch: float) -> float:
        """Learning rate at a point of the run, in epochs."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        if self.milestones:
            return self.lr * 0.1 ** sum(epoch >= m for m in self.milestones)
        done = (epoch - self.warmup) / max(1e-9, self.epochs - self.warmup)
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2


#: adamw: FRA's linear probing (released main_fer.py). sgd: LEWEL's linear evaluation; its momentum is 0.9 here.
RECIPES = {
    "adamw": Recipe(lr=2e-4, epochs=100, warmup=5, final_lr=1e-6),
    "sgd": Recipe(lr=0.4, epochs=50, milestones=(30, 40)),
}


def descent(
    train: np.ndarray,
    target: np.ndarray,
    decays: Sequence[float],
    *,
    solver: str = "adamw",
    recipe: Recipe | None = None,
    loss: Loss = "classes",
    weights: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Path:
    """A linear layer on the features as they are: W from N(0, 0.01), b = 0, trained by AdamW or SGD (momentum 0.9).

    Args:
        train, target, loss, weights: as in `logistic`.
        decays: weight decays of the optimiser, in place of penalties; each is a run of its own.
        solver: adamw or sgd.
        recipe: None: that of `RECIPES`.
        seed: of W and of the order.
    """
    recipe = recipe or RECIPES[solver]
    x = torch.tensor(np.asarray(train, np.float32)).to(device)
    share = (
        torch.ones(len(x)) if weights is None else torch.from_numpy(np.asarray(weights / weights.mean(), np.float32))
    )
    share, y = share.to(device), torch.from_numpy(np.asarray(target)).to(device)
    outputs = int(target.max()) + 1 if loss == "classes" else target.shape[1]
    order = tuple(sorted(decays, reverse=True))
    maps = []
    for decay in order:
        rng = torch.Generator().manual_seed(seed)
        weight = (0.01 * torch.randn(x.shape[1], outputs, generator=rng)).to(device).requires_grad_()
        bias = torch.zeros(outputs, device=device, requires_grad=True)
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[solver]
        extra = {"momentum": 0.9} if solver == "sgd" else {}
        optimiser = kind([weight, bias], lr=recipe.lr, weight_decay=decay, **extra)
        size = min(recipe.batch_size, len(x))
        steps = len(x) // size
        for step in range(recipe.epochs * steps):
            if step % steps == 0:
                shuffled = torch.randperm(len(x), generator=rng).to(device)
            part = shuffled[step % steps * size : (step % steps + 1) * size]
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(step / steps)
            with torch.enable_grad():
                value = _objective(loss, y[part], share[part] / size)(x[part] @ weight + bias)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        maps.append((weight.detach(), bias.detach()))
    return Path(order, None, tuple(maps))
