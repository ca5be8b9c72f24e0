"""Branches, decoder, losses and loss weights of PCL."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_gather_rows, all_reduce_mean, rank, world_size
from facessl.core.precision import at_least_float32

#: Side of the map that a feature is flattened from.
GRID = 4


class Branch(nn.Module):
    """Face-aware or pose feature from the backbone's map: two 3x3 convolutions with LeakyReLU, flattened."""

    def __init__(self, channels: int, width: int) -> None:
        """
        Args:
            channels: C of the backbone's map.
            width: channels of both convolutions.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) -> (B, 16 * width); a map that is not 4 x 4 is averaged (or repeated) to that."""
        x = self.layers(features)
        out: Tensor = (x if x.shape[-2:] == (GRID, GRID) else F.adaptive_avg_pool2d(x, GRID)).flatten(1)
        return out


def projection_head(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Linear, ReLU, linear, batch norm: (B, features) -> (B, dim)."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.BatchNorm1d(dim))


class Decoder(nn.Module):
    """An image from a feature: a linear layer to a map of 1 x 1, doublings, each with a 3x3 convolution, tanh."""

    def __init__(self, features: int, *, width: int, size: int) -> None:
        """
        Args:
            features: width of the feature.
            width: channels of the 1 x 1 map; half of it follow, a quarter before the last convolution.
            size: side of the image in pixels, a power of two.
        """
        super().__init__()
        self.fc = nn.Linear(features, width)
        doublings = int(math.log2(size))
        channels = [width, *[width // 2] * (doublings - 2), width // 4, 3]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in channels[1:-1])

    def forward(self, feature: Tensor) -> Tensor:
        """(B, F) -> (B, 3, size, size) in -1..1."""
        x = self.fc(feature)[..., None, None]
        for i, conv in enumerate(self.convs):
            x = F.interpolate(F.relu(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = conv(x) if i == len(self.norms) else self.norms[i](conv(x))
        return x.tanh()


def orthogonality(face: Tensor, pose: Tensor) -> Tensor:
    """Mean squared entry of E^T P, with E and P the centred features (B, F), each row over its length (no gradient).

    Args:
        face, pose: (B, F) of this rank; the batch of all ranks counts.
    """
    with torch.autocast(face.device.type, enabled=False):
        width = face.shape[1]
        both = all_gather_rows(at_least_float32(torch.cat([face, pose], dim=1)))
        e, p = (_centred(x) for x in both.split(width, dim=1))
        # |E^T P|^2 = sum of (E E^T) o (P P^T): batch x batch instead of features x features.
        return ((e @ e.t()) * (p @ p.t())).sum() / width**2


def _centred(x: Tensor) -> Tensor:
    x = x - x.mean(0, keepdim=True)
    return x / (x.detach().norm(dim=1, keepdim=True) + 1e-6)


class Mixing:
    """Draws that mix negatives in pairs, alike on every rank: of the global batch, from a generator of their own."""

    def __init__(self, alpha: float | None, *, seed: int, device: torch.device) -> None:
        """
        Args:
            alpha: of Beta(alpha, alpha), 1 or more; None: nothing is mixed.
            seed: of the draws, the same on every rank.
            device: where the draws are made.
        """
        self.alpha = alpha
        self.generator = torch.Generator(device).manual_seed(seed)

    def order(self, count: int) -> Tensor:
        """(count,) int64: the partner of each negative, a permutation."""
        return torch.randperm(count, generator=self.generator, device=self.generator.device)

    def shares(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) float32: weight of each negative beside its partner."""
        device = self.generator.device
        if self.alpha is None:
            return torch.ones(rows, columns, device=device)
        uniform = torch.rand(rows, columns, generator=self.generator, device=device)
        return beta_quantile(uniform, self.alpha)


def beta_quantile(uniform: Tensor, alpha: float, cells: int = 4096) -> Tensor:
    """Quantiles of Beta(alpha, alpha), alpha >= 1, at `uniform` (any shape, 0..1), by a table of the distribution."""
    table = _beta_table(alpha, cells, uniform.device, uniform.dtype)
    above = torch.searchsorted(table, uniform.contiguous(), right=True).clamp_(1, cells)
    low, high = table[above - 1], table[above]
    return ((above - 1 + (uniform - low) / (high - low).clamp_min(1e-12)) / cells).clamp_(0, 1)


@functools.cache
def _beta_table(alpha: float, cells: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(cells + 1,) distribution function of Beta(alpha, alpha); made on the host, so that every rank has the same."""
    edges = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    table = F.pad((middle * (1 - middle)).pow(alpha - 1).cumsum(0), (1, 0))
    return (table / table[-1]).to(device, dtype)


def face_contrast(features: Tensor, mixing: Mixing, temperature: float) -> Tensor:
    """InfoNCE between two views of an image; negatives are the views of all other images, mixed in pairs.

    Query i has the negatives f_ij = s_ij f_j + (1 - s_ij) f_o(j) over the j-th of the other images' 2 (G - 1) views
    (features before the normalisation) and their partners in the order o.

    Args:
        features: (2B, D), the first views of this rank's B images, then the second ones; G = B x ranks.
        mixing: the draws.
        temperature: of the softmax.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = at_least_float32(features)
        count = len(x) // 2
        every = all_gather_rows(x.unflatten(0, (2, count)).transpose(0, 1))  # (G, 2, D)
        total = len(every)
        every = every.transpose(0, 1).flatten(0, 1)  # (2G, D), first views of all images, then the second ones
        images = rank() * count + torch.arange(count, device=x.device)
        columns = _views_of_others(images, total).repeat(2, 1)  # (2B, 2G - 2)
        partners = columns[:, mixing.order(2 * total - 2)]
        share = mixing.shares(2 * total, 2 * total - 2)[torch.cat([images, images + total])].to(x)
        query = F.normalize(x, dim=1)
        dots = query @ every.t()  # (2B, 2G)
        gram = every @ every.t()
        # The mixtures themselves would be (2B, 2G - 2, D): their products and lengths follow from these two.
        mixed = share * dots.gather(1, columns) + (1 - share) * dots.gather(1, partners)
        squares = gram.diagonal()
        length = share.square() * squares[columns] + (1 - share).square() * squares[partners]
        length = length + 2 * share * (1 - share) * gram[columns, partners]
        negative = mixed / length.clamp_min(1e-12).sqrt()
        positive = (query * query.roll(count, 0)).sum(1, keepdim=True)
        return _first_wins(torch.cat([positive, negative], dim=1), temperature)


def _views_of_others(images: Tensor, total: int) -> Tensor:
    """(B,) positions of images among `total` -> (B, 2 * total - 2) rows of all views but those of the image."""
    columns = torch.arange(2 * total - 2, device=images.device).expand(len(images), -1)
    first = images[:, None]
    columns = columns + (columns >= first)  # skips its first view, then its second
    return columns + (columns >= first + total)


def pose_contrast(features: Tensor, negatives: Tensor, mixing: Mixing, temperature: float) -> Tensor:
    """InfoNCE between two views of an image; negatives are K views of its mirror image, mixed in pairs.

    Args:
        features: (2B, D), the first views of this rank's B images, then the second ones.
        negatives: (K, B, D).
        mixing: the draws.
        temperature: of the softmax.
    """
    with torch.autocast(features.device.type, enabled=False):
        x, negatives = at_least_float32(features), at_least_float32(negatives)
        kinds, count = negatives.shape[:2]
        order = mixing.order(kinds)
        share = mixing.shares(count * world_size(), kinds)[rank() * count : (rank() + 1) * count]  # (B, K)
        share = share.t().unsqueeze(2).to(x)
        mixed = F.normalize(share * negatives + (1 - share) * negatives[order], dim=2)
        query = F.normalize(x, dim=1)
        negative = torch.einsum("vbd,kbd->vbk", query.unflatten(0, (2, count)), mixed).flatten(0, 1)  # (2B, K)
        positive = (query * query.roll(count, 0)).sum(1, keepdim=True)
        return _first_wins(torch.cat([positive, negative], dim=1), temperature)


def _first_wins(cosines: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of (B, 1 + K) cosines over the temperature with the first column as the class."""
    return -(cosines / temperature).log_softmax(1)[:, 0].mean()


class LossBalance(nn.Module):
    """Dynamic weight averaging (Liu et al., "End-to-end multi-task learning with attention", CVPR 2019, Eq. 7).

    Weight k of an epoch is n softmax_k(r / T), r_k = mean of loss k over the last epoch / over the one before it;
    1 until two epochs are complete. All state is in buffers; nothing is read back from the device.
    """

    def __init__(self, count: int, temperature: float | None) -> None:
        """
        Args:
            count: n, number of losses.
            temperature: T; None: weights stay 1.
        """
        super().__init__()
        self.temperature = temperature
        self.mean: Tensor
        self.means: Tensor
        self.steps: Tensor
        self.epoch: Tensor
        self.complete: Tensor
        self.register_buffer("mean", torch.zeros(count))  # of the epoch that runs
        self.register_buffer("means", torch.ones(2, count))  # of the last epoch and of the one before
        for name in ("steps", "epoch", "complete"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self._noted: list[Tensor] = []  # sum over the micro-batches, and their number

    def weights(self, epoch: int) -> Tensor:
        """(n,) weights of a step in `epoch` (epochs completed before it)."""
        means, complete = self._turned(epoch)
        if self.temperature is None:
            return torch.ones_like(self.mean)
        weights = len(self.mean) * (means[0] / means[1].clamp_min(1e-12) / self.temperature).softmax(0)
        return torch.where(complete >= 2, weights, torch.ones_like(weights))

    @torch.no_grad()
    def note(self, losses: Tensor) -> None:
        """Keeps the losses (n,) of a micro-batch for `move`."""
        one = torch.ones(1, device=losses.device, dtype=losses.dtype)
        noted = torch.cat([losses.detach(), one])
        self._noted = [self._noted[0] + noted] if self._noted else [noted]

    @torch.no_grad()
    def move(self, epoch: int) -> None:
        """Adds what was noted to the mean of `epoch`; collective."""
        if not self._noted:
            return
        noted = all_reduce_mean(self._noted.pop())
        means, complete = self._turned(epoch)
        fresh = self.epoch < epoch
        self.means.copy_(means)
        self.complete.copy_(complete)
        self.steps.mul_(~fresh).add_(1)
        self.mean.mul_(~fresh)
        self.mean.add_((noted[:-1] / noted[-1] - self.mean) / self.steps)
        self.epoch.fill_(epoch)

    def _turned(self, epoch: int) -> tuple[Tensor, Tensor]:
        """`means` and `complete` as they are once `epoch` has begun."""
        fresh = (self.epoch < epoch) & (self.steps > 0)
        shifted = torch.stack([self.mean, self.means[0]])
        return torch.where(fresh, shifted, self.means), self.complete + fresh
