"""Plain ViTs under timm's names, also MAE's files with or without its decoder."""

from __future__ import annotations

from typing import Any

from facessl.models import vit_files, weights
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base

FAMILY = "a timm ViT"


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has a ViT's tensors without a prefix, and is not told to be MoCo v3's."""
    return weights.begins(state, r"blocks\.\d+\.attn\.qkv\.") and not vit_files.is_moco(state, weights.tensors(state))


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The ViT without its classifier, with ImageNet's normalisation and the usual heads for its width; see `guessed`.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; they are named.
    """
    return vit_files.plain_vit(weights.tensors(state), FAMILY)


def guessed(state: dict[str, Any], backbone: Backbone) -> dict[str, str]:
    """What the file does not say: by the name of the setting, in words. Nothing of MAE's with its decoder."""
    if "decoder_embed.weight" in weights.tensors(state):
        return {}
    heads = backbone.model.blocks[0].attn.num_heads
    how = " (one for every 64 channels)" if heads * 64 == backbone.num_features else ""
    return {"heads": f"attention heads: {heads}{how}", **base.guessed_normalisation(backbone)}
