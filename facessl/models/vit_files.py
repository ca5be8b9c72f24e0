"""What a file of a ViT under timm's names tells of the network in it, and what has to be guessed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from facessl.core.errors import CheckpointError, ConfigError
from facessl.models.backbone import Backbone
from facessl.models.layers.positions import sincos_positions
from facessl.models.weights import MLP, fit, shape_of, under

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
#: What stands before the names of the online network in a file of MoCo v3's pre-training.
MOCO_PREFIX = "base_encoder."
MOCO_LEFT_OUT = rf"base_encoder\.(head|fc)\.{MLP}|momentum_encoder\.|predictor\.{MLP}"
#: In a bare file: the classifier, or the projector.
_MOCO_LEFT_OUT_BARE = rf"(head|fc)\.((weight|bias)$|{MLP})"
_PLAIN_LEFT_OUT = (
    r"(head|fc)\.(weight|bias)$|mask_token$|decoder_pos_embed$|decoder_(embed|norm|pred)\.(weight|bias)$"
    r"|decoder_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)$"
)
#: Names of networks in the authors' code of MoCo v3, as its files have them under `arch`; timm's are longer.
MOCO_NAMES = ("vit_small", "vit_base")


def usual_heads(width: int) -> int:
    """Attention heads of a ViT of this width: one for every 64 channels, but 16 in ViT-H and its like."""
    return 16 if width in SIXTEEN_HEADS else max(1, width // 64)


def moco_heads(width: int) -> int:
    """Attention heads of MoCo v3's ViTs: 12 up to ViT-B (also in ViT-S), then as usual."""
    return 12 if width <= 768 else usual_heads(width)


def is_moco(state: Mapping[str, Any], found: Mapping[str, Tensor]) -> bool:
    """Whether a file and its tensors (without prefixes) are of MoCo v3: a linear probe of its authors' code, or a
    network taken out of a checkpoint.

    Either the file says so under `arch`, or its position table is MoCo v3's: sines and cosines like those of MAE, but
    the first half of the channels encodes the row (the order of `meshgrid` there), and zeros for the class token.
    """
    if not any(name.startswith("blocks.") and ".attn.qkv." in name for name in found):
        return False
    if isinstance(state.get("state_dict"), Mapping) and state.get("arch") in MOCO_NAMES:
        return True
    table = found.get("pos_embed")
    if table is None or table.ndim != 3 or table.shape[0] != 1 or table.shape[-1] % 4:
        return False
    side = round((table.shape[1] - 1) ** 0.5)
    if side < 2 or side * side != table.shape[1] - 1:
        return False
    columns, rows = sincos_positions(side, side, table.shape[-1]).chunk(2, dim=1)
    wanted = torch.cat([torch.zeros(1, table.shape[-1]), torch.cat([rows, columns], dim=1).float()])
    return torch.allclose(table[0].float(), wanted, atol=1e-3)


def mlp_ratio(found: Mapping[str, Tensor], width: int, blocks: str = "blocks.") -> float:
    """Hidden over outer channels of the blocks' MLPs, 4 where they do not say; most blocks decide."""
    own = under(found, blocks).items()
    sizes = Counter(v.shape[0] for n, v in own if n.endswith(".mlp.fc1.bias"))
    sizes += Counter(v.shape[1] for n, v in own if n.endswith(".mlp.fc2.weight") and v.ndim == 2)
    if not sizes:
        return 4.0
    hidden = sizes.most_common(1)[0][0]
    # timm makes int(width * ratio) channels: half a channel more where the quotient is rounded down.
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def build_vit(
    found: Mapping[str, Tensor],
    family: str,
    *,
    patch: str = "patch_embed.proj.weight",
    positions: str = "pos_embed",
    blocks: str = "blocks.",
    heads: Callable[[int], int] = usual_heads,
    name: str | None = None,
    **normalisation: Any,
) -> Backbone:
    """The ViT with a class token whose sizes tensors have, with weights of its own.

    Args:
        found: its tensors.
        family: for the sentence.
        patch, positions: names of the patch embedding (C, 3, p, p) and of the position table (..., 1 + h * w, C).
        blocks: what stands before a block's number.
        heads: attention heads of a ViT of a width, as they leave no trace in a shape.
        name: a ViT-B/16 of timm to be taken; None: the plain ViT of this width and depth, else ViT-B/16.
        normalisation: `mean` and `std`; ImageNet's where they are left out.

    Raises:
        CheckpointError: a missing tensor, a table of no square, or sizes that make no ViT.
    """
    width, _, side, _ = shape_of(found, patch, family, 4)
    if positions not in found:
        raise CheckpointError(f"this checkpoint of {family} has no tensor {positions}")
    shape = tuple(found[positions].shape)
    grid = math.isqrt(max(shape[-2] - 1, 0)) if len(shape) > 1 else 0
    if grid < 1 or grid * grid != shape[-2] - 1:
        raise CheckpointError(f"tensor {positions} of this checkpoint of {family} is of another shape: {shape}")
    depth = len({n.removeprefix(blocks).split(".")[0] for n in found if n.startswith(blocks)})
    size, usual_side = "base", 16
    if name is None and (known := [s for s, (w, d, _) in SIZES.items() if (w, d) == (width, depth)]):
        size = known[0]
        usual_side = next(p for p in (side, 16, 14) if timm.is_model(f"vit_{size}_patch{p}_224"))
    usual = (usual_side, *SIZES[size], 4)
    own: tuple[Any, ...] = (side, width, depth, heads(width), mlp_ratio(found, width, blocks))
    keys = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    options = {key: value for key, value, other in zip(keys, own, usual, strict=True) if value != other}
    name = name or f"vit_{size}_patch{usual_side}_224"
    try:
        return Backbone(name, image_size=grid * side, **normalisation, **options)
    except ConfigError as error:
        raise CheckpointError(f"the shapes of this checkpoint of {family} make no ViT: {error}") from None


def plain_vit(found: Mapping[str, Tensor], family: str = "a timm ViT") -> Backbone:
    """A ViT under timm's names, without its classifier or MAE's decoder; the usual heads for its width are assumed.

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; they are named.
    """
    backbone = build_vit(found, family)
    backbone.model.load_state_dict(fit(backbone.model, found, str, family, left_out=_PLAIN_LEFT_OUT))
    return backbone


def moco_vit(found: Mapping[str, Tensor], family: str = "MoCo v3") -> Backbone:
    """A ViT of MoCo v3, out of the file of a pre-training (its online network) or bare; errors as in `plain_vit`."""
    prefix = MOCO_PREFIX if any(name.startswith(MOCO_PREFIX) for name in found) else ""
    backbone = build_vit(under(found, prefix), family, heads=moco_heads)
    left_out = MOCO_LEFT_OUT if prefix else _MOCO_LEFT_OUT_BARE
    fitted = fit(backbone.model, found, lambda name: prefix + name, family, left_out=left_out)
    backbone.model.load_state_dict(fitted)
    return backbone
