"""Checkpoints of MoCo v3 (github.com/facebookresearch/moco-v3), ViTs and ResNets: the online network."""

from __future__ import annotations

from typing import Any

from facessl.backbones import Backbone
from facessl.views.spec import IMAGENET_MEAN, IMAGENET_STD
from facessl.weights import _common

FAMILY = "MoCo v3"
PREFIX = "base_encoder."
#: MoCo v3 has 12 attention heads at every width.
HEADS = 12
LEFT_OUT = rf"base_encoder\.(head|fc)\.{_common.MLP}|momentum_encoder\.|predictor\.{_common.MLP}"


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has MoCo v3's online network."""
    return _common.begins(state, r"base_encoder\.(blocks|layer[1-4])\.")


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The online network without its projector, with ImageNet's normalisation.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape, also in the momentum network, which
            must have the same; they are named.
    """
    found = _common.tensors(state)
    online = _common.under(found, PREFIX)
    normalisation: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if any(name.startswith("blocks.") for name in online):
        size, options = _common.vit_sizes(online, FAMILY, heads=HEADS)
        backbone = _common.build_vit("vit_base_patch16_224", FAMILY, size, options, **normalisation)
    else:
        backbone = Backbone(_common.resnet_name(online, FAMILY), **normalisation)
    fitted = _common.fit(backbone.model, found, lambda name: PREFIX + name, FAMILY, left_out=LEFT_OUT)
    _common.check_copy(found, "momentum_encoder.", PREFIX, FAMILY, values=False)
    backbone.model.load_state_dict(fitted)
    return backbone
