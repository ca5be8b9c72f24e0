"""Checkpoints of MoCo v3 (github.com/facebookresearch/moco-v3), ViTs and ResNets: the online network.

Also bare ViTs of it (linear probes, networks taken out of a checkpoint), told by `arch` or by the position table.
"""

from __future__ import annotations

from typing import Any

from facessl.models import vit_files, weights
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base

FAMILY = "MoCo v3"
PREFIX = vit_files.MOCO_PREFIX


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has MoCo v3's online network, or is a bare ViT of it."""
    whole = weights.begins(state, r"base_encoder\.(blocks|layer[1-4])\.")
    return whole or vit_files.is_moco(state, weights.tensors(state))


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The online network without its projector, with ImageNet's normalisation; ViTs have 12 attention heads.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape, also in the momentum network, which
            must have the same; they are named.
    """
    found = weights.tensors(state)
    if any(name.removeprefix(PREFIX).startswith("blocks.") for name in found):
        backbone = vit_files.moco_vit(found)
    else:
        backbone = base.plain_resnet(state, FAMILY, PREFIX, vit_files.MOCO_LEFT_OUT)
    weights.check_copy(found, "momentum_encoder.", PREFIX, FAMILY, values=False)
    return backbone
