"""STAR's networks: heatmaps gated by edges and points, on stacked hourglasses or on a backbone's pyramid.

STAR: Zhou et al., CVPR 2023; anisotropic attention: ADNet, Huang et al., ICCV 2021; coordinate channels: Wang et al.,
ICCV 2019; hourglass: Newell et al., ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.errors import UnknownName
from facessl.core.precision import at_least_float32
from facessl.models.layers.heatmaps import edge_heatmaps, shrunk_gaussians, to_heatmap
from facessl.models.layers.landmark_losses import awing, star
from facessl.models.layers.upernet import ConvNorm, UPerNeck


class StarStage(NamedTuple):
    """What one stage says, in float32 or wider, all of one size (h, w).

    Attributes:
        heatmaps: (B, K, h, w), not negative, gated: `star` and `soft_argmax` take them.
        points: (B, K, h, w) in 0..1, a blob on each landmark.
        edges: (B, E, h, w) in 0..1, a line along each edge.
    """

    heatmaps: Tensor
    points: Tensor
    edges: Tensor


class CoordConv(nn.Module):
    """A convolution that also sees where it is: x, y in -1..1 and the distance from the centre as channels.

    With `boundary`, also x and y where a map of edges exceeds 0.05 and 0 elsewhere (Wang et al. 2019).
    """

    def __init__(self, channels: int, width: int, *, kernel: int = 1, stride: int = 1, boundary: bool = False) -> None:
        super().__init__()
        self.boundary = boundary
        extra = 5 if boundary else 3
        self.conv = nn.Conv2d(channels + extra, width, kernel, stride=stride, padding=kernel // 2)

    def forward(self, x: Tensor, edges: Tensor | None = None) -> Tensor:
        """(B, C, h, w), and edges (B, E, h, w) where `boundary` is set -> (B, width, h', w')."""
        h, w = x.shape[-2:]
        across = ((2 * torch.arange(w, device=x.device) + 1) / w - 1).expand(h, w)
        down = ((2 * torch.arange(h, device=x.device) + 1) / h - 1)[:, None].expand(h, w)
        place = torch.stack([across, down, torch.hypot(across, down) / 2**0.5]).to(x.dtype)
        parts = [x, place.expand(len(x), -1, -1, -1)]
        if self.boundary and edges is not None:
            parts.append(place[:2] * (edges.detach().amax(1, keepdim=True) > 0.05))
        out: Tensor = self.conv(torch.cat(parts, dim=1))
        return out


class Residual(nn.Module):
    """Pre-activation bottleneck: norm, ReLU, convolution of 1x1, 3x3, 1x1 around half the width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, narrow, kernel in ((channels, width // 2, 1), (width // 2, width // 2, 3), (width // 2, width, 1)):
            conv = nn.Conv2d(wide, narrow, kernel, padding=kernel // 2)
            layers += [nn.BatchNorm2d(wide), nn.ReLU(inplace=True), conv]
        self.layers = nn.Sequential(*layers)
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, width, h, w)."""
        out: Tensor = self.layers(x) + self.skip(x)
        return out


class Hourglass(nn.Module):
    """Halves the map `depth` times and comes back up, with a skip at every size: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, width: int, depth: int = 4) -> None:
        super().__init__()
        self.skip = Residual(width, width)
        self.down = Residual(width, width)
        self.inner: nn.Module = Hourglass(width, depth - 1) if depth > 1 else Residual(width, width)
        self.up = Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        out: Tensor = self.skip(x) + F.interpolate(low, size=x.shape[-2:], mode="nearest")
        return out


class AnisotropicAttention(nn.Module):
    """Heatmaps times the landmark's point map times the sum of its edges' maps (ADNet).

    A raw heatmap is the ReLU of its instance norm. A landmark on no edge is gated by its point map alone.
    """

    def __init__(self, width: int, points: int, edges: Sequence[Sequence[int]]) -> None:
        """
        Args:
            width: channels of the features.
            points: K.
            edges: per edge the indices of its landmarks.
        """
        super().__init__()
        self.logits = nn.Conv2d(width, 2 * points + len(edges), 1)
        self.sizes = [points, points, len(edges)]
        member = torch.zeros(points, len(edges))
        for column, edge in enumerate(edges):
            member[list(edge), column] = 1
        self.register_buffer("member", member[:, :, None, None], persistent=False)
        self.register_buffer("free", (member.sum(1) == 0).float(), persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, StarStage]:
        """(B, width, h, w) -> raw heatmaps (B, K, h, w) and the stage."""
        logits = at_least_float32(self.logits(features)).contiguous()
        with torch.autocast(logits.device.type, enabled=False):
            heat, points, edges = logits.split(self.sizes, dim=1)
            heat = F.instance_norm(heat).relu()
            points, edges = points.sigmoid(), edges.sigmoid()
            member, free = self.get_buffer("member"), self.get_buffer("free")
            gate = F.conv2d(edges, member.to(edges.dtype), free.to(edges.dtype)) * points
            return heat, StarStage(heat * gate, points, edges)


class Stages(nn.Module):
    """Features refined stage after stage; each adds what the one before it found."""

    def __init__(self, width: int, bodies: Sequence[nn.Module], *, points: int, edges: Sequence[Sequence[int]]) -> None:
        super().__init__()
        found = width + 2 * points + len(edges)
        self.places = nn.ModuleList(CoordConv(width, width, boundary=i > 0) for i in range(len(bodies)))
        self.bodies = nn.ModuleList(bodies)
        self.features = nn.ModuleList(nn.Sequential(Residual(width, width), ConvNorm(width, width)) for _ in bodies)
        self.attention = nn.ModuleList(AnisotropicAttention(width, points, edges) for _ in bodies)
        self.merge = nn.ModuleList(nn.Conv2d(found, width, 1) for _ in bodies[1:])

    def forward(self, x: Tensor) -> list[StarStage]:
        """(B, width, h, w) -> one StarStage per body, first to last."""
        stages: list[StarStage] = []
        for i, (place, body) in enumerate(zip(self.places, self.bodies, strict=True)):
            features = self.features[i](body(place(x, stages[-1].edges if stages else None)))
            heat, stage = self.attention[i](features)
            stages.append(stage)
            if i < len(self.merge):
                found = torch.cat([features, *(m.to(features.dtype) for m in (heat, stage.points, stage.edges))], dim=1)
                x = x + self.merge[i](found)
        return stages


class StarNetwork(nn.Module):
    """STAR's own network: 4 stacked hourglasses on 256 px, maps of 64 cells.

    Differences: the boundary that CoordConv sees from the second stack on is the largest of the edge maps; the inputs
    of `merge` go through one 1x1 convolution, which equals the sum of one for each.
    """

    def __init__(
        self, points: int, edges: Sequence[Sequence[int]], *, stacks: int = 4, width: int = 256, depth: int = 4
    ) -> None:
        """
        Args:
            points: K.
            edges: `star_edges(layout)`.
            stacks, width, depth: hourglasses, their channels and halvings.
        """
        super().__init__()
        self.place = CoordConv(3, 64, kernel=7, stride=2)
        self.stem = nn.Sequential(
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            Residual(64, 128),
            nn.MaxPool2d(2),
            Residual(128, 128),
            Residual(128, width),
        )
        self.stages = Stages(width, [Hourglass(width, depth) for _ in range(stacks)], points=points, edges=edges)

    def forward(self, x: Tensor) -> list[StarStage]:
        """(B, 3, H, W) normalised -> stages with maps of H/4 x W/4."""
        stages: list[StarStage] = self.stages(self.stem(self.place(x)))
        return stages


class StarHead(nn.Module):
    """The STAR protocol on a backbone's pyramid: UPerNet's neck, then stages of two residual blocks.

    FRA's Table 4 trains a ResNet by STAR's protocol and does not publish the head between them; this one is ours.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        points: int,
        edges: Sequence[Sequence[int]],
        width: int = 256,
        stages: int = 1,
    ) -> None:
        """
        Args:
            channels, strides: of the pyramid (`Backbone.pyramid_channels`, `pyramid_strides`).
            points: K.
            edges: `star_edges(layout)`.
            width: channels of the neck and the stages; 64 to 128 suit a CPU.
            stages: at least 1; each is supervised.
        """
        super().__init__()
        self.neck = UPerNeck(channels, strides, width=width)
        bodies = [nn.Sequential(Residual(width, width), Residual(width, width)) for _ in range(stages)]
        self.stages = Stages(width, bodies, points=points, edges=edges)

    def forward(self, maps: Sequence[Tensor]) -> list[StarStage]:
        """Four maps (B, C_i, h_i, w_i) -> stages with maps of a quarter of the image's side."""
        stages: list[StarStage] = self.stages(self.neck(maps))
        return stages


def star_loss(
    stages: Sequence[StarStage],
    target: Tensor,
    visible: Tensor | None = None,
    *,
    edges: Sequence[Sequence[int]],
    image: tuple[int, int],
    w: float = 1.0,
    sigma: float = 1.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over n stages i of 2^i / 2^(n - 1) (STAR + 10 AWing of the points + 10 AWing of the edges).

    As in the release, point and edge maps are drawn in the image and shrunk, and landmarks outside the image count at
    its edge. Differences: those of `shrunk_gaussians` and `edge_heatmaps`. Edges with a landmark that is not visible do
    not count.

    Args:
        stages: of `StarNetwork` or `StarHead`.
        target: (B, K, 2) x, y in pixels of the image.
        visible: (B, K) bool; None: all.
        edges: those of the network.
        image: height and width of the image, over which the maps are stretched.
        w: of `star`.
        sigma: of the points' Gaussians in pixels of the image; 1.5 is the release's on 256 px.

    Returns:
        the loss, and its terms "star", "points", "edges": summed over stages with 2^i / 2^(n - 1), without the tens.
    """
    size = (stages[0].heatmaps.shape[-2], stages[0].heatmaps.shape[-1])
    whole = None
    if visible is not None:
        target = target.where(visible.bool()[..., None], 0.0)
        whole = torch.stack([visible[:, list(edge)].all(1) for edge in edges], dim=1)  # (B, E)
    target = target.clamp_min(-0.5).minimum(target.new_tensor([image[1] - 0.5, image[0] - 0.5]))
    blobs = shrunk_gaussians(target, image, size, sigma=sigma, visible=visible)
    lines = edge_heatmaps(target, edges, image, size)
    cells = to_heatmap(target, image, size)
    terms = {name: target.new_zeros(()) for name in ("star", "points", "edges")}
    for i, stage in enumerate(stages):
        factor = 2.0 ** (i + 1 - len(stages))
        terms["star"] = terms["star"] + factor * star(stage.heatmaps, cells, visible, w=w)
        terms["points"] = terms["points"] + factor * awing(stage.points, blobs, visible)
        terms["edges"] = terms["edges"] + factor * awing(stage.edges, lines, whole)
    return terms["star"] + 10 * terms["points"] + 10 * terms["edges"], terms


def star_edges(layout: str) -> tuple[tuple[int, ...], ...]:
    """Edges of a landmark order, each the landmarks along it; a closed edge ends with its first landmark.

    ibug68 and wflw98 are STAR's; aflw19 and lapa106, which STAR does not use, follow the same parts of the face.

    Raises:
        UnknownName: no edges are known for this order.
    """
    if layout not in _EDGES:
        raise UnknownName("landmark order with edges", layout, _EDGES)
    return _EDGES[layout]


def _line(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


def _ring(first: int, last: int) -> tuple[int, ...]:
    return (*range(first, last + 1), first)


_EDGES: dict[str, tuple[tuple[int, ...], ...]] = {
    # contour, brows, bridge and foot of the nose, eyes, outer and inner lip
    "ibug68": (
        _line(0, 16), _line(17, 21), _line(22, 26), _line(27, 30), _line(31, 35),
        _ring(36, 41), _ring(42, 47), _ring(48, 59), _ring(60, 67),
    ),
    "wflw98": (
        _line(0, 32), _ring(33, 41), _ring(42, 50), _line(51, 54), _line(55, 59),
        _ring(60, 67), _ring(68, 75), _ring(76, 87), _ring(88, 95),
    ),
    "lapa106": (
        _line(0, 32), _ring(33, 41), _ring(42, 50), _line(51, 54), _line(55, 65),
        _ring(66, 73), _ring(75, 82), _ring(84, 95), _ring(96, 103),
    ),
    # brows, eyes, nose, mouth; the chin is on none
    "aflw19": (_line(0, 2), _line(3, 5), _line(6, 8), _line(9, 11), _line(12, 14), _line(15, 17)),
}  # fmt: skip
