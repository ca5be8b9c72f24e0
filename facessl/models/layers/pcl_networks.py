"""Networks that PCL trains beside the backbone: branches, projection heads and the decoder of images."""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn
from torch.nn import functional as F

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


class ImageDecoder(nn.Module):
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
