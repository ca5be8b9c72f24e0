"""Checkpoints of MoCo v3 (github.com/facebookresearch/moco-v3), ViTs and ResNets: the online network.

Also bare ViTs of it (linear probes, networks taken out of a checkpoint), recognized by `arch` or the position table.
"""

from collections.abc import Mapping
from typing import Any

import torch

from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.models.layers.positions import sincos_positions
from facessl.pretrained.families import base

FAMILY = "MoCo v3"
#: Prefix of the online network in a file of the pre-training.
PREFIX = "base_encoder."
LEFT_OUT = rf"base_encoder\.(head|fc)\.{weights.MLP}|momentum_encoder\.|predictor\.{weights.MLP}"
#: In a bare file: the classifier, or the projector.
_LEFT_OUT_BARE = rf"(head|fc)\.((weight|bias)$|{weights.MLP})"
#: Names of networks in the authors' code, as its files have them under `arch`; timm's are longer.
NAMES = ("vit_small", "vit_base")


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has MoCo v3's online network, or is a bare ViT of it."""
    return weights.begins(state, r"base_encoder\.(blocks|layer[1-4])\.") or is_bare(state)


def is_bare(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is a linear probe of the authors' code, or a network taken out of a checkpoint.

    Either the file says so under `arch`, or its position table is MoCo v3's: sines and cosines like those of MAE, but
    the first half of the channels encodes the row (the order of `meshgrid` there), and zeros for the class token.
    """
    tensors = weights.tensors(state)
    if not any(name.startswith("blocks.") and ".attn.qkv." in name for name in tensors):
        return False
    if isinstance(state.get("state_dict"), Mapping) and state.get("arch") in NAMES:
        return True
    table = tensors.get("pos_embed")
    if table is None or table.ndim != 3 or table.shape[0] != 1 or table.shape[-1] % 4:
        return False
    side = round((table.shape[1] - 1) ** 0.5)
    if side < 2 or side * side != table.shape[1] - 1:
        return False
    columns, rows = sincos_positions(side, side, table.shape[-1]).chunk(2, dim=1)
    expected = torch.cat([torch.zeros(1, table.shape[-1]), torch.cat([rows, columns], dim=1).float()])
    return torch.allclose(table[0].float(), expected, atol=1e-3)


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The online network without its projector, with ImageNet's normalization; ViTs up to ViT-B have 12 heads.

    CheckpointError names the tensors that do not fit, also in the momentum network, which must have the same.
    """
    tensors = weights.tensors(state)
    prefix, left_out = (PREFIX, LEFT_OUT) if weights.under(tensors, PREFIX) else ("", _LEFT_OUT_BARE)
    if weights.under(tensors, prefix + "blocks."):
        backbone = base.build_vit(
            weights.under(tensors, prefix), FAMILY, heads=lambda width: 12 if width <= 768 else base.usual_heads(width)
        )
        fitted = weights.fit(backbone.model, tensors, lambda name: prefix + name, FAMILY, left_out=left_out)
        backbone.model.load_state_dict(fitted)
    else:
        backbone = base.plain_resnet(state, FAMILY, prefix, left_out)
    weights.check_copy(tensors, "momentum_encoder.", PREFIX, FAMILY, values=False)
    return backbone
