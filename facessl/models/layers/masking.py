"""Random masks over the patches of an image, and a ViT that sees the visible patches only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from facessl.core.errors import ConfigError
from facessl.models.layers.positions import sincos_positions


class Mask(NamedTuple):
    """Which of T patches an encoder sees, for each of B images. K patches are visible.

    Attributes:
        keep: (B, K) int64, positions of the visible patches, in the order in which they enter the encoder.
        restore: (B, T) int64, where in the sequence "visible, then removed" each patch stands.
        removed: (B, T) bool, True where the patch is hidden.
    """

    keep: Tensor
    restore: Tensor
    removed: Tensor


def visible_patches(patches: int, ratio: float) -> int:
    """K, how many of `patches` stay visible when the share `ratio` is removed (rounded down, at least one)."""
    return max(1, int(patches * (1 - ratio)))


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """The patches of the smallest noise stay visible (MAE, section 3).

    Args:
        noise: (B, T) uniform numbers; the mask of an image depends on its row alone.
        ratio: fraction of the patches that is removed, 0 to 1.
    """
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    count = visible_patches(noise.shape[1], ratio)
    return Mask(order[:, :count], restore, restore >= count)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, T, C) at the positions `index` (B, K) -> (B, K, C)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) -> (B, T, patch * patch * 3): patches and their pixels row by row, channels last."""
    b, c, height, width = images.shape
    h, w = height // patch, width // patch
    grid = images.reshape(b, c, h, patch, w, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, patch * patch * c)  # (B, h, w, p, p, 3) -> rows


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """(B, h * w, patch * patch * 3) -> (B, 3, h * patch, w * patch), the inverse of `patchify`; `grid` is (h, w)."""
    h, w = grid
    cells = patches.reshape(len(patches), h, w, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, h * patch, w * patch)


def check_maskable(model: nn.Module, name: str) -> None:
    """Refuse what `encode_visible` cannot run.

    Args:
        model: a timm model.
        name: its name, for the sentence.

    Raises:
        ConfigError: no plain ViT with a position table and a class token, or one whose last norm sits after pooling.
    """
    plain = isinstance(model, VisionTransformer) and model.pos_embed is not None and model.cls_token is not None
    if not plain:
        raise ConfigError(
            f"backbone {name} cannot leave patches out: give a ViT with a class token, e.g. vit_base_patch16_224"
        )
    if not isinstance(model.fc_norm, nn.Identity):
        raise ConfigError(
            f"backbone {name} normalises after pooling, which masked pre-training never trains: "
            "add --backbone.options '{fc_norm: false}'"
        )


@torch.no_grad()
def fix_positions(model: Any, *, pretrained: bool = False) -> None:
    """Replace a ViT's position table by the fixed sine-cosine one (MAE, appendix A.1), zero for its prefix tokens.

    Raises:
        ConfigError: the model has `pretrained` weights, whose own table would be lost.
    """
    if pretrained:
        raise ConfigError(
            "the pre-trained backbone's position table would be overwritten by the fixed one (method.positions = "
            "sincos): set method.positions to learned"
        )
    grid = model.patch_embed.grid_size
    table = sincos_positions(grid[0], grid[1], model.pos_embed.shape[-1]).to(model.pos_embed)
    prefix = model.pos_embed.shape[1] - len(table)
    model.pos_embed.zero_()
    model.pos_embed[0, prefix:] = table
    model.pos_embed.requires_grad_(False)


def encode_visible(model: Any, x: Tensor, keep: Tensor) -> Tensor:
    """Tokens of a timm ViT that sees some patches only; the blocks never run on the others.

    Args:
        model: a ViT that `check_maskable` accepts.
        x: (B, 3, H, W), normalised.
        keep: (B, K) int64, the visible patches.

    Returns:
        (B, P + K, C) after the last norm: P prefix tokens (the class token first), then the visible patches in the
        order of `keep`. With every patch in its own order this is `model.forward_features(x)`.
    """
    prefix = [token for token in (model.cls_token, model.reg_token) if token is not None]
    start = torch.cat(prefix, dim=1)  # (1, P, C)
    positions = model.pos_embed
    if not model.no_embed_class:
        start = start + positions[:, : start.shape[1]]
        positions = positions[:, start.shape[1] :]
    patches = model.patch_embed(x)
    if patches.ndim == 4:  # (B, h, w, C) where the model was built for images of several sizes
        patches = patches.flatten(1, 2)
    tokens = take(patches + positions, keep)  # (B, K, C)
    tokens = torch.cat([start.expand(len(x), -1, -1).to(tokens.dtype), tokens], dim=1)
    out: Tensor = model.norm(model.blocks(model.norm_pre(model.pos_drop(tokens))))
    return out
