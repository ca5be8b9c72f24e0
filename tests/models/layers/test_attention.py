"""The attention that a CPU runs in 16 bits."""

import copy

import torch

from facessl.models.backbone import Backbone


def tokens(backbone: Backbone, x: torch.Tensor) -> torch.Tensor:
    return backbone.forward_features(x).float()


def test_sixteen_bits_on_a_cpu_take_the_plain_attention_and_mean_the_same() -> None:
    torch.manual_seed(0)
    backbone = copy.deepcopy(Backbone("vit_tiny_patch16_224", image_size=64))  # a target network is a deep copy
    attention = backbone.model.blocks[0].attn
    x = torch.randn(2, 3, 64, 64)
    exact = tokens(backbone, x)
    assert attention.fused_attn
    with torch.autocast("cpu", torch.bfloat16):
        plain = tokens(backbone, x)
        assert not attention.fused_attn
    assert (plain - exact).norm() / exact.norm() < 0.02
    tokens(backbone, x)
    assert attention.fused_attn  # and back again
