"""Losses of landmark networks. Pure, in float32 or wider also under autocast; points are (x, y), the center of cell
(0, 0) is (0, 0). `visible` is (B, K), True if a landmark counts; None: all do. Nothing visible gives 0."""

import torch
from torch import Tensor
from torch.nn import functional as F

from facessl.core.constants import constant
from facessl.core.distributed import rank_mean
from facessl.core.precision import at_least_float32, full_precision

#: Constants of the adaptive wing loss, and the weight of cells near a landmark or an edge.
OMEGA, THETA, ALPHA, NEAR_WEIGHT = 14.0, 0.5, 2.1, 11.0
#: Distance at which STAR's loss turns from quadratic to linear; least divisor, also added to eigenvalues.
TURN, EPSILON = 0.01, 1e-5
#: Matrices whose eigenvalues differ by less than this fraction of their sum count as round.
ROUND_BELOW = 1e-3


def coordinate_l2(pred: Tensor, target: Tensor, visible: Tensor | None = None, *, size: tuple[int, int]) -> Tensor:
    """Mean distance of points (B, K, 2) in pixels of an image of that height and width, divided as (p + 0.5) / size
    (FaRL's coordinate loss)."""
    with full_precision(pred):
        pred = at_least_float32(pred)
        error = (pred - target) / constant((size[1], size[0]), pred)  # the half pixel cancels
        return masked_mean(_drop(error, visible).norm(dim=-1), visible)


def heatmap_bce(logits: Tensor, target: Tensor, visible: Tensor | None = None) -> Tensor:
    """Mean binary cross entropy over cells (FaRL's heatmap loss): (B, K, h, w) both, targets in 0..1 -> scalar."""
    with full_precision(logits):
        cells = F.binary_cross_entropy_with_logits(at_least_float32(logits), at_least_float32(target), reduction="none")
        return masked_mean(cells.mean((2, 3)), visible)


def awing(pred: Tensor, target: Tensor, visible: Tensor | None = None) -> Tensor:
    """Adaptive wing loss with its weighted loss map (Wang et al., ICCV 2019, Sec. 4, with epsilon 1).

    With d = |y - y'|: OMEGA ln(1 + d^(ALPHA - y)) below THETA, and the line that continues value and slope above.
    Cells whose 3x3 neighborhood has a target of 0.2 or more have NEAR_WEIGHT.

    Args:
        pred, target: (B, K, h, w); targets in 0..1, a constant.
    """
    with full_precision(pred):
        target = at_least_float32(target.detach())
        distance = (at_least_float32(pred) - target).abs()
        exponent = ALPHA - target
        near = (exponent * distance.clamp(1e-12, THETA).log()).exp().log1p()
        power = THETA**exponent
        slope = exponent * power / (THETA * (1 + power))
        weight = 1 + (NEAR_WEIGHT - 1) * F.max_pool2d((target >= 0.2).to(target), 3, stride=1, padding=1)
        loss = OMEGA * weight * (near + slope * (distance - THETA).relu())
        return masked_mean(loss.mean((2, 3)), visible)


def star(heatmaps: Tensor, target: Tensor, visible: Tensor | None = None) -> Tensor:
    """STAR loss (Zhou et al., CVPR 2023, Sec. 4.2): a landmark may err along the direction in which its map is wide.

    A map, divided by its sum, has a mean m and an unbiased covariance with eigenvalues l1 >= l2 and eigenvectors v1,
    v2. With the smooth L1 distance d and the target t, the loss of a landmark is

        d(v1 . (t - m)) / sqrt(l1 + EPSILON) + d(v2 . (t - m)) / sqrt(l2 + EPSILON) + l1 + l2,

    the last two being the value restriction. As in the released second version, eigenvalues and eigenvectors carry
    gradients. Lengths are in units in which the map spans -1..1 from edge to edge.

    Differences: eigenvectors of a map that is round to 0.1 % are the axes, without gradient. Cells are placed by their
    centers; the released code puts the first and the last cell at -1 and 1.

    Args:
        heatmaps: (B, K, h, w), not negative; an empty map counts with its mean in the center.
        target: (B, K, 2) x, y in cells.
    """
    with full_precision(heatmaps):
        mean, (xx, yy, xy) = moments(heatmaps)
        size = constant((heatmaps.shape[-1], heatmaps.shape[-2]), mean)
        ex, ey = _drop((2 * target + 1) / size - 1 - mean, visible).unbind(-1)  # (B, K) each
        large, small, cosine, sine = eigen(xx, yy, xy)
        along, across = (
            F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=TURN) / (value + EPSILON).sqrt()
            for error, value in ((cosine * ex + sine * ey, large), (cosine * ey - sine * ex, small))
        )
        return masked_mean(along + across + large + small, visible)


def moments(heatmaps: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Means and unbiased covariances of maps that are divided by their sums, where a map spans -1..1.

    The covariance of weights p that sum to 1 is divided by 1 - sum p^2, at least EPSILON, so that a map of one cell has
    covariance 0. Heatmaps (B, K, h, w) -> means (B, K, 2) as x, y, and the variances of x, of y and their covariance,
    each (B, K).
    """
    maps = at_least_float32(heatmaps).contiguous()
    h, w = maps.shape[-2:]
    x = (2 * torch.arange(w, device=maps.device, dtype=maps.dtype) + 1) / w - 1
    y = (2 * torch.arange(h, device=maps.device, dtype=maps.dtype) + 1) / h - 1
    by_row = maps @ torch.stack([torch.ones_like(x), x], dim=1)  # (B, K, h, 2): sums of 1 and of x
    total = by_row[..., 0].sum(-1, keepdim=True).clamp_min(1e-6)  # (B, K, 1)
    rows, rows_x = (by_row / total[..., None]).unbind(-1)  # (B, K, h)
    columns = maps.sum(-2) / total  # (B, K, w)
    mean_x, mean_y = rows_x.sum(-1, keepdim=True), (rows * y).sum(-1, keepdim=True)  # (B, K, 1)
    divisor = (1 - maps.flatten(2).square().sum(-1) / total[..., 0].square()).clamp_min(EPSILON)
    xx = (columns * (x - mean_x).square()).sum(-1)
    yy = (rows * (y - mean_y).square()).sum(-1)
    xy = ((rows_x - rows * mean_x) * (y - mean_y)).sum(-1)
    return torch.cat([mean_x, mean_y], dim=-1), (xx / divisor, yy / divisor, xy / divisor)


def eigen(xx: Tensor, yy: Tensor, xy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues and the first eigenvector of [[xx, xy], [xy, yy]], positive semi-definite matrices of any one shape,
    in closed form, with finite gradients throughout.

    Of round matrices (ROUND_BELOW) and zero matrices both eigenvalues are the mean and the eigenvectors are the axes,
    without gradient.

    Returns:
        larger and smaller eigenvalue (at least 0), and (cosine, sine) of the larger one's eigenvector. The smaller
        one's is (-sine, cosine).
    """
    middle, half = (xx + yy) / 2, (xx - yy) / 2
    square = half.square() + xy.square()
    stretched = square > (ROUND_BELOW * middle).square().clamp_min(torch.finfo(square.dtype).tiny)
    # Both `where` come before the functions whose gradients are infinite at 0.
    root = square.where(stretched, 1.0).sqrt().where(stretched, 0.0)
    angle = torch.atan2(xy.where(stretched, 0.0), half.where(stretched, 1.0)) / 2
    return middle + root, (middle - root).clamp_min(0), angle.cos(), angle.sin()


def masked_mean(values: Tensor, visible: Tensor | None) -> Tensor:
    """Mean of (B, K) values over the visible landmarks of all ranks' batches (`rank_mean`); 0 if there is none."""
    return values.mean() if visible is None else rank_mean(values, visible)


def _drop(error: Tensor, visible: Tensor | None) -> Tensor:
    """(B, K, 2) with 0 for landmarks that are not visible, whose targets may be NaN."""
    return error if visible is None else error.where(visible.bool()[..., None], 0.0)
