"""Features of images that nobody trained: what pre-training has to beat."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DESCRIPTORS = {"pixels": "16 x 16 gray pixels", "hog": "HOG"}


class Descriptor(nn.Module):
    """One of `DESCRIPTORS` in the place of a backbone.

    `pixels` are 16 x 16 gray values, a map of one channel. `hog` are histograms of 9 orientations in cells of 8 x 8
    pixels, each normalized by the energy of the four blocks of 2 x 2 cells around it and clipped at 0.2 (Dalal &
    Triggs, CVPR 2005): a map of 36 channels and 8 x 8 cells of a 64-pixel image.
    """

    mean, std, image_size = (0.0,) * 3, (1.0,) * 3, 64

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.name = self.timm_options = kind  # what the cache of features knows a network by
        self.model = nn.BatchNorm2d(1)  # has a device
        self.num_features = 256 if kind == "pixels" else 36 * 64

    def forward_features(self, x: Tensor) -> Tensor:
        gray = x.float().mean(1, keepdim=True)  # (B, 1, 64, 64) in 0..1
        if self.name == "pixels":
            return F.avg_pool2d(gray, 4)
        padded = F.pad(gray, (1,) * 4, mode="replicate")
        dx, dy = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        place = torch.atan2(dy, dx) / torch.pi * 9  # in bins of 20 degrees; the sign does not count
        distance = (place - torch.arange(9, device=x.device).view(9, 1, 1)).remainder(9)
        share = (1 - torch.minimum(distance, 9 - distance)).clamp_min(0)  # between the two nearest bins
        cells = F.avg_pool2d(share * torch.hypot(dx, dy), 8)  # (B, 9, 8, 8)
        energy = F.avg_pool2d(F.pad(cells.square().sum(1, keepdim=True), (1,) * 4, mode="replicate"), 2, 1)
        corners = [energy[..., i : i + 8, j : j + 8] for i in (0, 1) for j in (0, 1)]  # blocks, (B, 1, 9, 9)
        return torch.cat([(cells / (corner * 4 + 1e-5).sqrt()).clamp_max(0.2) for corner in corners], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).flatten(1)
