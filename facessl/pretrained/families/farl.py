"""Checkpoints of FaRL (github.com/FacePerceiver/FaRL): CLIP's names, the image tower below `visual.`.

Bare CLIP checkpoints under OpenAI's names are read as well; CLIP's activation, QuickGELU, is assumed.
"""

from typing import Any

from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.pretrained.families import base
from facessl.views.normalize import CLIP_MEAN, CLIP_STD

FAMILY = "FaRL"
_rename = weights.renamer(
    (
        ("patch_embed.proj.", "visual.conv1."),
        ("cls_token", "visual.class_embedding"),
        ("pos_embed", "visual.positional_embedding"),
        ("norm_pre.", "visual.ln_pre."),
        ("norm.", "visual.ln_post."),
        ("blocks.", "visual.transformer.resblocks."),
    ),
    (
        (".norm1.", ".ln_1."),
        (".norm2.", ".ln_2."),
        (".attn.qkv.", ".attn.in_proj_"),
        (".attn.proj.", ".attn.out_proj."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
    ),
)
_BLOCK = r"resblocks\.\d+\.(attn\.(in_proj_|out_proj\.)|ln_[12]\.|mlp\.c_(fc|proj)\.)(weight|bias)$"
#: The projection to the text's space, the head of the masked image modeling, and the text tower.
LEFT_OUT = (
    rf"visual\.(proj$|mask_token$|lm_transformer\.{_BLOCK}|(ln_lm|lm_head)\.(weight|bias)$)"
    rf"|transformer\.{_BLOCK}|token_embedding\.weight$|positional_embedding$|ln_final\.(weight|bias)$"
    r"|text_projection$|logit_scale$|input_resolution$|context_length$|vocab_size$"
)


def matches(state: dict[str, Any]) -> bool:
    """Whether `state`, a loaded checkpoint, has CLIP's ViT."""
    return weights.begins(state, r"visual\.transformer\.resblocks\.")


def build_backbone(state: dict[str, Any]) -> Backbone:
    """The image tower up to its last norm, with CLIP's normalization. CheckpointError names tensors that do not fit."""
    tensors = weights.tensors(state)
    backbone = base.build_vit(
        tensors,
        FAMILY,
        patch="visual.conv1.weight",
        positions="visual.positional_embedding",
        blocks="visual.transformer.resblocks.",
        name="vit_base_patch16_clip_quickgelu_224",
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )
    backbone.model.load_state_dict(weights.fit(backbone.model, tensors, _rename, FAMILY, left_out=LEFT_OUT))
    return backbone
