"""Checkpoints of the released PCL (github.com/DreamMr/PCL): its 64-pixel network, branches, heads and decoder."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from facessl.methods.base import Method
from facessl.methods.pcl import PCL
from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base

FAMILY = "PCL"
_BEFORE = weights.renamer(
    (
        ("backbone.model.", "encoder."),
        ("face_branch.layers.", "encoder.layer3_2_exp."),
        ("pose_branch.layers.", "encoder.layer3_2_pose."),
        ("face_head.", "exp_fc."),
        ("pose_head.", "pose_fc."),
    )
)


def _rename(name: str) -> str:
    """Rename to PCL's names; its decoder is one list: ReLU, doubling, convolution, norm, and so on."""
    if match := re.match(r"decoder\.(convs|norms)\.(\d+)\.(.+)", name):
        return f"decoder.model.{4 * int(match[2]) + (2 if match[1] == 'convs' else 3)}.{match[3]}"
    return _BEFORE(name)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has the trunk of PCL's network."""
    return weights.begins(state, r"encoder\.(layer2_1|resblock1)\.")


def _fresh(_: Mapping[str, Tensor]) -> Method:
    return PCL(Backbone("pcl_facecycle", image_size=64, mean=PCL.mean, std=PCL.std))


#: The means that weigh the contrasts are not in the file; they start from zero.
_layout = base.Layout(FAMILY, _fresh, _rename, fit_options={"own": r"balance\."})
build, build_backbone = _layout.build, _layout.build_backbone
