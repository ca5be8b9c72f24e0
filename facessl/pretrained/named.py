"""Weights of any timm model, under timm's names, that the user names: the file alone does not say which it is."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from torch import Tensor

from facessl.core.errors import ConfigError, UnknownName
from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.views.normalize import IMAGENET_MEAN, IMAGENET_STD


def build_backbone(state: dict[str, Any], name: str) -> Backbone:
    """The model without its classifier, with the normalisation of timm's own weights of that name.

    Args:
        state: a loaded file: names as timm has them, bare or below `state_dict` or `model`, with or without
            the prefixes of `weights.tensors` and `weights.networks`.
        name: timm's name, with a tag (`vit_small_patch16_224.augreg_in21k`) or without: those of timm's first weights.

    Raises:
        UnknownName: timm has no such model or tag; the nearest name is given.
        ConfigError: the library cannot use that model.
        CheckpointError: tensors that are missing, unknown or of another shape; they are named.
    """
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        raise UnknownName(
            "timm model", name, difflib.get_close_matches(plain, timm.list_models(), 8, 0.4) or ["resnet50"]
        )
    if tag and name not in (tagged := timm.list_pretrained(f"{plain}.*")):
        raise UnknownName("timm model", name, tagged or [plain])
    with torch.device("meta"):
        whole = _made(name, num_classes=2)
        bare = _made(name, num_classes=0)
    classifier = whole.state_dict().keys() - bare.state_dict().keys()
    parts = [weights.tensors(part) for _, part in weights.networks(state)]
    found = next((part for part in parts if part.keys() & bare.state_dict().keys()), parts[0])
    settings = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "input_size": (3, 224, 224), **(bare.pretrained_cfg or {})}
    size = _image_size(bare, found) or settings["input_size"][-1]
    backbone = Backbone(plain, image_size=size, mean=settings["mean"], std=settings["std"])
    kept = {n: v for n, v in found.items() if n not in classifier}
    backbone.model.load_state_dict(weights.fit(backbone.model, kept, lambda n: n, f"timm's {plain}"))
    return backbone


def _made(name: str, **options: Any) -> Any:
    try:
        return timm.create_model(name, **options)
    except (TypeError, AssertionError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"timm's {name} cannot be built without a classifier: {error}") from None


def _image_size(model: Any, found: dict[str, Tensor]) -> int | None:
    """Side in pixels of the position table in the file; None for a network without one, or of no square."""
    embed: Any = getattr(model, "patch_embed", None)
    own, table = getattr(model, "pos_embed", None), found.get("pos_embed")
    grid = getattr(embed, "grid_size", None)
    if grid is None or own is None or table is None or (own.ndim, table.ndim) != (3, 3):
        return None
    cells = table.shape[1] - (own.shape[1] - grid[0] * grid[1])  # without the class token's place, where it has one
    side = round(max(cells, 0) ** 0.5)
    return side * embed.patch_size[0] if side and side * side == cells else None
