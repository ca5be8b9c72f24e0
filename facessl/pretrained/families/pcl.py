"""Checkpoints of the released PCL (github.com/DreamMr/PCL): its 64-pixel network, branches, heads and decoder."""

from __future__ import annotations

import re
from typing import Any

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
#: The means that weigh the contrasts are no tensors there.
OWN = r"balance\."


def _theirs(name: str) -> str:
    """From our names to PCL's; its decoder is one list: ReLU, doubling, convolution, norm, and so on."""
    if match := re.match(r"decoder\.(convs|norms)\.(\d+)\.(.+)", name):
        return f"decoder.model.{4 * int(match[2]) + (2 if match[1] == 'convs' else 3)}.{match[3]}"
    return _BEFORE(name)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has the trunk of PCL's network."""
    return weights.begins(state, r"encoder\.(layer2_1|resblock1)\.")


def build(state: dict[str, Any]) -> Method:
    """The whole method on `pcl_facecycle`, 64 px; the weights of the contrasts start anew.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; they are named.
    """
    return base.whole_method(_fresh, weights.tensors(state), _theirs, FAMILY, own=OWN)


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The trunk, for images in 0..1 at 64 px; errors as in `build`."""
    return base.online_backbone(_fresh, weights.tensors(state), _theirs, FAMILY, own=OWN)


def _fresh() -> Method:
    return PCL(Backbone("pcl_facecycle", image_size=64, mean=PCL.mean, std=PCL.std))
