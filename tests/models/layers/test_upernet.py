"""Pyramids of backbones and UPerNet on them."""

import pytest
import torch
from torch.nn import functional as F

from facessl.core.errors import ConfigError
from facessl.models.backbone import Backbone
from facessl.models.layers.sync_batch_norm import convert_sync_batchnorm
from facessl.models.layers.upernet import UPerNet, adaptor


@pytest.mark.parametrize(
    ("name", "options", "size", "strides", "sides"),
    [
        ("resnet10t", {}, 100, [4, 8, 16, 32], [25, 13, 7, 4]),
        ("resnet10t", {"output_stride": 16}, 96, [4, 8, 16, 16], [24, 12, 6, 6]),
        ("convnext_atto", {}, 96, [4, 8, 16, 32], [24, 12, 6, 3]),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24}, 224, [4, 8, 16, 32], [56, 28, 14, 7]),
        ("test_vit", {}, 96, [16] * 4, [6] * 4),
    ],
)
def test_pyramid_fits_what_it_declares_and_upernet_takes_it(name, options, size, strides, sides):
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=size, **options).to(memory_format=torch.channels_last)
    head = UPerNet(backbone.pyramid_channels, backbone.pyramid_strides, width=16, out_channels=5)
    x = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone.forward_pyramid(x)
        out = head(maps)
    assert backbone.pyramid_strides == strides
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, s, s) for c, s in zip(backbone.pyramid_channels, sides, strict=True)
    ]
    assert out.shape == (2, 5, sides[0] if strides[0] == 4 else 24, sides[0] if strides[0] == 4 else 24)
    out.float().square().mean().backward()
    missing = [n for n, p in (*backbone.named_parameters(), *head.named_parameters()) if p.grad is None]
    assert all(".norm." in n or n.startswith("model.norm") for n in missing), missing  # only norms after the last map
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_vit_blocks_are_farls():
    backbone = Backbone("vit_tiny_patch16_224", image_size=32, embed_dim=12, num_heads=2).eval()
    seen = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: seen.append(out)) for b in backbone.model.blocks]
    maps = backbone.forward_pyramid(torch.randn(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    for index, got in zip((3, 5, 7, 11), maps, strict=True):
        tokens = seen[index][:, 1:]  # without the class token
        torch.testing.assert_close(got, tokens.transpose(1, 2).reshape(1, 12, 2, 2))


def test_model_without_four_maps_is_refused():
    with pytest.raises(ConfigError, match="no four feature maps"):
        _ = Backbone("levit_128s", image_size=224).pyramid_strides


@pytest.mark.parametrize(("doublings", "side"), [(2, 24), (1, 12), (0, 6), (-1, 3)])
def test_adaptor_changes_the_side(doublings, side):
    assert adaptor(4, doublings)(torch.randn(2, 4, 6, 6)).shape == (2, 4, side, side)


def test_upernet_is_its_description():
    """Every step written out with the module's weights, in evaluation mode."""
    torch.manual_seed(0)
    head = UPerNet([3, 4, 5, 6], [4, 8, 16, 32], width=8, out_channels=2).double().eval()
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    maps = [torch.randn(2, c, s, s, dtype=torch.float64) for c, s in ((3, 16), (4, 8), (5, 4), (6, 2))]
    state = head.state_dict()

    def block(name, x):
        weight = state[f"neck.{name}.0.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        mean, var, gain, shift = (
            state[f"neck.{name}.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        scaled = (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
        return (scaled * gain.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).relu()

    def up(x, like):
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)

    pooled = [
        up(block(f"top.branches.{i}", F.adaptive_avg_pool2d(maps[3], s)), maps[3]) for i, s in enumerate((1, 2, 3, 6))
    ]
    p3 = block("top.merge", torch.cat([maps[3], *pooled], 1))
    p2 = block("laterals.2", maps[2]) + up(p3, maps[2])
    p1 = block("laterals.1", maps[1]) + up(p2, maps[1])
    p0 = block("laterals.0", maps[0]) + up(p1, maps[0])
    levels = [block("smooth.0", p0), block("smooth.1", p1), block("smooth.2", p2), p3]
    fused = block("fuse", torch.cat([up(x, maps[0]) for x in levels], 1))
    expected = F.conv2d(fused, state["classifier.weight"], state["classifier.bias"])
    torch.testing.assert_close(head(maps), expected)
    torch.testing.assert_close(convert_sync_batchnorm(head)(maps), expected)
