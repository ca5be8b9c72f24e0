"""Helpers of the families: whole methods out of a checkpoint, ResNets, and ViTs built from the shapes of tensors."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import timm
from torch import Tensor, nn

from facessl.core.errors import CheckpointError, ConfigError
from facessl.methods.base import Method
from facessl.models.backbone import Backbone
from facessl.models.weights import fit, resnet_name, shape_of, tensors, under
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD

#: Additions of FRA's training code to a checkpoint: a copy of the online backbone, and a center that stays zero.
FRA_ADDS = {"left_out": r"encoder_q\.|center$", "copy": ("encoder_q.", "online_net.backbone.")}

#: timm's plain ViTs: channels, blocks, heads.
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
#: Larger ViTs keep 16 heads.
SIXTEEN_HEADS = (1152, 1280, 1408, 1664)


@dataclass(frozen=True)
class Layout:
    """Reader of a checkpoint of a whole method; a family takes `build` and `build_backbone` from it."""

    family: str  # for sentences
    make: Callable[[Mapping[str, Tensor]], Method]  # a fresh method for the tensors of a checkpoint
    rename: Callable[[str], str]  # from the names of this library to the family's
    fit_options: Mapping[str, Any]  # `left_out`, `own` and `copy` of `facessl.models.weights.fit`
    read: Callable[[Mapping[str, Any]], dict[str, Tensor]] = tensors  # the tensors of a loaded checkpoint

    def build(self, state: Mapping[str, Any]) -> Method:
        """The method of a loaded checkpoint, with its heads. CheckpointError names the tensors that do not fit."""
        weights = self.read(state)
        try:
            method = self.make(weights)
        except ConfigError as error:
            raise CheckpointError(
                f"the shapes of this checkpoint of {self.family} do not go together: {error}"
            ) from None
        module = cast(nn.Module, method)
        fitted = fit(module, weights, self.rename, self.family, **self.fit_options)
        module.load_state_dict(fitted, strict="own" not in self.fit_options)
        return method

    def build_backbone(self, state: Mapping[str, Any]) -> Backbone:
        """The backbone alone; heads and target are compared as well. Errors as in `build`."""
        return self.build(state).backbone


def plain_resnet(
    state: Mapping[str, Any], family: str, prefix: str = "", left_out: str | None = None, **normalization: Any
) -> Backbone:
    """The ResNet whose tensors stand below `prefix`; errors as in `Layout.build`, arguments as in `fit`."""
    weights = tensors(state)
    backbone = Backbone(resnet_name(under(weights, prefix), family), **normalization)
    backbone.model.load_state_dict(fit(backbone.model, weights, lambda n: prefix + n, family, left_out=left_out))
    return backbone


def usual_heads(width: int) -> int:
    """Attention heads of a ViT of this width: one for every 64 channels, but 16 in ViT-H and its like."""
    return 16 if width in SIXTEEN_HEADS else max(1, width // 64)


def _mlp_ratio(weights: Mapping[str, Tensor], width: int, blocks: str = "blocks.") -> float:
    """Hidden over outer channels of the blocks' MLPs, 4 where they do not say; most blocks decide."""
    own = under(weights, blocks).items()
    sizes = Counter(v.shape[0] for n, v in own if n.endswith(".mlp.fc1.bias"))
    sizes += Counter(v.shape[1] for n, v in own if n.endswith(".mlp.fc2.weight") and v.ndim == 2)
    if not sizes:
        return 4.0
    hidden = sizes.most_common(1)[0][0]
    # timm makes int(width * ratio) channels: half a channel more where the quotient is rounded down.
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def build_vit(
    weights: Mapping[str, Tensor],
    family: str,
    *,
    patch: str = "patch_embed.proj.weight",
    positions: str = "pos_embed",
    blocks: str = "blocks.",
    heads: Callable[[int], int] = usual_heads,
    name: str | None = None,
    **normalization: Any,
) -> Backbone:
    """The ViT with a class token whose sizes tensors have, with weights of its own.

    Args:
        patch, positions: names of the patch embedding (C, 3, p, p) and of the position table (..., 1 + h * w, C).
        blocks: prefix of a block's number.
        heads: attention heads of a ViT of a width, as they leave no trace in a shape.
        name: a ViT-B/16 of timm to be taken; None: the plain ViT of this width and depth, else ViT-B/16.
        normalization: `mean` and `std`; ImageNet's if they are left out.

    Raises:
        CheckpointError: a missing tensor, a table of no square, or sizes that make no ViT.
    """
    width, _, side, _ = shape_of(weights, patch, family, 4)
    if positions not in weights:
        raise CheckpointError(f"this checkpoint of {family} has no tensor {positions}")
    shape = tuple(weights[positions].shape)
    grid = math.isqrt(max(shape[-2] - 1, 0)) if len(shape) > 1 else 0
    if grid < 1 or grid * grid != shape[-2] - 1:
        raise CheckpointError(f"tensor {positions} of this checkpoint of {family} is of another shape: {shape}")
    depth = len({n.removeprefix(blocks).split(".")[0] for n in weights if n.startswith(blocks)})
    size, usual_side = "base", 16
    if name is None and (known := [s for s, (w, d, _) in SIZES.items() if (w, d) == (width, depth)]):
        size = known[0]
        usual_side = next(p for p in (side, 16, 14) if timm.is_model(f"vit_{size}_patch{p}_224"))
    usual = (usual_side, *SIZES[size], 4)
    own: tuple[Any, ...] = (side, width, depth, heads(width), _mlp_ratio(weights, width, blocks))
    keys = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    options = {key: value for key, value, other in zip(keys, own, usual, strict=True) if value != other}
    name = name or f"vit_{size}_patch{usual_side}_224"
    try:
        return Backbone(name, image_size=grid * side, **normalization, **options)
    except ConfigError as error:
        raise CheckpointError(f"the shapes of this checkpoint of {family} make no ViT: {error}") from None


def guessed_normalization(backbone: Backbone) -> dict[str, str]:
    """Entries of a family's `guessed` for a mean and std that are assumed to be ImageNet's."""
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {key: f"ImageNet's {key}" for key, value in usual.items() if getattr(backbone, key) == value}
