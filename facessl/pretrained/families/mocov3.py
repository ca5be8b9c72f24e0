"""Checkpoints of MoCo v3 (github.com/facebookresearch/moco-v3), ViTs and ResNets: the online network.

Also bare ViTs of it (linear probes, networks taken out of a checkpoint), told by `arch` or by the position table.
"""

from __future__ import annotations

from typing import Any

from facessl.models import vit_files
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base
from facessl.views.spec import IMAGENET_MEAN, IMAGENET_STD

FAMILY = "MoCo v3"
PREFIX = "base_encoder."
LEFT_OUT = rf"base_encoder\.(head|fc)\.{base.MLP}|momentum_encoder\.|predictor\.{base.MLP}"
#: In a bare file: the classifier, or the projector.
LEFT_OUT_BARE = rf"head\.((weight|bias)$|{base.MLP})"


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has MoCo v3's online network, or is a bare ViT of it."""
    return base.begins(state, r"base_encoder\.(blocks|layer[1-4])\.") or vit_files.is_moco(state, base.tensors(state))


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The online network without its projector, with ImageNet's normalisation; ViTs have 12 attention heads.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape, also in the momentum network, which
            must have the same; they are named.
    """
    found = base.tensors(state)
    whole = any(name.startswith(PREFIX) for name in found)
    prefix = PREFIX if whole else ""
    online = base.under(found, prefix)
    normalisation: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if any(name.startswith("blocks.") for name in online):
        size, sizes = base.vit_sizes(online, FAMILY, heads=vit_files.moco_heads)
        backbone = base.build_vit(FAMILY, size, sizes, **normalisation)
    else:
        backbone = Backbone(base.resnet_name(online, FAMILY), **normalisation)
    left_out = LEFT_OUT if whole else LEFT_OUT_BARE
    fitted = base.fit(backbone.model, found, lambda name: prefix + name, FAMILY, left_out=left_out)
    if whole:
        base.check_copy(found, "momentum_encoder.", PREFIX, FAMILY, values=False)
    backbone.model.load_state_dict(fitted)
    return backbone
