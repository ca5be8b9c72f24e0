"""Plain ViTs under timm's names, also MAE's files with or without its decoder."""

from __future__ import annotations

from typing import Any

from facessl.backbones import Backbone
from facessl.views.spec import IMAGENET_MEAN, IMAGENET_STD
from facessl.weights import _common

FAMILY = "a timm ViT"
LEFT_OUT = (
    r"head\.(weight|bias)$|mask_token$|decoder_pos_embed$|decoder_(embed|norm|pred)\.(weight|bias)$"
    r"|decoder_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)$"
)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has a ViT's tensors without a prefix."""
    return _common.begins(state, r"blocks\.\d+\.attn\.qkv\.")


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The ViT without its classifier, with ImageNet's normalisation.

    A file does not say its normalisation nor its attention heads: ImageNet's, as of MAE and MoCo v3, and the usual
    heads for the width are assumed. timm's own files that want (0.5, 0.5, 0.5) are better had by
    `--backbone NAME --backbone.pretrained true`, which knows it.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; they are named.
    """
    found = _common.tensors(state)
    size, options = _common.vit_sizes(found, FAMILY)
    normalisation = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    backbone = _common.build_vit("vit_base_patch16_224", FAMILY, size, options, **normalisation)
    fitted = _common.fit(backbone.model, found, lambda name: name, FAMILY, left_out=LEFT_OUT)
    backbone.model.load_state_dict(fitted)
    return backbone
