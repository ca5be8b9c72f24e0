"""MAE (arXiv:2111.06377): the pixels of hidden patches from the visible ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FROM_1, INNER_FRACTION, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers.masking import Mask, encode_visible, patchify, random_mask, unpatchify
from facessl.models.mae_decoder import decoder_for
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD
from facessl.views.spec import View

#: Crops of 0.2-1 of the area and a flip; no change of colors.
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
        check_values(
            self, {"mask_ratio": INNER_FRACTION, "decoder_width decoder_depth decoder_heads": FROM_1}, prefix="method."
        )


class MAE(nn.Module):
    """Masked autoencoder (He et al., CVPR 2022): mean squared error of the pixels of the hidden patches.

    Differences:
        Pixels are those of the normalized image. The default encoder starts as timm's `weight_init: jax`, close to the
        paper's Xavier-uniform; one named by `--backbone` starts as timm's (truncated normal of deviation 0.02), unless
        `--backbone.options '{weight_init: jax}'` is given, too.
    """

    Args: ClassVar[type[MAEArgs]] = MAEArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        "optim": {"name": "adamw", "lr": 1.5e-4, "reference_batch": 256, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "backbone": {"name": "vit_base_patch16_224", "options": {"weight_init": "jax"}},
    }
    views: ClassVar[tuple[View, ...]] = MAE_VIEWS
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    patches_only: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`backbone` is a ViT with a class token; `values` are fields of `MAEArgs`."""
        super().__init__()
        self.args = args = MAEArgs(**values)
        self.backbone = backbone
        self.decoder = decoder_for(backbone, args)
        self.grid: tuple[int, int] = backbone.model.patch_embed.grid_size

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of one view (B, 3, S, S); logs `reconstruction`, the mean squared error."""
        (x,) = batch.views
        predicted, mask = self._predict(x, self.noise(batch))
        with full_precision(x):
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
        return torch.rand(len(batch), self.grid[0] * self.grid[1], device=batch.views[0].device)

    def _predict(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Mask]:
        mask = random_mask(noise, self.args.mask_ratio)
        return self.decoder(encode_visible(self.backbone.model, x, mask.keep), mask.restore), mask

    def after_step(self, progress: Progress) -> None:
        """Nothing to move."""

    @torch.no_grad()
    def reconstruct(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions of images (B, 3, S, S), normalized like them, and the hidden patches, (B, T) bool, with
        masks of uniform noise (B, T); call it in evaluation mode. With `norm_pix` every patch has its true mean and
        deviation, which the network does not predict."""
        patches, mask = self._predict(x, noise)
        if self.args.norm_pix:
            mean, deviation = patch_statistics(patchify(x, self.backbone.stride))
            patches = patches * deviation + mean
        return unpatchify(patches, self.backbone.stride, self.grid), mask.removed


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, T, 1) of patches (B, T, P), with 1e-6 added to the unbiased variance."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
