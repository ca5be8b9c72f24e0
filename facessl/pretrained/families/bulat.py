"""Checkpoints of Bulat et al., "Pre-training strategies and datasets for facial representation learning", ECCV 2022.

Files of github.com/1adrianb/unsupervised-face-representation: a ResNet below `module.base_net.`, without classifier.
"""

from typing import Any

from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base
from facessl.views.normalize import IMAGENET_MEAN, SWAV_STD

FAMILY = "Bulat et al."
PREFIX = "base_net."
LEFT_OUT = rf"projection_net\.(net\.)?{weights.MLP}|prototypes\d*\.(prototypes\d+\.)?weight$"


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has a ResNet below `base_net.`."""
    return weights.begins(state, r"base_net\.layer[1-4]\.")


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The ResNet, without SwAV's projector and prototypes. CheckpointError names the tensors that do not fit."""
    return base.plain_resnet(state, FAMILY, PREFIX, LEFT_OUT, mean=IMAGENET_MEAN, std=SWAV_STD)
