"""What the families share: whole methods out of a checkpoint, and their backbones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from facessl.core.errors import CheckpointError, ConfigError
from facessl.methods.base import Method
from facessl.models.backbone import Backbone
from facessl.models.weights import fit, under
from facessl.views.spec import IMAGENET_MEAN, IMAGENET_STD


def whole_method(
    make: Callable[[], Method], found: Mapping[str, Tensor], theirs: Callable[[str], str], family: str, **kept: Any
) -> Method:
    """What `make` builds, with every tensor of the checkpoint; `kept` and errors as in `fit`."""
    method = _made(make, family)
    module = cast(nn.Module, method)
    module.load_state_dict(fit(module, found, theirs, family, **kept), strict="own" not in kept)
    return method


def online_backbone(
    make: Callable[[], Method], found: Mapping[str, Tensor], theirs: Callable[[str], str], family: str, **kept: Any
) -> Backbone:
    """The backbone alone; heads and target take no memory, but are compared as well. Arguments as in `fit`."""
    with torch.device("meta"):
        method = _made(make, family)
    fitted = fit(cast(nn.Module, method), found, theirs, family, **kept)
    like = method.backbone
    normalisation: dict[str, Any] = {"mean": like.mean, "std": like.std}
    backbone = Backbone(like.name, image_size=like.image_size, **normalisation, **like.timm_options)
    backbone.model.load_state_dict(under(fitted, "backbone.model."))
    return backbone


def _made(make: Callable[[], Method], family: str) -> Method:
    try:
        return make()
    except ConfigError as error:
        raise CheckpointError(f"the shapes of this checkpoint of {family} do not go together: {error}") from None


def guessed_normalisation(backbone: Backbone) -> dict[str, str]:
    """What `guessed` of a family says where mean and std are ImageNet's for want of a better one."""
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {key: f"ImageNet's {key}" for key, value in usual.items() if getattr(backbone, key) == value}
