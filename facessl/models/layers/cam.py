"""Class activation maps that should mirror with the image (EAC: Zhang et al., ECCV 2022)."""

from torch import Tensor
from torch.nn import functional as F

from facessl.core.precision import at_least_float32, full_precision


def class_activation_maps(features: Tensor, weight: Tensor) -> Tensor:
    """The classifier (K, C), without bias and gradient, on every cell of a map (B, C, h, w) (Zhou et al., CVPR 2016,
    Eq. 2) -> (B, K, h, w), in float32 or wider also under autocast."""
    with full_precision(features):
        kernel = at_least_float32(weight.detach())[:, :, None, None]  # (K, C, 1, 1)
        return F.conv2d(at_least_float32(features), kernel)


def flip_consistency(maps: Tensor, maps_of_flipped: Tensor) -> Tensor:
    """Mean squared difference of the maps of images and the mirrored maps of the mirrored images, (B, K, h, w) both."""
    with full_precision(maps):
        return F.mse_loss(at_least_float32(maps), at_least_float32(maps_of_flipped).flip(-1))
