"""Regions of a face from colors alone: the layout of the face in its frame, and each view's own colors.

A probabilistic index map (Jojic and Caspi, "Capturing image structure with probabilistic index maps", CVPR 2004): all
images have the same regions at about the same places, and each image has its own color for each of them. Here the
layout is not learned by EM but found at once: two places of the frame belong together if they often have the same color
in the same image, whatever color that is (hair is as dark above as beside the face). No labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_reduce_sum, rank
from facessl.core.precision import at_least_float32, full_precision
from facessl.models.layers import view_cells

#: Rows and columns of the layout, and of the maps that are found in a view.
CELLS = 16
#: Optimizer steps, the first ones of a run, whose images the layout is found on.
LAYOUT_STEPS = 16
#: Distance of two colors (0 to 1 per channel) that counts as the same, as the standard deviation of a Gaussian.
SAME_COLOR = 0.1
#: Rounds of EM on a view's colors; how much a cell's color weighs against its place (neighbors are not independent).
ROUNDS, COLOR_WEIGHT = 5, 0.2
#: The prior of a region's variance of color: a standard deviation, and how many cells it weighs like.
DEVIATION, PRIOR_WEIGHT = 0.06, 2.0
#: Soft borders of the layout: how often a cell becomes the mean of the 3 x 3 around it, and what every region is given.
_SOFTENED, _FLOOR = 3, 0.02


class ColorRegions(nn.Module):
    """Finds the layout on the first images, then regions in every view; until then every region is as likely.

    Buffers:
        layout: (CELLS, CELLS, N), how likely each region is at each place of the stored image; rows sum to 1.
        together, pairs: (CELLS^2, CELLS^2), how alike the colors of two places were, summed, and over how many views.
    """

    layout: Tensor
    together: Tensor
    pairs: Tensor

    def __init__(self, regions: int) -> None:
        """`regions` is N."""
        super().__init__()
        self.layout = nn.Buffer(torch.full((CELLS, CELLS, regions), 1 / regions))
        self.together = nn.Buffer(torch.zeros(CELLS**2, CELLS**2))
        self.pairs = nn.Buffer(torch.zeros(CELLS**2, CELLS**2))
        self._noted: tuple[Tensor, Tensor] | None = None  # what `update` adds to them

    @torch.no_grad()
    def forward(self, colors: Tensor, crops: Tensor, content: Tensor | None = None, *, place: bool = True) -> Tensor:
        """Regions of a view from its colors and a prior: the layout, a network's map, or their geometric mean.

        Args:
            colors: (B, 3, S, S) in 0..1, but for a constant.
            crops: (B, 5), what the view shows.
            content: (B, h, w, N), sum 1 over N, what a network sees in the view; None: nothing.
            place: whether the layout counts.

        Returns:
            (B, CELLS, CELLS, N), sum 1 over N.
        """
        priors = [self.at(crops)] if place else []
        if content is not None:
            whole = _frame(crops)
            priors.append(view_cells.read(content, *view_cells.places(whole, CELLS, CELLS)) + _FLOOR)
        prior = torch.stack([p.log() for p in priors]).mean(0).softmax(-1)
        return by_color(_cells(colors).flatten(1, 2), prior.flatten(1, 2)).unflatten(1, (CELLS, CELLS))

    def at(self, crops: Tensor) -> Tensor:
        """The layout at the places that views show: crops (B, 5) -> (B, CELLS, CELLS, N)."""
        return view_cells.read(self.layout.expand(len(crops), -1, -1, -1), *view_cells.places(crops, CELLS, CELLS))

    @torch.no_grad()
    def note(self, colors: Tensor, crops: Tensor) -> None:
        """Notes which places of the frame have the same color in a view; arguments as in `forward`."""
        cells = view_cells.seen_by(_cells(colors), crops, _frame(crops), CELLS, CELLS)
        seen, shown = (x.flatten(1, 2) for x in cells)
        both = (shown[:, :, None] & shown[:, None]).to(seen.dtype)  # (B, CELLS^2, CELLS^2)
        alike = torch.exp(torch.cdist(seen, seen).square() / (-2 * SAME_COLOR**2))
        together, pairs = self._noted or (0, 0)
        self._noted = together + (alike * both).sum(0), pairs + both.sum(0)

    @torch.no_grad()
    def update(self, *, last: bool) -> None:
        """Adds what was noted on all ranks, and finds the layout where it is the last. Collective call."""
        if self._noted is not None:
            for total, noted in zip((self.together, self.pairs), self._noted, strict=True):
                total += all_reduce_sum(noted)
            self._noted = None
        if last:
            found = layout(self.together / self.pairs.clamp_min(1), self.layout.shape[-1])
            self.layout.copy_(all_reduce_sum(found * (rank() == 0)))  # machines may round differently


def layout(alike: Tensor, regions: int) -> Tensor:
    """Spectral clusters of places, mirrored about the middle of the frame, with soft borders.

    Args:
        alike: (CELLS^2, CELLS^2), how often two places have the same color.
        regions: N, the number of clusters.

    Returns:
        (CELLS, CELLS, N), sum 1 over N.
    """
    from sklearn.cluster import SpectralClustering

    halves = alike.view(CELLS, CELLS, CELLS, CELLS)
    halves = halves + halves.flip(1)
    halves = (halves + halves.flip(3))[:, : CELLS // 2, :, : CELLS // 2].flatten(2).flatten(0, 1) + 1e-6  # connected
    cluster = SpectralClustering(regions, affinity="precomputed", random_state=0)
    left = torch.from_numpy(cluster.fit_predict(halves.cpu().double().numpy())).view(CELLS, CELLS // 2)
    soft = F.one_hot(torch.cat([left, left.flip(1)], 1).long(), regions).to(alike).permute(2, 0, 1)  # (N, 16, 16)
    for _ in range(_SOFTENED):
        soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1)
    soft = soft.permute(1, 2, 0) + _FLOOR
    return soft / soft.sum(-1, keepdim=True)


def by_color(colors: Tensor, prior: Tensor) -> Tensor:
    """EM for one Gaussian per region and image (diagonal covariance) with a given prior at each cell.

    Args:
        colors: (B, P, C) of the cells of each image.
        prior: (B, P, N) positive, sum 1 over N.

    Returns:
        (B, P, N) probabilities; the prior where it is the same everywhere.
    """
    with full_precision(colors):  # the distances are differences of large numbers
        colors = colors - colors.mean(1, keepdim=True)
        q, square, log_prior = prior, colors.square(), prior.log()
        for _ in range(ROUNDS):
            mass = q.sum(1)[..., None]  # (B, N, 1)
            mean, second = (q.transpose(1, 2) @ x / mass for x in (colors, square))  # (B, N, C)
            spread = mass * (second - mean.square()).clamp_min(0) + PRIOR_WEIGHT * DEVIATION**2
            precision = (mass + PRIOR_WEIGHT) / spread
            distance = square @ precision.mT - 2 * colors @ (mean * precision).mT  # (B, P, N)
            constant = (mean.square() * precision - precision.log()).sum(-1)[:, None]
            q = (log_prior - COLOR_WEIGHT / 2 * (distance + constant)).softmax(-1)
    return q


def _cells(colors: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, CELLS, CELLS, 3), averaged."""
    return F.adaptive_avg_pool2d(at_least_float32(colors), CELLS).permute(0, 2, 3, 1)


def _frame(crops: Tensor) -> Tensor:
    """Crops (B, 5) of the whole image, as many as there are in another."""
    whole = torch.zeros_like(crops)
    whole[:, 2:4] = 1
    return whole
