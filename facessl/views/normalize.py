"""Normalization of images, and the means and standard deviations (RGB in 0..1) of known training sets."""

import torch
from torch import Tensor

from facessl.core.constants import constant

VGGFACE2_MEAN, VGGFACE2_STD = (0.5231, 0.4044, 0.3489), (0.2536, 0.2194, 0.2070)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SWAV_STD = (0.228, 0.224, 0.225)  # as released: red is not ImageNet's 0.229
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) uint8 0..255 -> float32, (x / 255 - mean) / std per channel."""
    scale = constant(tuple(1 / (255 * s) for s in std), x, torch.float32)
    shift = constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), x, torch.float32)
    return torch.addcmul(shift.view(1, 3, 1, 1), x.float(), scale.view(1, 3, 1, 1))
