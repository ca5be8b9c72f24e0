"""Do regions move along when the image moves? Agreement of heatmaps under a known similarity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facessl.core.errors import DataError
from facessl.metrics.bootstrap import as_array, bootstrap_mean
from facessl.metrics.region_maps import BATCH, HeatmapsOf, enlarge


@dataclass(frozen=True)
class Similarity:
    """A rotation, scale and shift of the image about its center."""

    angle: float = 15.0  # degrees, clockwise as one sees it
    scale: float = 0.9  # above 1 enlarges
    shift: tuple[float, float] = (0.05, -0.05)  # right and down, as fractions of the image's side

    def sources(self, size: int) -> tuple[Tensor, np.ndarray]:
        """Where each pixel of the moved image comes from: (1, size, size, 2) in -1..1 over the image's edges, and
        (size, size) bool, whether that lies inside the image."""
        a = math.radians(self.angle)
        back = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) / self.scale
        theta = np.concatenate([back, -back @ np.array([[2 * self.shift[0]], [2 * self.shift[1]]])], axis=1)
        grid = F.affine_grid(torch.tensor(theta[None], dtype=torch.float32), [1, 1, size, size], align_corners=False)
        return grid, (grid[0].abs() <= 1).all(-1).numpy()

    def apply(self, maps: Tensor) -> Tensor:
        """(B, C, s, s) float -> the same moved, bilinear; what comes from outside mirrors the inside."""
        grid = self.sources(maps.shape[-1])[0].expand(len(maps), -1, -1, -1)
        return F.grid_sample(maps, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def consistency(
    heatmaps_of: HeatmapsOf,
    images: np.ndarray,
    warp: Similarity,
    *,
    grid: int = 32,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The arg-max of the moved image's maps against the moved maps of the image.

    Args:
        heatmaps_of: images (B, S, S, 3) uint8 -> heatmaps (B, N, h, w).
        images: (M, S, S, 3) uint8.
        warp: applied to the images, and to the maps of the images before.
        grid: side on which both are compared, where the moved image shows the image and not its outside.
        samples, seed: of the bootstrap over images.

    Returns:
        consistency: Interval, fraction of the pixels on which both agree.
        consistency_by_chance: the agreement by chance of two maps with these regions' sizes (1 for a single region).
        consistency_unmoved: the agreement with the maps before, not moved: 1 for regions that depend on place alone,
            below `consistency` for those that follow the face.
    """
    _, inside = warp.sources(grid)
    if not inside.any():
        raise DataError(f"{warp} moves the image out of sight: nothing is left to compare")
    agree, still, counts = [], [], []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        pixels = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float()
        moved = warp.apply(pixels).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        before, after = (
            enlarge(torch.tensor(as_array(heatmaps_of(x)), dtype=torch.float32), grid) for x in (batch, moved)
        )  # (B, N, g, g)
        actual, expected, fixed = (m.argmax(1).numpy()[:, inside] for m in (after, warp.apply(before), before))
        agree.append((actual == expected).mean(1))
        still.append((actual == fixed).mean(1))
        N = before.shape[1]
        counts.append([np.bincount(x.ravel(), minlength=N) for x in (actual, expected)])
    sizes = np.sum(counts, axis=0)  # (2, N)
    fractions = sizes / sizes.sum(1, keepdims=True)
    return {
        "consistency": bootstrap_mean(np.concatenate(agree), samples=samples, seed=seed),
        "consistency_by_chance": float(fractions[0] @ fractions[1]),
        "consistency_unmoved": float(np.concatenate(still).mean()),
    }
