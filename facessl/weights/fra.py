"""Checkpoints of the released FRA (github.com/zaczgao/Facial_Region_Awareness) as `FRA(variant="official")`."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from facessl.backbones import Backbone
from facessl.errors import CheckpointError
from facessl.methods.fra import FRA

#: (bottleneck, blocks per stage) -> timm name.
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}

#: Parts of a name in the released code and in ours, tried in this order; a name must be changed by exactly one.
PREFIXES = (
    ("online_net.backbone.", "backbone.model."),
    ("target_net.backbone.", "target_backbone.model."),
    ("online_net.neck.", "heads."),
    ("target_net.neck.", "target_heads."),
    ("predictor.mlp.", "predictor.layers."),
    ("predictor_obj.mlp.", "local_predictor.layers."),
)
NECK = (
    (r"^proto$", "prototype"),
    (r"^proj\.mlp\.", "projector.layers."),
    (r"^proj_pixel\.mlp\.", "local_projector.layers."),
    (r"^proj_obj\.mlp\.", "region_projector.layers."),
    (r"^proj_attn\.input_proj\.", "decoder.project."),
    (r"^proj_attn\.query_embed\.", "decoder.queries."),
    (r"^proj_attn\.mask_embed\.layers\.0\.", "decoder.mlp.0."),
    (r"^proj_attn\.mask_embed\.layers\.1\.", "decoder.mlp.2."),
    (r"^proj_attn\.mask_embed\.layers\.2\.", "decoder.mlp.4."),
    (r"^proj_attn\.transformer\.decoder\.norm\.", "decoder.norm."),
    (r"^proj_attn\.transformer\.decoder\.layers\.(\d+)\.self_attn\.", r"decoder.layers.\1.self_attention."),
    (r"^proj_attn\.transformer\.decoder\.layers\.(\d+)\.multihead_attn\.", r"decoder.layers.\1.cross_attention."),
    (r"^proj_attn\.transformer\.decoder\.layers\.(\d+)\.(linear[12]|norm[123])\.", r"decoder.layers.\1.\2."),
)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, is one of the released FRA (with or without its outer dictionary)."""
    names = _tensors(state)
    return "online_net.neck.proj_attn.query_embed.weight" in names and "online_net.backbone.conv1.weight" in names


def build(state: dict[str, Any]) -> FRA:
    """The whole method with its heads, as `FRA(variant="official")`.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; they are named.
    """
    name, keywords = infer(state)
    method = FRA(_backbone(name), **keywords)
    _load(method, method_state(state))
    return method


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The online backbone with FRA's normalisation; errors as in `build`."""
    backbone = _backbone(infer(state)[0])
    _load(backbone.model, backbone_state(state))
    return backbone


def backbone_state(state: dict[str, Any]) -> dict[str, Tensor]:
    """The online backbone under timm's names, which equal the released ones.

    Raises:
        CheckpointError: it holds no online backbone.
    """
    start = "online_net.backbone."
    found = {name.removeprefix(start): value for name, value in _tensors(state).items() if name.startswith(start)}
    if not found:
        raise CheckpointError(f"no tensor named {start}* in this checkpoint: it is not one of the released FRA")
    return found


def infer(state: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Backbone and method of a checkpoint, told from the shapes of its tensors.

    Returns:
        timm's name of the backbone; keywords of `FRA`. The number of attention heads leaves no trace in a shape: 8.

    Raises:
        CheckpointError: a backbone that is no ResNet-18/34/50/101/152, or a part of FRA that is missing.
    """
    names = _tensors(state)
    blocks = tuple(
        len({n.split(".")[3] for n in names if n.startswith(f"online_net.backbone.layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    bottleneck = "online_net.backbone.layer1.0.conv3.weight" in names
    if (bottleneck, blocks) not in RESNETS:
        raise CheckpointError(
            f"the backbone has {blocks} {'bottleneck' if bottleneck else 'basic'} blocks: "
            f"only {', '.join(RESNETS.values())} can be read"
        )
    try:
        queries = names["online_net.neck.proj_attn.query_embed.weight"].shape
        hidden = names["online_net.neck.proj.mlp.0.weight"].shape[0]
        dim = names["online_net.neck.proj.mlp.3.weight"].shape[0]
        feed_forward = names["online_net.neck.proj_attn.transformer.decoder.layers.0.linear1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"tensor {error} is missing: this checkpoint is not one of the released FRA") from None
    layers = {n.split(".")[6] for n in names if n.startswith("online_net.neck.proj_attn.transformer.decoder.layers.")}
    return RESNETS[bottleneck, blocks], {
        "variant": "official",
        "num_regions": queries[0],
        "decoder_width": queries[1],
        "decoder_layers": len(layers),
        "decoder_feed_forward": feed_forward,
        "hidden": hidden,
        "dim": dim,
    }


def method_state(state: dict[str, Any]) -> dict[str, Tensor]:
    """The whole checkpoint under the names of `FRA(variant="official").state_dict()`.

    `encoder_q.*` repeats the online backbone and `center` is a zero that the released loss subtracts: both are
    checked and left out.

    Raises:
        CheckpointError: tensors without a counterpart (all are named), or a centre that is not zero.
    """
    names = _tensors(state)
    ours: dict[str, Tensor] = {}
    unmatched = []
    for name, value in names.items():
        if name.startswith("encoder_q."):
            twin = names.get("online_net.backbone." + name.removeprefix("encoder_q."))
            if twin is None or not torch.equal(twin, value):
                unmatched.append(name)
        elif name == "center":
            if bool(value.any()):
                raise CheckpointError(
                    "the teacher's centre is not zero: this is not the released training code's output"
                )
        elif (new := _renamed(name)) is None:
            unmatched.append(name)
        else:
            # A 1x1 convolution is a linear layer here.
            pointwise = new.endswith(".weight") and value.ndim > 2 and ".model." not in new
            ours[new] = value.flatten(1) if pointwise else value
    if unmatched:
        raise CheckpointError(f"no counterpart in FRA for {len(unmatched)} tensors: {', '.join(sorted(unmatched))}")
    return ours


def _renamed(name: str) -> str | None:
    for theirs, ours in PREFIXES:
        if not name.startswith(theirs):
            continue
        rest = name.removeprefix(theirs)
        if not theirs.endswith(".neck."):
            return ours + rest
        for pattern, replacement in NECK:
            if re.match(pattern, rest):
                return ours + re.sub(pattern, replacement, rest)
    return None


def _backbone(name: str) -> Backbone:
    return Backbone(name, mean=FRA.mean, std=FRA.std)


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = module.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of this FRA checkpoint are missing, unknown or of another shape: {', '.join(wrong)}"
        )
    module.load_state_dict(tensors)


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors by name, without the outer dictionary and DistributedDataParallel's prefix."""
    inner = state.get("state_dict", state)
    if not isinstance(inner, dict):
        return {}
    return {str(n).removeprefix("module."): v for n, v in inner.items() if isinstance(v, Tensor)}
