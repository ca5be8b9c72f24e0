"""Linear maps from fixed features: ridge and logistic regression for a whole path of penalties, AdamW and SGD.

All of them minimize, with the bias b free of any penalty,

    sum_i w_i loss(W x_i + b, y_i) / sum_i w_i + penalty,

so that a lambda means the same for any number of images. Ridge: squared error + lambda |W|^2, scikit-learn's Ridge with
alpha = lambda N. Logistic: cross entropy + lambda / 2 |W|^2, scikit-learn's LogisticRegression with C = 1 / (lambda N).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["classes", "attributes", "squares"]

#: Numbers of one piece of features held in float64 at once: 128 MB.
_PIECE = 2**24
#: Directions whose variance is below this fraction of the largest are rounding errors of an (N, N) matrix.
_RANK = {torch.float32: 1e-6, torch.float64: 1e-12}
#: Largest curvature of the loss in an output: Boehning's bound for the softmax, 1/4 for the sigmoid.
_CURVATURE = {"classes": 0.5, "attributes": 0.25}


class Basis:
    """Standardized features, turned into the eigenvectors of their covariance.

    One decomposition serves every penalty: ridge is a division there, and the logistic problem well conditioned.
    With more features than images (D > N) the (N, N) matrix of inner products is decomposed instead, and neither
    the standardized features nor the (D, R) eigenvectors are ever in memory as a whole.

    Attributes:
        weights: (N,) float64 of the images, with the sum 1.
        spectrum: (R,) variances along the directions, R <= D.
    """

    def __init__(
        self, train: np.ndarray, weights: np.ndarray | None, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """
        Args:
            train: (N, D) features, float16 or float32, also mapped from a file; kept if D > N.
            weights: (N,) of the images; None: all alike.
            dtype, device: of the turned features; decompositions are in float64.
        """
        self.dtype, self.device = dtype, torch.device(device)
        w = np.ones(len(train)) if weights is None else weights
        self.weights = torch.from_numpy(w / w.sum()).to(self.device)
        self._mean, self._scale = self._moments(train)
        self._train = train if train.shape[1] > len(train) else None
        if self._train is None:
            covariance = torch.zeros(train.shape[1], train.shape[1], dtype=torch.float64, device=self.device)
            for part in _pieces(*train.shape):
                rows = self._standardized(train[part], slice(None), torch.float64)
                covariance.addmm_(rows.T, rows * self.weights[part, None])
            spectrum, vectors = torch.linalg.eigh(covariance)
        else:
            root = self.weights.sqrt()[:, None]
            spectrum, vectors = torch.linalg.eigh(root * self._inner(train, train) * root.T)
            rank = spectrum > spectrum[-1] * _RANK[dtype]
            spectrum, vectors = spectrum[rank], root * vectors[:, rank] / spectrum[rank].sqrt()
        self.spectrum = spectrum.clamp_min(0).to(dtype)
        self._vectors = vectors.to(dtype)

    def turn(self, x: np.ndarray) -> Tensor:
        """(n, D) features -> (n, R) on `device`."""
        if self._train is not None:
            return self._inner(x, self._train).to(self.dtype) @ self._vectors
        parts = _pieces(*x.shape)
        return torch.cat([self._standardized(x[part], slice(None), self.dtype) @ self._vectors for part in parts])

    def _moments(self, x: np.ndarray) -> tuple[Tensor, Tensor]:
        """Weighted mean and standard deviation (D,) float64; features that never change have deviation 1."""
        mean, scale = torch.zeros(2, x.shape[1], dtype=torch.float64, device=self.device)
        for part in _pieces(x.shape[1], len(x)):
            columns = torch.tensor(x[:, part]).to(self.device, torch.float64)
            mean[part] = self.weights @ columns
            scale[part] = (self.weights @ (columns - mean[part]).square()).sqrt()
        return mean, torch.where(scale > 1e-7 * mean.abs().clamp_min(1e-30), scale, 1.0)

    def _standardized(self, x: np.ndarray, columns: slice, dtype: torch.dtype) -> Tensor:
        """Some rows of features, of which only `columns` are taken."""
        part = torch.tensor(x[:, columns]).to(self.device, dtype)
        return (part - self._mean[columns].to(dtype)) / self._scale[columns].to(dtype)

    def _inner(self, x: np.ndarray, others: np.ndarray) -> Tensor:
        """(n, m) float64 inner products of standardized features; pieces of them are multiplied in `dtype`."""
        total = torch.zeros(len(x), len(others), dtype=torch.float64, device=self.device)
        for columns in _pieces(x.shape[1], len(x) + len(others)):
            rows, columns_of_others = (self._standardized(part, columns, self.dtype) for part in (x, others))
            total += rows @ columns_of_others.T
        return total


def _pieces(length: int, width: int) -> Iterator[slice]:
    """Slices of `length` rows of `width` numbers that may be in memory at once."""
    step = max(1, _PIECE // width)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


@dataclass(frozen=True)
class Path:
    """Solutions for several penalties."""

    basis: Basis | None  # what the features are turned with; None: they are taken as they are
    maps: list[tuple[Tensor, Tensor]]  # W (R, M) and b (M,) for every penalty

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """Outputs (n, M) float32 for every penalty."""
        weight = self.maps[0][0]
        z = self.basis.turn(x) if self.basis else torch.tensor(np.asarray(x)).to(weight.device, weight.dtype)
        return [(z @ weight + bias).float().cpu().numpy() for weight, bias in self.maps]


def ridge(
    train: np.ndarray,
    target: np.ndarray,
    lambdas: Sequence[float],
    *,
    weights: np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Path:
    """Least squares to (N, M) numbers, in closed form for every penalty from one decomposition; else as `logistic`."""
    basis = Basis(train, weights, dtype, device)
    y = torch.from_numpy(np.asarray(target, np.float64)).to(basis.device)
    bias = basis.weights @ y  # (M,)
    moment = basis.turn(train).T @ ((y - bias) * basis.weights[:, None]).to(dtype)  # (R, M)
    return Path(basis, [(moment / (basis.spectrum + value)[:, None], bias.to(dtype)) for value in lambdas])


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
    """Logistic regression by L-BFGS, each penalty started from the solution of the one before.

    The variables are W in the eigenbasis of the features, divided by the root of an upper bound of their curvature
    (Boehning, "Multinomial logistic regression algorithm", 1992), which is several times faster than L-BFGS on the
    standardized features and ends nearer to the solution.

    Args:
        train: (N, D) features; they are standardized.
        target: (N,) class indices (`classes`, softmax), or (N, A) zeros and ones (`attributes`, A sigmoids).
        lambdas: penalties above 0, the largest first.
        weights: (N,) of the images.
        dtype, device: of the computation; decompositions are in float64.
        tolerance: largest gradient in those variables at which a solution counts as found.
        max_iterations: L-BFGS steps per penalty.
    """
    basis = Basis(train, weights, dtype, device)
    z = basis.turn(train)
    y, outputs = _target(loss, target, device)
    share = basis.weights.to(dtype)
    # (M, R): the gradient is then G^T z, which reads z row by row, ten times as fast on a CPU as z^T G.
    weight = torch.zeros(outputs, z.shape[1], dtype=dtype, device=basis.device)
    bias = torch.zeros(outputs, dtype=dtype, device=basis.device)
    maps = []
    for value in lambdas:
        unit = 1 / (_CURVATURE[loss] * basis.spectrum + value).sqrt()  # (R,)
        scaled, bias = (weight / unit).requires_grad_(), bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [scaled, bias],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            history_size=20,
            tolerance_grad=tolerance,
            tolerance_change=0.0 if dtype == torch.float64 else 1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure(scaled: Tensor = scaled, bias: Tensor = bias, unit: Tensor = unit, value: float = value) -> Tensor:
            weight = unit * scaled
            total = share @ _losses(loss, F.linear(z, weight, bias), y) + 0.5 * value * weight.square().sum()
            scaled.grad, bias.grad = torch.autograd.grad(total, (scaled, bias))
            return total

        with torch.enable_grad():
            optimizer.step(closure)
        weight, bias = unit * scaled.detach(), bias.detach()
        maps.append((weight.T, bias))
    return Path(basis, maps)


def _target(loss: str, target: np.ndarray, device: Any) -> tuple[Tensor, int]:
    """The target on `device`, and M, the outputs that it needs."""
    return torch.from_numpy(target).to(device), int(target.max()) + 1 if loss == "classes" else target.shape[1]


def _losses(loss: str, logits: Tensor, target: Tensor) -> Tensor:
    """(n, M) outputs -> (n,)."""
    if loss == "classes":
        return F.cross_entropy(logits, target, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").sum(1)


#: Peak learning rate, epochs. adamw: FRA's linear probing (released main_fer.py). sgd: LEWEL's linear evaluation; its
#: momentum is 0.9 here.
RECIPES = {"adamw": (2e-4, 100), "sgd": (0.4, 50)}
_BATCH = 256


def rate(solver: str, peak: float, epochs: int, epoch: float) -> float:
    """Learning rate at a point of the run: adamw 5 epochs of warm-up, then cosine to 1e-6; sgd steps at 30 and 40."""
    if solver == "sgd":
        return peak * 0.1 ** ((epoch >= 30) + (epoch >= 40))
    if epoch < 5:
        return peak * epoch / 5
    done = min(1.0, (epoch - 5) / max(1e-9, epochs - 5))
    return 1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * done)) / 2


def descent(
    train: np.ndarray,
    target: np.ndarray,
    decays: Sequence[float],
    *,
    solver: str,
    lr: float | None = None,
    epochs: int | None = None,
    loss: Loss = "classes",
    weights: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Path:
    """A linear layer on the features as they are: W from N(0, 0.01), b = 0, trained by AdamW or SGD (momentum 0.9).

    Args:
        train, target, loss, weights: as in `logistic`.
        decays: weight decays of the optimizer, in place of penalties; each is a run of its own.
        solver: adamw or sgd.
        lr, epochs: peak learning rate and passes over the images; None: those of `RECIPES`.
        seed: of W and of the order.
    """
    lr, epochs = lr or RECIPES[solver][0], epochs or RECIPES[solver][1]
    x = torch.tensor(np.asarray(train, np.float32)).to(device)
    share = torch.ones(len(x)) if weights is None else torch.from_numpy(weights / weights.mean()).float()
    share, (y, outputs) = share.to(device), _target(loss, target, device)
    size = min(_BATCH, len(x))
    steps = len(x) // size
    maps = []
    for decay in decays:
        rng = torch.Generator().manual_seed(seed)
        weight = (0.01 * torch.randn(x.shape[1], outputs, generator=rng)).to(device).requires_grad_()
        bias = torch.zeros(outputs, device=device, requires_grad=True)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW([weight, bias], weight_decay=decay)
        if solver == "sgd":
            optimizer = torch.optim.SGD([weight, bias], weight_decay=decay, momentum=0.9)
        for step in range(epochs * steps):
            if step % steps == 0:
                shuffled = torch.randperm(len(x), generator=rng).to(device)
            part = shuffled[step % steps * size : (step % steps + 1) * size]
            optimizer.param_groups[0]["lr"] = rate(solver, lr, epochs, step / steps)
            with torch.enable_grad():
                value = share[part] @ _losses(loss, x[part] @ weight + bias, y[part]) / size
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        maps.append((weight.detach(), bias.detach()))
    return Path(None, maps)
