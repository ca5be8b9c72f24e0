"""Visual tokens of DALL-E's discrete VAE (Ramesh et al., "Zero-shot text-to-image generation", ICML 2021)."""

import itertools
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core import checkpoint
from facessl.core.constants import constant
from facessl.core.precision import full_precision
from facessl.models import weights

#: Pixels of the encoder's input per token, and the part at both ends of 0..1 that it never sees.
STRIDE, MARGIN = 8, 0.1


class _Block(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        inner = out // 4
        layers = OrderedDict[str, nn.Module]()
        for i, (a, b, side) in enumerate(
            [(channels, inner, 3), (inner, inner, 3), (inner, inner, 3), (inner, out, 1)], 1
        ):
            layers[f"relu_{i}"] = nn.ReLU()
            layers[f"conv_{i}"] = nn.Conv2d(a, b, side, padding=side // 2)
        self.id_path = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.res_path(x) / 64  # the square of the number of blocks


class DVAEEncoder(nn.Module):
    """The encoder: four groups of two blocks, halved between them; (B, 3, 8h, 8w) in 0..1 -> logits (B, V, h, w)."""

    def __init__(self, width: int = 256, vocabulary: int = 8192) -> None:
        super().__init__()
        layers = OrderedDict[str, nn.Module](input=nn.Conv2d(3, width, 7, padding=3))
        for group, (before, out) in enumerate(itertools.pairwise((width, width, 2 * width, 4 * width, 8 * width)), 1):
            parts = OrderedDict[str, nn.Module](block_1=_Block(before, out), block_2=_Block(out, out))
            if group < 4:
                parts["pool"] = nn.MaxPool2d(2)
            layers[f"group_{group}"] = nn.Sequential(parts)
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(8 * width, vocabulary, 1)))
        self.blocks = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks((1 - 2 * MARGIN) * x + MARGIN)


class VisualTokens:
    """Tokens of images by a frozen encoder, whose file is read at the first use (or by `load`).

    Not an `nn.Module`, so that it is in no state dict.
    """

    def __init__(self, path: str, *, vocabulary: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """`path` holds the state dict of DALL-E's encoder; `mean`, `std`: normalization of the images, RGB in 0..1."""
        self.path, self.vocabulary = path, vocabulary
        self.mean, self.std = mean, std
        self.encoder: DVAEEncoder | None = None

    def load(self) -> DVAEEncoder:
        """The encoder, frozen and in evaluation mode; CheckpointError if the file does not fit."""
        if self.encoder is None:
            state = checkpoint.read(Path(self.path))
            tensors = {_our_name(name): value for name, value in weights.tensors(state).items()}
            width = len(tensors["blocks.input.weight"]) if "blocks.input.weight" in tensors else 256
            encoder = DVAEEncoder(width, self.vocabulary)
            what = f"DALL-E's dVAE encoder with {self.vocabulary} tokens"
            weights.load_exactly(encoder, tensors, self.path, what)
            self.encoder = encoder.requires_grad_(False).eval()
        return self.encoder

    @torch.no_grad()
    def __call__(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images (B, 3, H, W), normalized -> (B, h * w) int64 tokens of the cells of `grid` (h, w)."""
        encoder = self.load().to(x.device)
        mean, std = (constant(v, x, torch.float32).view(1, 3, 1, 1) for v in (self.mean, self.std))
        with full_precision(x):
            size = (grid[0] * STRIDE, grid[1] * STRIDE)
            pixels = F.interpolate(x.float() * std + mean, size, mode="bilinear", antialias=True, align_corners=False)
            return encoder(pixels.clamp(0, 1)).argmax(1).flatten(1)


def _our_name(name: str) -> str:
    """DALL-E's convolutions call their parameters w and b."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.{ {'w': 'weight', 'b': 'bias'}.get(last, last) }"
