"""The 64-pixel network of the released PCL (FaceCycle's encoder) as a timm model, `pcl_facecycle`.

Importing this file registers it with timm. Its keys are those of the released checkpoints below `module.encoder.`.
"""

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from facessl.core.precision import at_least_float32

SLOPE = 0.1


class ChannelAttention(nn.Module):
    """LeakyReLU of x + A g with A = phi theta^T (C, C); theta is a softmax over positions, g one over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        positions = at_least_float32(self.theta(x)).flatten(2).softmax(2)  # (B, C, hw)
        values = at_least_float32(self.g(x)).flatten(2).softmax(1)
        similarity = self.phi(x).flatten(2) @ positions.transpose(1, 2).to(x.dtype)  # (B, C, C)
        return self.act(x + (similarity @ values.to(x.dtype)).view_as(x))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, added to their input, without norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.relu = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.relu(x + self.conv2(self.relu(self.conv1(x))))


def _pair(sizes: tuple[int, int, int], kernel: int, stride: int, attention: bool = False) -> nn.Sequential:
    """Two convolutions with LeakyReLU; the first has `kernel` and `stride`; optional attention between them."""
    first, middle, last = sizes
    layers = [nn.Conv2d(first, middle, kernel, stride, kernel // 2), nn.LeakyReLU(SLOPE)]
    layers += [ChannelAttention(middle)] if attention else []
    return nn.Sequential(*layers, nn.Conv2d(middle, last, 3, padding=1), nn.LeakyReLU(SLOPE))


class FaceCycle(nn.Module):
    """The shared trunk: stride 16, 128 channels, no norms, LeakyReLU of slope 0.1; 64 px give a map of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 128
        strides = (("layer1", 64, 2), ("resblock2", 128, 4), ("layer2_2", 128, 8), ("layer3_1", 128, 16))
        self.feature_info = [{"num_chs": c, "reduction": r, "module": m} for m, c, r in strides]
        self.conv1 = _pair((3, 64, 64), 7, 2)
        self.layer1 = _pair((64, 64, 64), 3, 1, attention=True)
        self.layer2_1 = _pair((64, 128, 128), 3, 2, attention=True)
        self.resblock1, self.resblock2 = ResidualBlock(128), ResidualBlock(128)
        self.layer2_2 = _pair((128, 128, 128), 3, 2)
        self.layer3_1 = _pair((128, 256, 128), 3, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.get_parameter("bias"))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 128, H / 16, W / 16)."""
        return self.forward_intermediates(x, [-1])[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 128, h, w) -> (B, 128), the mean over the map."""
        return x.mean((2, 3))

    def forward_intermediates(self, x: Tensor, indices: list[int], **_: Any) -> list[Tensor]:
        """The maps of `feature_info` at `indices`."""
        fine = self.layer1(self.conv1(x))  # stride 2
        middle = self.resblock2(self.resblock1(self.layer2_1(fine)))  # stride 4
        coarse = self.layer2_2(middle)  # stride 8
        maps = [fine, middle, coarse, self.layer3_1(coarse)]
        return [maps[i] for i in indices]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 128)."""
        return self.forward_head(self.forward_features(x))


@register_model
def pcl_facecycle(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
    num_classes: int = 0,
) -> FaceCycle:
    """Entry point of `timm.create_model`. RuntimeError for pre-trained weights, which do not exist, or a classifier."""
    if pretrained or num_classes:
        raise RuntimeError("it has neither pre-trained weights nor a classifier")
    return FaceCycle()
