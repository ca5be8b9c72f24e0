"""LEWEL-B's checkpoints, those of its own release (github.com/LayneH/LEWEL) and those of FRA's training code."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from facessl.methods.base import Method
from facessl.methods.lewel import LEWEL
from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD

FAMILY = "LEWEL"
_rename = weights.renamer(
    (
        ("backbone.model.", "online_net.backbone."),
        ("target_backbone.model.", "target_net.backbone."),
        ("heads.projector.layers.", "online_net.neck.proj.mlp."),
        ("heads.slot_projector.layers.", "online_net.neck.proj_obj.mlp."),
        ("target_heads.projector.layers.", "target_net.neck.proj.mlp."),
        ("target_heads.slot_projector.layers.", "target_net.neck.proj_obj.mlp."),
        ("predictor.layers.", "predictor.mlp."),
        ("slot_predictor.layers.", "predictor_obj.mlp."),
    )
)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has LEWEL's two necks, and not FRA's decoder."""
    return weights.begins(state, r"online_net\.neck\.proj_obj\.") and not weights.begins(
        state, r"online_net\.neck\.proj_(attn|pixel)\."
    )


def _fresh(tensors: Mapping[str, Tensor]) -> Method:
    """Build LEWEL with the 4 heads of the released scripts (no shape depends on them) and their EMAN variant.

    Normalization is ImageNet's, as in LEWEL's release, and VGGFace2's for a checkpoint of FRA's training code.
    """
    hidden = weights.shape_of(tensors, "online_net.neck.proj.mlp.0.weight", FAMILY, 3)[0]
    dim = weights.shape_of(tensors, "online_net.neck.proj.mlp.3.weight", FAMILY, 3)[0]
    mean, std = (LEWEL.mean, LEWEL.std) if "center" in tensors else (IMAGENET_MEAN, IMAGENET_STD)
    name = weights.resnet_name(weights.under(tensors, "online_net.backbone."), FAMILY)
    return LEWEL(Backbone(name, mean=mean, std=std), hidden=hidden, dim=dim)


_layout = base.Layout(FAMILY, _fresh, _rename, fit_options=base.FRA_ADDS)
build, build_backbone = _layout.build, _layout.build_backbone
