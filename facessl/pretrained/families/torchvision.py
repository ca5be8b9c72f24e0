"""Plain ResNets of torchvision or timm, with or without a classifier."""

from typing import Any

from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base

FAMILY = "a torchvision ResNet"
LEFT_OUT = r"fc\.(weight|bias)$"


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has a ResNet's tensors without a prefix."""
    return weights.begins(state, r"layer[1-4]\.\d+\.(conv|bn)\d\.")


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The ResNet without classifier, with ImageNet's normalization. CheckpointError names what does not fit."""
    return base.plain_resnet(state, FAMILY, left_out=LEFT_OUT)


def guessed(state: dict[str, Any], backbone: Backbone) -> dict[str, str]:
    """Settings that the file does not contain, by name, in words."""
    return base.guessed_normalization(backbone)
