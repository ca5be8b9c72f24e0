"""STAR's head on a backbone's pyramid: heatmaps gated by edges and points (Zhou et al., CVPR 2023).

Anisotropic attention: ADNet, Huang et al., ICCV 2021; coordinate channels: Wang et al., ICCV 2019.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.constants import constant
from facessl.core.precision import at_least_float32, full_precision
from facessl.models.layers.heatmaps import edge_heatmaps, rescale, shrunk_gaussians
from facessl.models.layers.landmark_losses import awing, star
from facessl.models.layers.upernet import ConvNorm, UPerNeck


class StarMaps(NamedTuple):
    """Outputs of the head, in float32 or wider, all of one size (h, w)."""

    heatmaps: Tensor  # (B, K, h, w), not negative, gated: `star` and `soft_argmax` take them
    points: Tensor  # (B, K, h, w) in 0..1, a blob on each landmark
    edges: Tensor  # (B, E, h, w) in 0..1, a line along each edge


class CoordConv(nn.Module):
    """A 1x1 convolution that also sees where it is: x, y in -1..1 and the distance from the center as channels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + 3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, width, h, w)."""
        h, w = x.shape[-2:]
        across = ((2 * torch.arange(w, device=x.device) + 1) / w - 1).expand(h, w)
        down = ((2 * torch.arange(h, device=x.device) + 1) / h - 1)[:, None].expand(h, w)
        place = torch.stack([across, down, ((across**2 + down**2) / 2).sqrt()]).to(x.dtype)
        return self.conv(torch.cat([x, place.expand(x.shape[0], -1, -1, -1)], dim=1))


class Residual(nn.Module):
    """Pre-activation bottleneck: norm, ReLU, convolution of 1x1, 3x3, 1x1 around half the width, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, narrow, kernel in ((width, width // 2, 1), (width // 2, width // 2, 3), (width // 2, width, 1)):
            conv = nn.Conv2d(wide, narrow, kernel, padding=kernel // 2)
            layers += [nn.BatchNorm2d(wide), nn.ReLU(inplace=True), conv]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, h, w)."""
        return x + self.layers(x)


class AnisotropicAttention(nn.Module):
    """Heatmaps times the landmark's point map times the sum of its edges' maps (ADNet).

    A raw heatmap is the ReLU of its instance norm. A landmark on no edge is gated by its point map alone.
    """

    def __init__(self, width: int, points: int, edges: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.logits = nn.Conv2d(width, 2 * points + len(edges), 1)
        self.sizes = [points, points, len(edges)]
        member = torch.zeros(points, len(edges))
        for column, edge in enumerate(edges):
            member[list(edge), column] = 1
        self.register_buffer("member", member[:, :, None, None], persistent=False)
        self.register_buffer("free", (member.sum(1) == 0).float(), persistent=False)

    def forward(self, features: Tensor) -> StarMaps:
        """(B, width, h, w) -> maps of the same size."""
        logits = at_least_float32(self.logits(features)).contiguous()
        with full_precision(logits):
            heat, points, edges = logits.split(self.sizes, dim=1)
            points, edges = points.sigmoid(), edges.sigmoid()
            member, free = self.get_buffer("member"), self.get_buffer("free")
            gate = F.conv2d(edges, member.to(edges.dtype), free.to(edges.dtype)) * points
            return StarMaps(F.instance_norm(heat).relu() * gate, points, edges)


class StarHead(nn.Module):
    """A head of this project for STAR's protocol: UPerNet's neck, residual blocks, anisotropic attention.

    FRA's Table 4 trains a ResNet by that protocol and does not publish its head.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        points: int,
        edges: Sequence[Sequence[int]],
        width: int = 256,
    ) -> None:
        """`channels` and `strides` are of the pyramid (`Backbone.pyramid_channels`), `edges` of the landmarks' layout.

        `width` channels in neck and blocks; 64 to 128 suit a CPU.
        """
        super().__init__()
        self.neck = UPerNeck(channels, strides, width=width)
        body = nn.Sequential(Residual(width), Residual(width))
        parts = {
            "places": CoordConv(width, width),
            "bodies": body,
            "features": nn.Sequential(Residual(width), ConvNorm(width, width)),
            "attention": AnisotropicAttention(width, points, edges),
        }
        # One stage of STAR's stack; the names of its tensors have the number of the stage.
        self.stages = nn.Sequential(OrderedDict((name, nn.Sequential(part)) for name, part in parts.items()))

    def forward(self, maps: Sequence[Tensor]) -> StarMaps:
        """Four maps (B, C_i, h_i, w_i) -> maps of a quarter of the image's side."""
        return self.stages(self.neck(maps))


def star_loss(
    maps: StarMaps,
    target: Tensor,
    visible: Tensor | None = None,
    *,
    edges: Sequence[Sequence[int]],
    image: tuple[int, int],
) -> tuple[Tensor, dict[str, Tensor]]:
    """STAR + 10 AWing of the points + 10 AWing of the edges.

    Landmarks outside the image count at its edge; edges with a landmark that is not visible do not count. Differences:
    those of `shrunk_gaussians` and `edge_heatmaps`.

    Args:
        target, visible: (B, K, 2) x, y in pixels of the image, and (B, K) bool; None: all.
        edges: those of the network.
        image: height and width of the image, over which the maps are stretched.

    Returns:
        the loss, and its terms "star", "points", "edges" without the tens.
    """
    size = (maps.heatmaps.shape[-2], maps.heatmaps.shape[-1])
    whole_edges = None
    if visible is not None:
        target = target.where(visible.bool()[..., None], 0.0)
        ends = [constant(tuple(edge), visible, torch.long) for edge in edges]
        whole_edges = torch.stack([visible[:, index].all(1) for index in ends], dim=1)  # (B, E)
    target = target.clamp_min(-0.5).minimum(constant((image[1] - 0.5, image[0] - 0.5), target))
    terms = {
        "star": star(maps.heatmaps, rescale(target, image, size), visible),
        "points": awing(maps.points, shrunk_gaussians(target, image, size, visible=visible), visible),
        "edges": awing(maps.edges, edge_heatmaps(target, edges, image, size), whole_edges),
    }
    return terms["star"] + 10 * terms["points"] + 10 * terms["edges"], terms
