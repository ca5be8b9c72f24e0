"""What the families share: whole methods out of a checkpoint, and their backbones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from facessl.core.errors import CheckpointError, ConfigError
from facessl.methods.base import Method
from facessl.models.backbone import Backbone
from facessl.models.weights import fit, resnet_name, tensors, under
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD

#: What FRA's training code adds to a checkpoint: a copy of the online backbone, and a centre that stays zero.
FRA_ADDS = {"left_out": r"encoder_q\.|center$", "copy": ("encoder_q.", "online_net.backbone.")}


@dataclass(frozen=True)
class Layout:
    """How a checkpoint of a whole method is read; a family takes `build` and `build_backbone` from it.

    Attributes:
        family: for sentences.
        make: a fresh method for the tensors of a checkpoint.
        theirs: from our names to the family's.
        kept: `left_out`, `own` and `copy` of `facessl.models.weights.fit`.
        read: the tensors of a loaded checkpoint.
    """

    family: str
    make: Callable[[Mapping[str, Tensor]], Method]
    theirs: Callable[[str], str]
    kept: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Tensor]] = tensors

    def build(self, state: Mapping[str, Any]) -> Method:
        """The method of a loaded checkpoint, with its heads.

        Raises:
            CheckpointError: tensors that are missing, unknown or of another shape; they are named.
        """
        found = self.read(state)
        method = self._made(found)
        module = cast(nn.Module, method)
        module.load_state_dict(fit(module, found, self.theirs, self.family, **self.kept), strict="own" not in self.kept)
        return method

    def build_backbone(self, state: Mapping[str, Any]) -> Backbone:
        """The backbone alone; heads and target take no memory, but are compared as well. Errors as in `build`."""
        found = self.read(state)
        with torch.device("meta"):
            method = self._made(found)
        fitted = fit(cast(nn.Module, method), found, self.theirs, self.family, **self.kept)
        like = method.backbone
        normalisation: dict[str, Any] = {"mean": like.mean, "std": like.std}
        backbone = Backbone(like.name, image_size=like.image_size, **normalisation, **like.timm_options)
        backbone.model.load_state_dict(under(fitted, "backbone.model."))
        return backbone

    def _made(self, found: Mapping[str, Tensor]) -> Method:
        try:
            return self.make(found)
        except ConfigError as error:
            raise CheckpointError(
                f"the shapes of this checkpoint of {self.family} do not go together: {error}"
            ) from None


def plain_resnet(
    state: Mapping[str, Any], family: str, prefix: str = "", left_out: str | None = None, **normalisation: Any
) -> Backbone:
    """The ResNet whose tensors stand below `prefix`; errors as in `Layout.build`, arguments as in `fit`."""
    found = tensors(state)
    backbone = Backbone(resnet_name(under(found, prefix), family), **normalisation)
    backbone.model.load_state_dict(fit(backbone.model, found, lambda n: prefix + n, family, left_out=left_out))
    return backbone


def guessed_normalisation(backbone: Backbone) -> dict[str, str]:
    """What `guessed` of a family says where mean and std are ImageNet's for want of a better one."""
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {key: f"ImageNet's {key}" for key, value in usual.items() if getattr(backbone, key) == value}
