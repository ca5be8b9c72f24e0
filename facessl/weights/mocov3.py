"""Checkpoints of MoCo v3 (github.com/facebookresearch/moco-v3), ViTs and ResNets: the online network.

Also bare ViTs of it (linear probes, networks taken out of a checkpoint), told by `arch` or by the position table.
"""

from __future__ import annotations

from typing import Any

from facessl.backbones import Backbone
from facessl.methods import _vit_files
from facessl.views.spec import IMAGENET_MEAN, IMAGENET_STD
from facessl.weights import _common

FAMILY = "MoCo v3"
PREFIX = "base_encoder."
LEFT_OUT = rf"base_encoder\.(head|fc)\.{_common.MLP}|momentum_encoder\.|predictor\.{_common.MLP}"
#: In a bare file: the classifier, or the projector.
LEFT_OUT_BARE = rf"head\.((weight|bias)$|{_common.MLP})"


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has MoCo v3's online network, or is a bare ViT of it."""
    return _common.begins(state, r"base_encoder\.(blocks|layer[1-4])\.") or _vit_files.is_moco(
        state, _common.tensors(state)
    )


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The online network without its projector, with ImageNet's normalisation; ViTs have 12 attention heads.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape, also in the momentum network, which
            must have the same; they are named.
    """
    found = _common.tensors(state)
    whole = any(name.startswith(PREFIX) for name in found)
    prefix = PREFIX if whole else ""
    online = _common.under(found, prefix)
    normalisation: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if any(name.startswith("blocks.") for name in online):
        size, sizes = _common.vit_sizes(online, FAMILY, heads=_vit_files.moco_heads)
        backbone = _common.build_vit(FAMILY, size, sizes, **normalisation)
    else:
        backbone = Backbone(_common.resnet_name(online, FAMILY), **normalisation)
    left_out = LEFT_OUT if whole else LEFT_OUT_BARE
    fitted = _common.fit(backbone.model, found, lambda name: prefix + name, FAMILY, left_out=left_out)
    if whole:
        _common.check_copy(found, "momentum_encoder.", PREFIX, FAMILY, values=False)
    backbone.model.load_state_dict(fitted)
    return backbone
