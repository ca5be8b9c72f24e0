"""UPerNet on the pyramid of any backbone: one map with a quarter of the image's side.

Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018 (Sec. 3.1); pyramid pooling of Zhao et al.,
CVPR 2017; the adaptor for plain ViTs is that of FaRL's downstream protocol.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Cells per side of the pooled maps.
POOL_SCALES = (1, 2, 3, 6)


class ConvNorm(nn.Sequential):
    """Convolution that keeps the size, batch norm, ReLU: (B, C, h, w) -> (B, width, h, w)."""

    def __init__(self, channels: int, width: int, *, kernel: int = 1) -> None:
        conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class PyramidPooling(nn.Module):
    """The map beside its means over 1x1, 2x2, 3x3 and 6x6 cells, merged by a 3x3 convolution (PSPNet, Sec. 3.2)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(ConvNorm(channels, width) for _ in POOL_SCALES)
        self.merge = ConvNorm(channels + len(POOL_SCALES) * width, width, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, width, h, w); training needs B > 1, as scale 1 leaves one value per image."""
        pairs = zip(POOL_SCALES, self.branches, strict=True)
        parts = [resize(branch(F.adaptive_avg_pool2d(x, scale)), x.shape[-2:]) for scale, branch in pairs]
        return self.merge(torch.cat([x, *parts], dim=1))


class UPerNeck(nn.Module):
    """Pyramid pooling on the coarsest map, top-down sums, 3x3 smoothing, and a 3x3 fusion of all four levels."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, width: int) -> None:
        """`channels` and `strides` are of the four maps, fine to coarse; `width` the channels of every level.

        Equal strides mean a plain ViT: its maps are first brought to strides 4, 8, 16, 32.
        """
        super().__init__()
        flat = len(set(strides)) == 1
        self.adaptors = nn.ModuleList(
            adaptor(c, round(math.log2(stride / target))) if flat else nn.Identity()
            for c, stride, target in zip(channels, strides, (4, 8, 16, 32), strict=True)
        )
        self.top = PyramidPooling(channels[-1], width)
        self.laterals = nn.ModuleList(ConvNorm(c, width) for c in channels[:-1])
        self.smooth = nn.ModuleList(ConvNorm(width, width, kernel=3) for _ in channels[:-1])
        self.fuse = ConvNorm(len(channels) * width, width, kernel=3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_i, h_i, w_i) -> (B, width, h_0, w_0), the size of the finest (after the ViT adaptor)."""
        maps = [adapt(x) for adapt, x in zip(self.adaptors, maps, strict=True)]
        above = self.top(maps[-1])
        levels = [above]
        for lateral, smooth, x in reversed(list(zip(self.laterals, self.smooth, maps, strict=False))):
            above = lateral(x) + resize(above, x.shape[-2:])
            levels.insert(0, smooth(above))
        return self.fuse(torch.cat([resize(x, levels[0].shape[-2:]) for x in levels], dim=1))


class UPerNet(nn.Module):
    """UPerNet's neck, dropout and a 1x1 classifier."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        out_channels: int,
        width: int = 768,
        dropout: float = 0.1,
    ) -> None:
        """Arguments of `UPerNeck` (768 is FaRL's width, 64 to 128 suit a CPU), and `dropout` of the neck's channels."""
        super().__init__()
        self.neck = UPerNeck(channels, strides, width=width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, out_channels, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_i, h_i, w_i) -> logits (B, out_channels, h_0, w_0), a quarter of the image's side."""
        return self.classifier(self.dropout(self.neck(maps)))


def adaptor(channels: int, doublings: int) -> nn.Module:
    """A ViT's map (B, C, h, w) -> (B, C, h * 2**doublings, w * 2**doublings): learned upsampling or max-pool."""
    if doublings <= 0:
        return nn.MaxPool2d(2**-doublings) if doublings else nn.Identity()
    layers: list[nn.Module] = []
    for step in range(doublings):
        layers += [nn.BatchNorm2d(channels), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    return nn.Sequential(*layers)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear on the center convention; the same tensor where the size is right."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
