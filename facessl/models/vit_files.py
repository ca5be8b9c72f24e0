"""What a file of a ViT under timm's names tells of the network in it, and what has to be guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from facessl.models.layers.positions import sincos_positions

#: timm's plain ViTs: channels, blocks, heads.
SIZES = {
    **{"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)},
    **{"large": (1024, 24, 16), "huge": (1280, 32, 16)},
}
#: Larger ViTs keep 16 heads.
SIXTEEN_HEADS = (1152, 1280, 1408, 1664)
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
    sizes = Counter(v.shape[0] for n, v in found.items() if n.startswith(blocks) and n.endswith(".mlp.fc1.bias"))
    second = [v for n, v in found.items() if n.startswith(blocks) and n.endswith(".mlp.fc2.weight") and v.ndim == 2]
    sizes += Counter(v.shape[1] for v in second)
    if not sizes:
        return 4.0
    hidden = sizes.most_common(1)[0][0]
    # timm makes int(width * ratio) channels: half a channel more where the quotient is rounded down.
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def network(
    *, width: int, depth: int, heads: int, patch: int, ratio: float = 4.0, name: str | None = None
) -> tuple[str, dict[str, Any]]:
    """timm's name of a ViT and the options in which it differs from that one: `name`, a ViT-B/16, or by default the
    plain ViT of this width and depth, else ViT-B/16. `patch` is in pixels, `ratio` that of the MLPs."""
    size, side = "base", 16
    named = next((s for s, (w, d, _) in SIZES.items() if (w, d) == (width, depth)), None)
    if name is None and named is not None:
        size, side = named, next(p for p in (patch, 16, 14) if timm.is_model(f"vit_{named}_patch{p}_224"))
    name = name or f"vit_{size}_patch{side}_224"
    base = dict(zip(("embed_dim", "depth", "num_heads"), SIZES[size], strict=True))
    wanted = {"embed_dim": width, "depth": depth, "num_heads": heads}
    options: dict[str, Any] = {} if patch == side else {"patch_size": patch}
    options |= {key: value for key, value in wanted.items() if value != base[key]}
    return name, options if ratio == 4 else options | {"mlp_ratio": ratio}
