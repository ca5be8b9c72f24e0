"""Plain ViTs under timm's names, also MAE's files with or without its decoder."""

from __future__ import annotations

from typing import Any

from facessl.models import vit_files
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base
from facessl.views.spec import IMAGENET_MEAN, IMAGENET_STD

FAMILY = "a timm ViT"
LEFT_OUT = (
    r"head\.(weight|bias)$|mask_token$|decoder_pos_embed$|decoder_(embed|norm|pred)\.(weight|bias)$"
    r"|decoder_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)$"
)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has a ViT's tensors without a prefix, and is not told to be MoCo v3's."""
    return base.begins(state, r"blocks\.\d+\.attn\.qkv\.") and not vit_files.is_moco(state, base.tensors(state))


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The ViT without its classifier, with ImageNet's normalisation and the usual heads for its width; see `guessed`.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; they are named.
    """
    found = base.tensors(state)
    size, sizes = base.vit_sizes(found, FAMILY)
    backbone = base.build_vit(FAMILY, size, sizes, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    fitted = base.fit(backbone.model, found, lambda name: name, FAMILY, left_out=LEFT_OUT)
    backbone.model.load_state_dict(fitted)
    return backbone


def guessed(state: dict[str, Any], backbone: Backbone) -> dict[str, str]:
    """What the file does not say: by the name of the setting, in words. Nothing of MAE's with its decoder."""
    if "decoder_embed.weight" in base.tensors(state):
        return {}
    heads = backbone.model.blocks[0].attn.num_heads
    how = " (one for every 64 channels)" if heads * 64 == backbone.num_features else ""
    return {"heads": f"attention heads: {heads}{how}", **base.guessed_normalisation(backbone)}
