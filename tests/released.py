"""Checkpoints as the authors' code names them, at small sizes: every tensor holds one number of its own."""

import itertools
from collections.abc import Callable, Mapping

import timm
import torch
import torchvision
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]
NORM = ("weight", "bias", "running_mean", "running_var")


def shapes(module: nn.Module, prefix: str = "", without: str = "-") -> Shapes:
    return {prefix + n: tuple(v.shape) for n, v in module.state_dict().items() if not n.startswith(without)}


def resnet(prefix: str = "", without: str = "fc.") -> Shapes:
    with torch.device("meta"):
        return shapes(torchvision.models.resnet18(), prefix, without)


def vit(prefix: str = "", **options: int) -> Shapes:
    sizes = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 32, "num_classes": 0, **options}
    with torch.device("meta"):
        return shapes(timm.create_model("vit_base_patch16_224", **sizes), prefix)


def norm(prefix: str, width: int, affine: bool = True) -> Shapes:
    names = NORM if affine else NORM[2:]
    return {f"{prefix}.{n}": (width,) for n in names} | {f"{prefix}.num_batches_tracked": ()}


def mlp(prefix: str, sizes: tuple[int, int, int], extra: tuple[int, ...] = ()) -> Shapes:
    """Linear (or 1x1 convolution), batch norm, ReLU, linear; no biases."""
    first, hidden, out = sizes
    found: Shapes = {f"{prefix}.0.weight": (hidden, first, *extra), f"{prefix}.3.weight": (out, hidden, *extra)}
    return found | norm(f"{prefix}.1", hidden)


def linear(prefix: str, first: int, out: int) -> Shapes:
    return {f"{prefix}.weight": (out, first), f"{prefix}.bias": (out,)}


def fra() -> Shapes:
    found: Shapes = {"center": (1, 8)} | resnet("encoder_q.") | byol_nets("proj", "proj_pixel", "proj_obj")
    for neck in ("online_net.neck", "target_net.neck"):
        attention = f"{neck}.proj_attn"
        found |= {f"{neck}.proto": (8, 16), f"{attention}.query_embed.weight": (8, 32)}
        found |= {f"{attention}.input_proj.weight": (32, 512, 1, 1), f"{attention}.input_proj.bias": (32,)}
        for i in range(3):
            found |= linear(f"{attention}.mask_embed.layers.{i}", 32, 16 if i == 2 else 32)
        decoder = f"{attention}.transformer.decoder"
        found |= {f"{decoder}.norm.weight": (32,), f"{decoder}.norm.bias": (32,)}
        for i in range(2):
            layer = f"{decoder}.layers.{i}"
            for name in ("self_attn", "multihead_attn"):
                found |= {f"{layer}.{name}.in_proj_weight": (96, 32), f"{layer}.{name}.in_proj_bias": (96,)}
                found |= linear(f"{layer}.{name}.out_proj", 32, 32)
            found |= linear(f"{layer}.linear1", 32, 12) | linear(f"{layer}.linear2", 12, 32)
            for k in (1, 2, 3):
                found |= {f"{layer}.norm{k}.weight": (32,), f"{layer}.norm{k}.bias": (32,)}
    return found


def lewel() -> Shapes:
    return byol_nets("proj", "proj_obj")


def byol_nets(*heads: str) -> Shapes:
    """Online and target network of FRA or LEWEL with these projectors, and the predictors."""
    found = mlp("predictor.mlp", (16, 24, 16), (1,)) | mlp("predictor_obj.mlp", (16, 24, 16), (1,))
    for net in ("online_net", "target_net"):
        found |= resnet(f"{net}.backbone.")
        for name in heads:
            found |= mlp(f"{net}.neck.{name}.mlp", (512, 24, 16), (1,))
    return found


def mcf() -> Shapes:
    found: Shapes = {
        "mask_token": (1, 1, 32),
        "decoder_pos_embed": (1, 17, 32),
        "perceptual_loss.model.norm.bias": (5,),
    }
    for net in ("online_encoder", "target_encoder"):
        found |= vit(f"{net}.") | mlp(f"{net}.fc", (64, 24, 16)) | norm(f"{net}.fc.4", 16, affine=False)
    found |= mlp("predictor", (16, 24, 16)) | linear("decoder_embed", 64, 32) | linear("decoder_pred", 32, 8 * 8 * 3)
    found |= {"decoder_norm.weight": (32,), "decoder_norm.bias": (32,)}
    blocks = vit(embed_dim=32, depth=1)
    return found | {f"decoder_{name}": shape for name, shape in blocks.items() if name.startswith("blocks.")}


def tower(prefix: str, width: int) -> Shapes:
    """One block of CLIP's transformers."""
    block = f"{prefix}transformer.resblocks.0"
    found: Shapes = {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
    found |= linear(f"{block}.attn.out_proj", width, width) | linear(f"{block}.mlp.c_fc", width, 4 * width)
    found |= linear(f"{block}.mlp.c_proj", 4 * width, width)
    return found | {f"{block}.ln_{k}.{part}": (width,) for k in (1, 2) for part in ("weight", "bias")}


def farl() -> Shapes:
    found: Shapes = {"visual.conv1.weight": (64, 3, 8, 8), "visual.class_embedding": (64,), "visual.proj": (64, 16)}
    found |= {"visual.positional_embedding": (17, 64), "positional_embedding": (77, 16), "logit_scale": ()}
    found |= {f"visual.ln_{k}.{part}": (64,) for k in ("pre", "post") for part in ("weight", "bias")}
    found |= {"text_projection": (16, 16), "token_embedding.weight": (30, 16), "ln_final.weight": (16,)}
    return found | {"ln_final.bias": (16,)} | tower("visual.", 64) | tower("", 16)


def bulat() -> Shapes:
    head = mlp("projection_net.net", (512, 24, 16)) | {"projection_net.net.0.bias": (24,), "prototypes.weight": (9, 16)}
    return resnet("base_net.") | head


def conv(prefix: str, first: int, out: int, side: int = 3) -> Shapes:
    return {f"{prefix}.weight": (out, first, side, side), f"{prefix}.bias": (out,)}


def pcl() -> Shapes:
    """Its one size."""
    found = conv("encoder.conv1.0", 3, 64, 7) | conv("encoder.conv1.2", 64, 64)
    for layer, first, width in (("layer1", 64, 64), ("layer2_1", 64, 128)):
        found |= conv(f"encoder.{layer}.0", first, width) | conv(f"encoder.{layer}.3", width, width)
        for part in ("g", "theta", "phi"):
            found |= conv(f"encoder.{layer}.2.{part}", width, width, 1)
    for block in (1, 2):
        for k in (1, 2):
            found |= conv(f"encoder.resblock{block}.conv{k}", 128, 128)
    for layer, middle in (("layer2_2", 128), ("layer3_1", 256), ("layer3_2_exp", 128), ("layer3_2_pose", 128)):
        found |= conv(f"encoder.{layer}.0", 128, middle) | conv(f"encoder.{layer}.2", middle, 128)
    for head in ("exp_fc", "pose_fc"):
        found |= linear(f"{head}.0", 2048, 2048) | linear(f"{head}.2", 2048, 512) | norm(f"{head}.3", 512)
    found |= linear("decoder.fc", 2048, 512)
    widths = [512, 256, 256, 256, 256, 128, 3]
    for i, (first, width) in enumerate(itertools.pairwise(widths)):
        found |= conv(f"decoder.model.{2 + 4 * i}", first, width)
        if width != 3:
            found |= norm(f"decoder.model.{3 + 4 * i}", width)
    return found


def moco_vit() -> Shapes:
    found: Shapes = mlp("predictor", (16, 24, 16)) | norm("predictor.4", 16, affine=False)
    for net in ("base_encoder", "momentum_encoder"):
        found |= vit(f"{net}.", embed_dim=48, num_heads=12) | mlp(f"{net}.head", (48, 24, 24))
        found |= (
            norm(f"{net}.head.4", 24) | {f"{net}.head.6.weight": (16, 24)} | norm(f"{net}.head.7", 16, affine=False)
        )
    return found


def moco_resnet() -> Shapes:
    found: Shapes = mlp("predictor", (16, 24, 16)) | norm("predictor.4", 16, affine=False)
    for net in ("base_encoder", "momentum_encoder"):
        found |= resnet(f"{net}.") | mlp(f"{net}.fc", (512, 24, 16)) | norm(f"{net}.fc.4", 16, affine=False)
    return found


def torchvision_resnet() -> Shapes:
    return resnet(without="-")


def timm_vit() -> Shapes:
    return vit() | linear("head", 64, 10)


#: Family and layout -> its names and shapes.
MADE: dict[str, Callable[[], Shapes]] = {
    "fra": fra, "lewel": lewel, "mcf": mcf, "farl": farl, "bulat": bulat, "pcl": pcl, "mocov3 vit": moco_vit,
    "mocov3 resnet": moco_resnet, "torchvision": torchvision_resnet, "timm": timm_vit,
}  # fmt: skip


def filled(named: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A number of its own for every tensor (FRA's second copy has that of the first); nearly no memory."""
    order = {name: i for i, name in enumerate(named)}
    found = {}
    for name, shape in named.items():
        twin = name.replace("encoder_q.", "online_net.backbone.")
        value = 0.0 if name == "center" else 1 + order[twin] / len(order)
        integer = name.endswith("num_batches_tracked")
        found[name] = torch.tensor(order[twin] if integer else value).expand(shape)
    return found


_NECK = {
    "projector.layers.": "proj.mlp.",
    "local_projector.layers.": "proj_pixel.mlp.",
    "region_projector.layers.": "proj_obj.mlp.",
    "prototype": "proto",
    "decoder.project.": "proj_attn.input_proj.",
    "decoder.queries.": "proj_attn.query_embed.",
    "decoder.norm.": "proj_attn.transformer.decoder.norm.",
    **{f"decoder.mlp.{2 * i}.": f"proj_attn.mask_embed.layers.{i}." for i in range(3)},
    **{
        f"decoder.layers.{i}.{ours}.": f"proj_attn.transformer.decoder.layers.{i}.{theirs}."
        for i in range(2)
        for ours, theirs in (
            ("self_attention", "self_attn"),
            ("cross_attention", "multihead_attn"),
            *((name, name) for name in ("linear1", "linear2", "norm1", "norm2", "norm3")),
        )
    },
}
_SLOTS = {"projector.layers.": "proj.mlp.", "slot_projector.layers.": "proj_obj.mlp."}
_NETWORKS = {"backbone.model.": "online_net.backbone.", "target_backbone.model.": "target_net.backbone."}
#: Layout -> beginnings of this package's names and of the authors' names of the same tensors, which end alike.
METHODS = {
    "fra": _NETWORKS
    | {f"heads.{ours}": f"online_net.neck.{theirs}" for ours, theirs in _NECK.items()}
    | {f"target_heads.{ours}": f"target_net.neck.{theirs}" for ours, theirs in _NECK.items()}
    | {"predictor.layers.": "predictor.mlp.", "local_predictor.layers.": "predictor_obj.mlp."},
    "lewel": _NETWORKS
    | {f"heads.{ours}": f"online_net.neck.{theirs}" for ours, theirs in _SLOTS.items()}
    | {f"target_heads.{ours}": f"target_net.neck.{theirs}" for ours, theirs in _SLOTS.items()}
    | {"predictor.layers.": "predictor.mlp.", "slot_predictor.layers.": "predictor_obj.mlp."},
    "mcf": {
        "backbone.model.": "online_encoder.",
        "target_backbone.model.": "target_encoder.",
        "projector.": "online_encoder.fc.",
        "target_projector.": "target_encoder.fc.",
        "predictor.": "predictor.",
        "decoder.mask_token": "mask_token",
        "decoder.embed.": "decoder_embed.",
        "decoder.blocks.": "decoder_blocks.",
        "decoder.norm.": "decoder_norm.",
        "decoder.predict.": "decoder_pred.",
    },
    "pcl": {
        "backbone.model.": "encoder.",
        "face_branch.layers.": "encoder.layer3_2_exp.",  # the release calls the face-aware feature exp
        "pose_branch.layers.": "encoder.layer3_2_pose.",
        "face_head.": "exp_fc.",
        "pose_head.": "pose_fc.",
        "decoder.fc.": "decoder.fc.",
        **{f"decoder.convs.{i}.": f"decoder.model.{2 + 4 * i}." for i in range(6)},
        **{f"decoder.norms.{i}.": f"decoder.model.{3 + 4 * i}." for i in range(5)},
    },
}
