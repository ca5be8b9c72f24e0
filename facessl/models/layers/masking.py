"""Random masks over the patches of an image, and a ViT that sees the visible patches only."""

from typing import Any, NamedTuple

import torch
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from facessl.core.errors import ConfigError
from facessl.models.layers.positions import sincos_positions


class Mask(NamedTuple):
    """The K of T patches that an encoder sees, for each of B images."""

    keep: Tensor  # (B, K) int64, positions of the visible patches, in the order in which they enter the encoder
    restore: Tensor  # (B, T) int64, position of each patch in the sequence "visible, then removed"
    removed: Tensor  # (B, T) bool, True if the patch is hidden


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """Keep the patches of the smallest uniform noise (B, T) visible (MAE, section 3); the fraction `ratio` is removed,
    the number of visible patches rounded down, to at least one."""
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    count = max(1, int(noise.shape[1] * (1 - ratio)))
    return Mask(order[:, :count], restore, restore >= count)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, T, C) at the positions `index` (B, K) -> (B, K, C)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) -> (B, T, patch * patch * 3): patches and their pixels row by row, channels last."""
    cells = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, 3, h, p, w, p)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """(B, h * w, patch * patch * 3) -> (B, 3, h * patch, w * patch), the inverse of `patchify`; `grid` is (h, w)."""
    cells = patches.unflatten(2, (patch, patch, -1)).unflatten(1, grid)  # (B, h, w, p, p, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def check_maskable(model: nn.Module, name: str) -> None:
    """ConfigError for a timm model that `encode_visible` cannot run: it is not a plain ViT with a position table and a
    class token, or its last norm sits after pooling."""
    plain = isinstance(model, VisionTransformer) and model.pos_embed is not None and model.cls_token is not None
    if not plain:
        raise ConfigError(
            f"backbone {name} cannot leave patches out: give a ViT with a class token, e.g. vit_base_patch16_224"
        )
    if not isinstance(model.fc_norm, nn.Identity):
        raise ConfigError(
            f"backbone {name} normalizes after pooling, which masked pre-training never trains: "
            "add --backbone.options '{fc_norm: false}'"
        )


@torch.no_grad()
def fix_positions(model: Any, *, pretrained: bool = False) -> None:
    """Replace a ViT's position table by the fixed sine-cosine one (MAE, appendix A.1), zero for its prefix tokens;
    ConfigError if it has `pretrained` weights, whose own table would be lost."""
    if pretrained:
        raise ConfigError(
            "the pre-trained backbone's position table would be overwritten by the fixed one (method.positions = "
            "sincos): set method.positions to learned"
        )
    height, width = model.patch_embed.grid_size
    table = sincos_positions(height, width, model.pos_embed.shape[-1]).to(model.pos_embed)
    model.pos_embed.zero_()
    model.pos_embed[0, -len(table) :] = table
    model.pos_embed.requires_grad_(False)


def embed_patches(model: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First layers of a ViT: images (B, 3, H, W) -> its P prefix tokens (1, P, C), the class token first, with their
    positions; patches (B, T, C) without; and their positions (1, T, C)."""
    prefix = torch.cat([token for token in (model.cls_token, model.reg_token) if token is not None], dim=1)
    positions = model.pos_embed
    if not model.no_embed_class:
        count = prefix.shape[1]
        prefix, positions = prefix + positions[:, :count], positions[:, count:]
    patches = model.patch_embed(x)
    if patches.ndim == 4:  # (B, h, w, C) where the model was built for images of several sizes
        patches = patches.flatten(1, 2)
    return prefix, patches, positions


def run_blocks(model: Any, prefix: Tensor, patches: Tensor) -> Tensor:
    """Blocks of a ViT: prefix tokens (1, P, C) and patches (B, K, C), with positions -> (B, P + K, C), no last norm."""
    tokens = torch.cat([prefix.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1)
    tokens = model.norm_pre(model.pos_drop(tokens))
    return checkpoint_seq(model.blocks, tokens) if model.grad_checkpointing else model.blocks(tokens)


def encode_visible(model: Any, x: Tensor, keep: Tensor) -> Tensor:
    """Tokens of a timm ViT that sees only the patches `keep` (B, K) of images (B, 3, H, W); no block runs on others.

    (B, P + K, C) after the last norm: P prefix tokens (the class token first), then the visible patches in the order of
    `keep`. With every patch in its own order this is `model.forward_features(x)`.
    """
    prefix, patches, positions = embed_patches(model, x)
    return model.norm(run_blocks(model, prefix, take(patches + positions, keep)))
