"""Checkpoints of the released FRA (github.com/zaczgao/Facial_Region_Awareness) as `FRA(variant="official")`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from facessl.core.errors import CheckpointError
from facessl.methods.base import Method
from facessl.methods.fra import FRA
from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base

FAMILY = "FRA"
_NECK = (
    ("prototype", "proto"),
    ("projector.layers.", "proj.mlp."),
    ("local_projector.layers.", "proj_pixel.mlp."),
    ("region_projector.layers.", "proj_obj.mlp."),
    ("decoder.project.", "proj_attn.input_proj."),
    ("decoder.queries.", "proj_attn.query_embed."),
    ("decoder.mlp.0.", "proj_attn.mask_embed.layers.0."),
    ("decoder.mlp.2.", "proj_attn.mask_embed.layers.1."),
    ("decoder.mlp.4.", "proj_attn.mask_embed.layers.2."),
    ("decoder.norm.", "proj_attn.transformer.decoder.norm."),
    ("decoder.layers.", "proj_attn.transformer.decoder.layers."),
)
#: From the names of this library to the released ones, without DistributedDataParallel's `module.`.
rename = weights.renamer(
    (
        ("backbone.model.", "online_net.backbone."),
        ("target_backbone.model.", "target_net.backbone."),
        *((f"heads.{a}", f"online_net.neck.{b}") for a, b in _NECK),
        *((f"target_heads.{a}", f"target_net.neck.{b}") for a, b in _NECK),
        ("predictor.layers.", "predictor.mlp."),
        ("local_predictor.layers.", "predictor_obj.mlp."),
    ),
    ((".self_attention.", ".self_attn."), (".cross_attention.", ".multihead_attn.")),
)
_LAYERS = "online_net.neck.proj_attn.transformer.decoder.layers."


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, is one of the released FRA (with or without its outer dictionary)."""
    return weights.begins(state, r"online_net\.neck\.proj_attn\.")


def infer(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Backbone (timm's name) and keywords of `FRA` from the shapes of a checkpoint's tensors.

    The number of attention heads leaves no trace in a shape: 8. CheckpointError: a backbone that is not a
    ResNet-18/34/50/101/152, or a part of FRA that is missing.
    """
    name = weights.resnet_name(weights.under(tensors, "online_net.backbone."), FAMILY)
    queries = weights.shape_of(tensors, "online_net.neck.proj_attn.query_embed.weight", FAMILY, 2)
    return name, {
        "variant": "official",
        "num_regions": queries[0],
        "decoder_width": queries[1],
        "decoder_layers": len({n.removeprefix(_LAYERS).split(".")[0] for n in tensors if n.startswith(_LAYERS)}),
        "decoder_feed_forward": weights.shape_of(tensors, f"{_LAYERS}0.linear1.weight", FAMILY, 2)[0],
        "hidden": weights.shape_of(tensors, "online_net.neck.proj.mlp.0.weight", FAMILY, 3)[0],
        "dim": weights.shape_of(tensors, "online_net.neck.proj.mlp.3.weight", FAMILY, 3)[0],
    }


def _fresh(tensors: Mapping[str, Tensor]) -> Method:
    name, keywords = infer(tensors)
    return FRA(Backbone(name, mean=FRA.mean, std=FRA.std), **keywords)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of the checkpoint. Where the map has as many channels as the decoder, the release has no input projection
    between them: here it is the identity."""
    tensors = weights.tensors(state)
    for net in ("online_net", "target_net"):
        neck = weights.under(tensors, f"{net}.neck.")
        queries, pixel = (
            neck.get(n, torch.empty(0)) for n in ("proj_attn.query_embed.weight", "proj_pixel.mlp.0.weight")
        )
        width = tuple(queries.shape[1:2])
        if width and width == tuple(pixel.shape[1:2]) and not weights.under(neck, "proj_attn.input_proj."):
            project = f"{net}.neck.proj_attn.input_proj"
            tensors |= {f"{project}.weight": torch.eye(*width), f"{project}.bias": torch.zeros(width)}
    if "center" in tensors and bool(tensors["center"].any()):
        raise CheckpointError("the teacher's center is not zero: this is not the released training code's output")
    return tensors


#: `FRA(variant="official")`.
_layout = base.Layout(FAMILY, _fresh, rename, fit_options=base.FRA_ADDS, read=_tensors)
build, build_backbone = _layout.build, _layout.build_backbone
