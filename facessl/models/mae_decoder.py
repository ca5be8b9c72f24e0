"""Decoder of masked autoencoders: visible tokens and mask tokens to pixels of every patch."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from facessl.core.errors import ConfigError
from facessl.models.backbone import Backbone
from facessl.models.layers.attention import choose_attention
from facessl.models.layers.masking import check_maskable, fix_positions, take
from facessl.models.layers.positions import sincos_positions
from facessl.models.weights import load_exactly


class MAEDecoder(nn.Module):
    """A narrow ViT that reconstructs what the encoder did not see (He et al., CVPR 2022, section 3 and appendix A.1).

    Pre-norm blocks, MLP ratio 4, fixed sine-cosine positions.
    """

    def __init__(
        self, in_features: int, *, grid: tuple[int, int], patch: int, width: int, depth: int, heads: int
    ) -> None:
        """
        Args:
            in_features: C, channels of the encoder's tokens.
            grid, patch: (h, w), patches of the image, T = h * w, and their side in pixels.
            width, depth, heads: channels, blocks and attention heads, which must divide `width` (ConfigError).
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"decoder width {width} cannot be cut in {heads} heads: give a multiple")
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(in_features, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.Sequential(
            *(Block(width, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        )
        choose_attention(self.blocks)
        self.norm = norm(width)
        self.predict = nn.Linear(width, patch * patch * 3)
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(*grid, width).float(), persistent=False)  # (T, D)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Class token and visible patches (B, 1 + K, C), `Mask.restore` (B, T) -> (B, T, patch * patch * 3), every
        patch's pixels in the order of `patchify`."""
        tokens = self.embed(latent)  # (B, 1 + K, D)
        hidden = restore.shape[1] + 1 - tokens.shape[1]
        masked = self.mask_token.to(tokens.dtype).expand(len(tokens), hidden, -1)
        patches = take(torch.cat([tokens[:, 1:], masked], dim=1), restore) + self.positions  # (B, T, D)
        tokens = torch.cat([tokens[:, :1].to(patches.dtype), patches], dim=1)  # the class token has no position
        return self.predict(self.norm(self.blocks(tokens))[:, 1:])

    def load_blocks(self, state: Mapping[str, Any], count: int, path: str) -> None:
        """Start the first `count` blocks from a checkpoint loaded from `path`; the rest stays as it is.

        `state` is in MAE's layout (`decoder_blocks.0.norm1.weight`, ... under "model" or bare) or one of this library's
        runs (`decoder.blocks.0...` under "method"). CheckpointError names the tensors that do not fit.
        """
        inner = next((state[key] for key in ("model", "method", "state_dict") if key in state), state)
        blocks = {}
        for name, value in inner.items():
            match = re.fullmatch(r"(?:module\.)?decoder[._]blocks\.(\d+)\.(.+)", name)
            if match and int(match[1]) < count:
                blocks[f"{match[1]}.{match[2]}"] = value
        what = f"the first {count} decoder blocks (width {self.mask_token.shape[-1]})"
        load_exactly(self.blocks[:count], blocks, path, what)


def decoder_for(backbone: Backbone, args: Any) -> MAEDecoder:
    """The decoder of MAE and MCF by their hyper-parameters; fixes the backbone's positions where these say so."""
    check_maskable(backbone.model, backbone.name)
    if args.positions == "sincos":
        fix_positions(backbone.model, pretrained=backbone.pretrained)
    return MAEDecoder(
        backbone.num_features,
        grid=backbone.model.patch_embed.grid_size,
        patch=backbone.stride,
        width=args.decoder_width,
        depth=args.decoder_depth,
        heads=args.decoder_heads,
    )
