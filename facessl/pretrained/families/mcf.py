"""Checkpoints of the released MCF (github.com/nomewang/MCF)."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from facessl.methods.base import Method
from facessl.methods.mcf import MCF
from facessl.models import weights
from facessl.pretrained.families import base

FAMILY = "MCF"
_rename = weights.renamer(
    (
        ("backbone.model.", "online_encoder."),
        ("target_backbone.model.", "target_encoder."),
        ("projector.", "online_encoder.fc."),
        ("target_projector.", "target_encoder.fc."),
        ("decoder.mask_token", "mask_token"),
        ("decoder.predict.", "decoder_pred."),
        ("decoder.embed.", "decoder_embed."),
        ("decoder.blocks.", "decoder_blocks."),
        ("decoder.norm.", "decoder_norm."),
    )
)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has MCF's online ViT."""
    return weights.begins(state, r"online_encoder\.blocks\.")


def _fresh(tensors: Mapping[str, Tensor]) -> Method:
    """Build `MCF(variant="official")`.

    No shape depends on the decoder's 16 attention heads; the frozen network is named again to continue training.
    """
    backbone = base.build_vit(weights.under(tensors, "online_encoder."), FAMILY, mean=MCF.mean, std=MCF.std)
    width = weights.shape_of(tensors, "decoder_embed.weight", FAMILY, 2)[0]
    depth = len({n.split(".")[1] for n in tensors if re.match(r"decoder_blocks\.\d+\.", n)})
    hidden = weights.shape_of(tensors, "online_encoder.fc.0.weight", FAMILY, 2)[0]
    dim = weights.shape_of(tensors, "online_encoder.fc.3.weight", FAMILY, 2)[0]
    heads = {"decoder_width": width, "decoder_depth": depth, "hidden": hidden, "dim": dim}
    return MCF(backbone, variant="official", decoder_heads=math.gcd(width, 16), **heads)


#: The decoder's fixed position table is computed; the frozen network is not part of the method.
_layout = base.Layout(FAMILY, _fresh, _rename, fit_options={"left_out": r"decoder_pos_embed$|perceptual_loss\."})
build, build_backbone = _layout.build, _layout.build_backbone
