"""Files under timm's names: plain ViTs, also MAE's with or without its decoder, and any model that the user names."""

from typing import Any

import timm
import torch
from torch import Tensor

from facessl.core.errors import ConfigError
from facessl.models import weights
from facessl.models.backbone import Backbone, pretrained_settings
from facessl.pretrained.families import base, mocov3

FAMILY = "a timm ViT"
LEFT_OUT = (
    r"(head|fc)\.(weight|bias)$|mask_token$|decoder_pos_embed$|decoder_(embed|norm|pred)\.(weight|bias)$"
    r"|decoder_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)$"
)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has a ViT's tensors without a prefix, and is not MoCo v3's."""
    return weights.begins(state, r"blocks\.\d+\.attn\.qkv\.") and not mocov3.is_bare(state)


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The ViT without its classifier, with ImageNet's normalization and the usual heads for its width; see `guessed`.

    CheckpointError names the tensors that do not fit.
    """
    tensors = weights.tensors(state)
    backbone = base.build_vit(tensors, FAMILY)
    backbone.model.load_state_dict(weights.fit(backbone.model, tensors, str, FAMILY, left_out=LEFT_OUT))
    return backbone


def guessed(state: dict[str, Any], backbone: Backbone) -> dict[str, str]:
    """Settings that the file does not contain, by name, in words; none for MAE's with its decoder."""
    if "decoder_embed.weight" in weights.tensors(state):
        return {}
    heads = backbone.model.blocks[0].attn.num_heads
    how = " (one for every 64 channels)" if heads * 64 == backbone.num_features else ""
    return {"heads": f"attention heads: {heads}{how}", **base.guessed_normalization(backbone)}


def build_named(state: dict[str, Any], name: str) -> Backbone:
    """The model without its classifier, with the normalization of timm's own weights of that name.

    `state` has the names of timm, bare or below `state_dict` or `model`; `name` may have a tag
    (`vit_small_patch16_224.augreg_in21k`).

    UnknownName: timm has no such model or tag. ConfigError: the library cannot use that model. CheckpointError names
    the tensors that do not fit.
    """
    settings = pretrained_settings(name)
    plain = name.partition(".")[0]
    try:
        with torch.device("meta"):
            whole, bare = (timm.create_model(name, num_classes=classes) for classes in (2, 0))
    except (TypeError, AssertionError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"timm's {name} cannot be built without a classifier: {error}") from None
    classifier = whole.state_dict().keys() - bare.state_dict().keys()
    parts = [weights.tensors(part) for _, part in weights.networks(state)]
    tensors = next((part for part in parts if part.keys() & bare.state_dict().keys()), parts[0])
    size = _image_size(bare, tensors) or settings.image_size
    backbone = Backbone(plain, image_size=size, mean=settings.mean, std=settings.std)
    features = {n: v for n, v in tensors.items() if n not in classifier}
    backbone.model.load_state_dict(weights.fit(backbone.model, features, str, f"timm's {plain}"))
    return backbone


def _image_size(model: Any, tensors: dict[str, Tensor]) -> int | None:
    """Side in pixels of the position table in the file; None for a network without one, or of no square."""
    embed: Any = getattr(model, "patch_embed", None)
    own, table = getattr(model, "pos_embed", None), tensors.get("pos_embed")
    grid = getattr(embed, "grid_size", None)
    if grid is None or own is None or table is None or (own.ndim, table.ndim) != (3, 3):
        return None
    cells = table.shape[1] - (own.shape[1] - grid[0] * grid[1])  # without the class token's place, if it has one
    side = round(max(cells, 0) ** 0.5)
    return side * embed.patch_size[0] if side and side * side == cells else None
