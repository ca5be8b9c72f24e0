"""Regions of a face from colors alone: where the face is in a view, the layout of its regions, and the view's colors.

Three steps, none of which uses a label. Congealing (Learned-Miller, "Data driven image models through continuous joint
alignment", PAMI 2006, here with one similarity per view): the mean face is looked for in every view. Spectral
clustering: two places of the face's frame belong together if they often look alike in the same view, whatever color
that is. A probabilistic index map (Jojic and Caspi, CVPR 2004): all views have this layout, moved with the face, and
each view has its own color for each region, which moves the borders to where its colors change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.constants import constant
from facessl.core.distributed import all_reduce_sum, rank
from facessl.core.precision import at_least_float32, full_precision

#: Rows and columns of the layout, and of the maps that are found in a view.
CELLS = 24
#: Optimizer steps, the first ones of a run, on whose views the mean face and the layout are found: a third of them for
#: the mean of the views, for the mean of the aligned views and for the layout.
LAYOUT_STEPS = 12
#: Views whose places are compared at once, which takes 1.3 MB a view.
_AT_ONCE = 32
#: Half the side of the layout in the frame of the mean face, whose half side is 1.
_EXTENT = 1.7
#: Side in pixels of the views in which the mean face is looked for, margin around them, side of the mean face.
_SIDE, _MARGIN, _FACE = 24, 6, 48
#: Sizes of the face's frame beside the view's, and angles in degrees, that are tried; all positions are.
_SCALES = (0.5, 0.56, 0.63, 0.71, 0.8, 0.9, 1.0, 1.12)
_ANGLES = (-14.0, -7.0, 0.0, 7.0, 14.0)
#: Costs of the squares of the shift (in half sides), the log of the scale and the angle (in 15 degrees), in units of
#: the correlation.
_SHIFTED, _SCALED, _TURNED = 1.0, 0.1, 0.03
#: Weights of Y, Cb, Cr and local contrast in the distance of two places, which look alike below 1.
_ALIKE = (0.0, 30.0, 30.0, 1.2)
#: Rounds of EM on a view's colors; how much a cell's color weighs against its place (neighbors are not independent).
ROUNDS, COLOR_WEIGHT = 5, 0.3
#: The prior of a region's variance of color: a standard deviation, and how many cells it weighs like.
DEVIATION, PRIOR_WEIGHT = 0.06, 2.0
#: Soft borders of the layout: times that a cell becomes the mean of the 3 x 3 around it, and least value of a region.
_SOFTENED, _FLOOR = 6, 0.02
#: Y, Cb, Cr of RGB (ITU-R 601).
_YCC = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))


class ColorRegions(nn.Module):
    """Finds the mean face and the layout on the first views, then regions in every view; until then all are as likely.

    Faces have to lie about alike in the views: upright, centered, and 0.5 to 1 times as large as most. The best place
    for the mean face is always taken, so that a view without a face, or one whose face is missed, has a wrong layout.

    Buffers:
        face: (48, 48), local contrast of the mean face, over its frame.
        layout: (CELLS, CELLS, N), how likely each region is at each place around the mean face; rows sum to 1.
        total, count: (48, 48), the contrast of views over the frame, summed, and over how many views.
        together, pairs: (CELLS^2, CELLS^2), how alike two places were, summed, and in how many views both are seen.
    """

    face: Tensor
    layout: Tensor
    total: Tensor
    count: Tensor
    together: Tensor
    pairs: Tensor

    def __init__(self, regions: int) -> None:
        """`regions` is N."""
        super().__init__()
        self.face = nn.Buffer(torch.zeros(_FACE, _FACE))
        self.layout = nn.Buffer(torch.full((CELLS, CELLS, regions), 1 / regions))
        for name in ("total", "count"):
            self.register_buffer(name, torch.zeros(_FACE, _FACE))
        for name in ("together", "pairs"):
            self.register_buffer(name, torch.zeros(CELLS**2, CELLS**2))
        self._sums: dict[str, Tensor] = {}  # of a step, which `update` adds to the last four buffers

    @torch.no_grad()
    def forward(self, colors: Tensor, content: Tensor | None = None) -> Tensor:
        """Regions of a view from its colors and a prior: the layout where the face is, or what a network sees.

        Args:
            colors: (B, 3, S, S) in 0..1, but for a constant.
            content: (B, h, w, N), sum 1 over N, what a network sees in the view; None: the layout.

        Returns:
            (B, CELLS, CELLS, N), sum 1 over N.
        """
        with full_precision(colors):
            if content is None:
                prior = self.at(self.align(colors))
            else:
                maps = at_least_float32(content).permute(0, 3, 1, 2)
                prior = F.interpolate(maps, (CELLS, CELLS), mode="bilinear").permute(0, 2, 3, 1) + _FLOOR
                prior = prior / prior.sum(-1, keepdim=True)
            cells = F.adaptive_avg_pool2d(_ycc(colors), CELLS)
            regions = by_color(cells.flatten(2).transpose(1, 2), prior.flatten(1, 2))  # (B, CELLS^2, N)
        return regions.unflatten(1, (CELLS, CELLS))

    def at(self, frames: Tensor) -> Tensor:
        """The layout in views whose faces have the frames (B, 2, 3) -> (B, CELLS, CELLS, N), its edges continued."""
        back = torch.linalg.inv_ex(frames[:, :, :2]).inverse  # `inv` waits for a GPU to say that there is one
        turns = torch.cat([back, -back @ frames[:, :, 2:]], -1) / _EXTENT
        maps = self.layout.permute(2, 0, 1).expand(len(frames), -1, -1, -1)
        return read(maps, turns, CELLS, padding="border").permute(0, 2, 3, 1)

    @torch.no_grad()
    def align(self, colors: Tensor) -> Tensor:
        """Frames (B, 2, 3) of the faces in views (B, 3, S, S): what `affine_grid` takes to show the view in the frame
        of the mean face. The view itself until the mean face is found."""
        whole = torch.eye(2, 3, dtype=self.face.dtype, device=colors.device)
        with full_precision(colors):
            small = F.interpolate(_ycc(colors)[:, :1], (_SIDE, _SIDE), mode="area")
            # An `if` would make the host wait for a GPU in every step, to spare it this in the first ones.
            return torch.where(self.face.any(), _find(_contrast(small), self.face), whole)

    @torch.no_grad()
    def add(self, colors: Tensor, step: int) -> None:
        """Add up, in the steps before `LAYOUT_STEPS`, what the views (B, 3, S, S) show over the face's frame."""
        with full_precision(colors):
            for part in colors.split(_AT_ONCE):
                self._add(part, step)

    def _add(self, colors: Tensor, step: int) -> None:
        frames, ycc = self.align(colors), _ycc(colors)
        contrast = _contrast(ycc[:, :1])
        if step < 2 * LAYOUT_STEPS // 3:
            seen = inside(frames, _FACE)
            sums = {"total": (read(contrast, frames, _FACE)[:, 0] * seen).sum(0), "count": seen.sum(0)}
        else:
            frames = torch.cat([frames[:, :, :2] * _EXTENT, frames[:, :, 2:]], -1)
            looks = torch.cat([ycc, contrast.clamp(-2.5, 2.5)], 1) * constant(_ALIKE, ycc)[:, None, None]
            fine = read(looks, frames, 3 * CELLS, padding="border")
            places = F.avg_pool2d(fine, 3).flatten(2).transpose(1, 2)  # (B, CELLS^2, 4)
            seen = inside(frames, CELLS).flatten(1).to(places.dtype)  # (B, CELLS^2)
            alike = torch.cdist(places, places).square_().div_(-2).exp_()  # (B, CELLS^2, CELLS^2)
            together = alike.mul_(seen[:, :, None]).mul_(seen[:, None]).sum(0)
            sums = {"together": together, "pairs": seen.T @ seen}
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the sums of a step over all ranks; end a third of the steps with its result. Collective call."""
        for name in sorted(self._sums):
            self.get_buffer(name).add_(all_reduce_sum(self._sums[name]))
        self._sums = {}
        if step + 1 in (LAYOUT_STEPS // 3, 2 * LAYOUT_STEPS // 3):
            mean = self.total / self.count.clamp_min(1)
            self.face.copy_((mean + mean.flip(1)) / 2)
            self.total.zero_()
            self.count.zero_()
        elif step + 1 == LAYOUT_STEPS:
            alike = self.together / self.pairs.clamp_min(1)
            new_layout = layout(alike, self.pairs >= 0.01 * self.pairs.max(), self.layout.shape[-1])
            self.layout.copy_(all_reduce_sum(new_layout * (rank() == 0)))  # machines may round differently
            self.together.zero_()
            self.pairs.zero_()


def layout(alike: Tensor, known: Tensor, regions: int) -> Tensor:
    """Spectral clusters of places, mirrored about the middle of the frame, with soft borders.

    Args:
        alike: (CELLS^2, CELLS^2), how alike two places are.
        known: (CELLS^2, CELLS^2) bool, whether that is known; a place without data joins the nearest one.
        regions: N, the number of clusters.

    Returns:
        (CELLS, CELLS, N), sum 1 over N.
    """
    from sklearn.cluster import SpectralClustering

    half = CELLS // 2
    pairs = torch.where(known, alike, 0).view(CELLS, CELLS, CELLS, CELLS)
    pairs = (pairs + pairs.flip(1, 3))[:, :half]  # the left half, with both halves
    halves = (pairs[..., :half] + pairs[..., half:].flip(3)).reshape(CELLS * half, CELLS * half) + 1e-6  # connected
    seen = known.diagonal().view(CELLS, CELLS)
    seen = (seen | seen.flip(1))[:, :half].flatten()
    cluster = SpectralClustering(regions, affinity="precomputed", random_state=0)
    clusters = torch.from_numpy(cluster.fit_predict(halves[seen][:, seen].cpu().double().numpy())).long()
    at = torch.cartesian_prod(torch.arange(CELLS), torch.arange(half)).float()
    left = clusters[torch.cdist(at, at[seen.cpu()]).argmin(1)].view(CELLS, half)
    soft = F.one_hot(torch.cat([left, left.flip(1)], 1), regions).to(alike).permute(2, 0, 1)
    for _ in range(_SOFTENED):
        soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1)
    soft = soft.permute(1, 2, 0) + _FLOOR
    return soft / soft.sum(-1, keepdim=True)


def by_color(colors: Tensor, prior: Tensor) -> Tensor:
    """EM for one Gaussian per region and image (diagonal covariance) with a given prior at each cell: colors (B, P, C)
    and prior (B, P, N), positive, sum 1 over N -> (B, P, N) probabilities; the prior if it is the same everywhere."""
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


def similarities(scale: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Matrices (B, 2, 3) for `affine_grid` of scale (B,), angle (B,) in degrees and shift (B, 2) in half sides."""
    cos, sin = scale * torch.cos(angle * math.pi / 180), scale * torch.sin(angle * math.pi / 180)
    return torch.stack([torch.stack([cos, -sin, shift[:, 0]], -1), torch.stack([sin, cos, shift[:, 1]], -1)], 1)


def random_similarities(count: int, like: Tensor) -> Tensor:
    """Matrices (count, 2, 3) of views that show 0.7 to 1.6 times the side of the ones they are taken from, so that a
    face is 1.43 to 0.62 times as large there, turned by up to 20 degrees. They lie where one fits into the other, or up
    to a tenth of a side beyond."""
    u = torch.rand(4, count, dtype=like.dtype, device=like.device)
    scale = torch.exp(math.log(0.7) + u[0] * math.log(1.6 / 0.7))
    return similarities(scale, 40 * u[1] - 20, ((2 * u[2:] - 1) * ((1 - scale).abs() + 0.2)).mT)


def read(maps: Tensor, turns: Tensor, size: int, padding: str = "zeros") -> Tensor:
    """Maps (B, C, h, w) in views that are turned: (B, 2, 3) -> (B, C, size, size), bilinear, at least float32."""
    with full_precision(maps):
        grid = F.affine_grid(turns, [len(turns), 1, size, size], align_corners=False)
        return F.grid_sample(at_least_float32(maps).to(grid), grid, padding_mode=padding, align_corners=False)


def inside(turns: Tensor, size: int) -> Tensor:
    """(B, 2, 3) -> (B, size, size) bool, where the cells of a turned view show what it is taken from."""
    with full_precision(turns):
        grid = F.affine_grid(turns, [len(turns), 1, size, size], align_corners=False)
    return (grid.abs() <= 1).all(-1)


def _ycc(colors: Tensor) -> Tensor:
    """RGB (B, 3, S, S) -> Y, Cb, Cr, at least float32."""
    with full_precision(colors):
        colors = at_least_float32(colors)
        return torch.einsum("bchw,yc->byhw", colors, constant(_YCC, colors))


def _contrast(luma: Tensor) -> Tensor:
    """(B, 1, S, S) less its mean around each place (a third of the side), over its deviation there."""
    window = int(luma.shape[-1] * 0.35) // 2 * 2 + 1

    def around(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (window // 2,) * 4, mode="reflect"), window, 1)

    difference = luma - around(luma)
    return difference / (around(difference.square()).sqrt() + 0.03)


def _correlation(x: Tensor, kernels: Tensor) -> Tensor:
    """A convolution without TF32, which a GPU uses for those in float32 by default."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False):
        return F.conv2d(x, kernels)


def _find(contrast: Tensor, face: Tensor) -> Tensor:
    """Find the mean face (48, 48) in views (B, 1, _SIDE, _SIDE): similarities (B, 2, 3), as of `ColorRegions.align`, of
    the highest normalized cross-correlation less their cost."""
    across = (torch.arange(_FACE, device=face.device) + 0.5) / _FACE * 2 - 1
    inner = ((across / 0.62).square() + ((across[:, None] - 0.05) / 0.75).square() < 1).to(face)  # without hair
    padded = F.pad(contrast, (_MARGIN,) * 4, mode="reflect")
    angles = constant(_ANGLES, face)
    best = face.new_full((len(contrast),), -torch.inf)
    frames = face.new_zeros(len(contrast), 2, 3)
    for scale in _SCALES:
        k = math.ceil(_SIDE * scale) // 2 * 2 + 1  # pixels that the frame covers, about
        turns = similarities(face.new_full(angles.shape, k / (_SIDE * scale)), -angles, face.new_zeros(len(angles), 2))
        values, weights = (read(x.expand(len(angles), 1, -1, -1), turns, k) for x in (face, inner))
        values = (values - (values * weights).sum((2, 3), True) / weights.sum((2, 3), True)) * weights
        values = values / values.square().sum((2, 3), True).sqrt()
        mask = weights[len(angles) // 2, None] / weights[len(angles) // 2].sum()  # nearly round: one for all angles
        mean, square = _correlation(padded, mask), _correlation(padded.square(), mask)
        spread = ((square - mean.square()).clamp_min(1e-4) * weights[len(angles) // 2].sum()).sqrt()
        score = _correlation(padded, values) / spread  # (B, angles, rows, columns)
        at = (torch.arange(score.shape[-1], device=face.device) + k / 2 - _MARGIN) / _SIDE * 2 - 1  # centers
        costs = _SHIFTED * (at[:, None].square() + at.square()) + _SCALED * math.log(scale) ** 2
        score = score - costs - _TURNED * (angles / 15).square()[:, None, None]
        value, where = score.flatten(1).max(1)
        rows, columns = score.shape[2:]
        angle, row, column = where // (rows * columns), where // columns % rows, where % columns
        aligned = similarities(face.new_full(value.shape, scale), angles[angle], torch.stack([at[column], at[row]], -1))
        better = value > best
        best, frames = torch.where(better, value, best), torch.where(better[:, None, None], aligned, frames)
    return frames
