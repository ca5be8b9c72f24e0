"""MAE: the pixels of hidden patches from the visible ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from facessl.core.errors import ConfigError
from facessl.core.precision import at_least_float32
from facessl.core.types import Batch, Progress, Step
from facessl.models.backbone import Backbone
from facessl.models.layers.masking import (
    Mask,
    check_maskable,
    encode_visible,
    fix_positions,
    patchify,
    random_mask,
    unpatchify,
)
from facessl.models.layers.vit_decoder import MaskedDecoder
from facessl.views.spec import IMAGENET_MEAN, IMAGENET_STD, View

#: Crops of 0.2-1 of the area and a flip; no change of colours.
MAE_VIEWS = (View(scale=(0.2, 1.0), jitter_p=0.0, grayscale=0.0),)


@dataclass(frozen=True)
class MAEArgs:
    """Hyper-parameters of MAE; the defaults are its paper's.

    Attributes:
        mask_ratio: fraction of the patches that the encoder does not see.
        norm_pix: targets are patches of mean 0 and variance 1. The paper's default is off; its best results, on.
        positions: "sincos", the fixed table, or "learned", timm's.
        decoder_width: channels of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
    """

    mask_ratio: float = 0.75
    norm_pix: bool = False
    positions: Literal["sincos", "learned"] = "sincos"
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        if self.positions not in ("sincos", "learned"):
            raise ConfigError(f"positions is {self.positions!r}: give one of sincos, learned")
        ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("mask_ratio", lambda v: 0 < v < 1, "a fraction between 0 and 1"),
            ("decoder_width decoder_depth decoder_heads", lambda v: v >= 1, "1 or more"),
        )
        for names, valid, wanted in ranges:
            for name in names.split():
                if not valid(value := getattr(self, name)):
                    raise ConfigError(f"{name} is {value}: give {wanted}")


class MAE(nn.Module):
    """Masked autoencoder (He et al., CVPR 2022): mean squared error of the pixels of the hidden patches.

    Differences:
        Pixels are those of the normalised image. The encoder starts as timm's (truncated normal of deviation 0.02;
        the paper: Xavier-uniform, to which `--backbone.options '{weight_init: jax}'` is close).
    """

    Args: ClassVar[type[MAEArgs]] = MAEArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    views: ClassVar[tuple[View, ...]] = MAE_VIEWS
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    paper: ClassVar[str] = "He et al., Masked autoencoders are scalable vision learners, CVPR 2022, arXiv:2111.06377"
    patches_only: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """
        Args:
            backbone: a ViT with a class token.
            values: fields of `MAEArgs` by keyword.

        Raises:
            ConfigError: a value outside its range, or a backbone that cannot leave patches out.
        """
        super().__init__()
        self.args = args = MAEArgs(**values)
        check_maskable(backbone.model, backbone.name)
        if args.positions == "sincos":
            fix_positions(backbone.model, pretrained=backbone.pretrained)
        self.backbone = backbone
        self.grid: tuple[int, int] = backbone.model.patch_embed.grid_size
        self.decoder = MaskedDecoder(
            backbone.num_features,
            grid=self.grid,
            patch=backbone.stride,
            width=args.decoder_width,
            depth=args.decoder_depth,
            heads=args.decoder_heads,
        )

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of one view (B, 3, S, S); logs `reconstruction`, the mean squared error."""
        (x,) = batch.views
        predicted, mask = self._predict(x, self.noise(batch))
        with torch.autocast(x.device.type, enabled=False):
            target = patchify(at_least_float32(x), self.backbone.stride)
            if self.args.norm_pix:
                mean, deviation = patch_statistics(target)
                target = (target - mean) / deviation
            error = (at_least_float32(predicted) - target).square().mean(2)  # (B, T)
            # Every image has as many hidden patches, so that the mean over a batch is that over its ranks.
            loss = (error * mask.removed).sum() / mask.removed.sum()
        return Step(loss, {"reconstruction": loss.detach()})

    def noise(self, batch: Batch) -> Tensor:
        """Uniform noise (B, T) of the mask, drawn on the device."""
        x = batch.views[0]
        return torch.rand(len(x), self.grid[0] * self.grid[1], device=x.device)

    def _predict(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Mask]:
        mask = random_mask(noise, self.args.mask_ratio)
        return self.decoder(encode_visible(self.backbone.model, x, mask.keep), mask.restore), mask

    def after_step(self, progress: Progress) -> None:
        """Nothing to move."""

    @torch.no_grad()
    def reconstruct(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the network reconstructs; call it in evaluation mode.

        Args:
            x: (B, 3, S, S), normalised.
            noise: (B, T) uniform, makes the masks.

        Returns:
            reconstructed images (B, 3, S, S), normalised like `x` (with `norm_pix` every patch has the true mean and
            deviation, which the network does not predict); (B, T) bool, the patches that were hidden.
        """
        patches, mask = self._predict(x, noise)
        if self.args.norm_pix:
            mean, deviation = patch_statistics(patchify(x, self.backbone.stride))
            patches = patches * deviation + mean
        return unpatchify(patches, self.backbone.stride, self.grid), mask.removed


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, T, 1) of patches (B, T, P), with 1e-6 added to the unbiased variance."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
