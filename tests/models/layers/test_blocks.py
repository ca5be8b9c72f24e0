"""Heads, decoder, positions, Sinkhorn, EMA and batch norm over ranks, each against its definition."""

import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from facessl.core.distributed import all_reduce_mean, all_reduce_sum, world_size
from facessl.core.errors import ConfigError
from facessl.models.backbone import Backbone
from facessl.models.layers.ema import MomentumUpdate, cosine_momentum, frozen_copy
from facessl.models.layers.heads import MLPHead
from facessl.models.layers.mask_decoder import DecoderLayer, MaskDecoder
from facessl.models.layers.positions import sine_positions
from facessl.models.layers.sinkhorn import sinkhorn
from facessl.models.layers.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3), (5, 8, 2, 3)], ids=["pooled", "set", "map"])
def test_head_is_a_pointwise_convolution(shape):
    torch.manual_seed(0)
    head = MLPHead(8, hidden=12, out_features=4)
    x = torch.randn(shape)
    first, norm, _, last = head.layers
    as_map = x.reshape(5, 8, -1, 1)
    hidden = nn.functional.conv2d(as_map, first.weight[:, :, None, None])
    hidden = nn.functional.batch_norm(hidden, None, None, norm.weight, norm.bias, training=True).relu()
    expected = nn.functional.conv2d(hidden, last.weight[:, :, None, None]).reshape(5, 4, *shape[2:])
    torch.testing.assert_close(head(x), expected)
    assert set(dict(head.named_parameters())) == {f"layers.{n}" for n in ("0.weight", "1.weight", "1.bias", "3.weight")}


def test_heads_and_decoder_start_as_the_released_ones():
    torch.manual_seed(0)
    head = MLPHead(96, hidden=512, out_features=64)
    for linear, channels in ((head.layers[0], 512), (head.layers[3], 64)):
        assert linear.weight.std().item() == pytest.approx((2 / channels) ** 0.5, rel=0.02)
        assert linear.weight.abs().max() > 3 * (2 / channels) ** 0.5  # normal, not uniform
    decoder = MaskDecoder(96, width=256, queries=64, query_std=4.0)
    assert decoder.project.bias.eq(0).all()
    assert decoder.project.weight.abs().max().item() == pytest.approx((3 / 96) ** 0.5, rel=0.01)  # uniform
    assert decoder.project.weight.std().item() == pytest.approx((1 / 96) ** 0.5, rel=0.02)
    assert decoder.queries.weight.std().item() == pytest.approx(4, rel=0.02)


def test_positions_are_detrs():
    cpu = torch.device("cpu")
    expected = []
    for row in range(2):
        for column in range(3):
            expected.append([])
            for cell, cells in ((row + 1, 2), (column + 1, 3)):
                angle = cell / (cells + 1e-6) * 2 * math.pi
                for frequency in (1.0, 10000 ** (2 / 4)):
                    expected[-1] += [math.sin(angle / frequency), math.cos(angle / frequency)]
    # Exact in float64 although torch's default type is float32 here.
    table = sine_positions(2, 3, 8, cpu, torch.float64)
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert torch.equal(sine_positions(2, 3, 8, cpu, torch.float32), table.float())


def test_decoder_layer_without_embeddings_is_torchs():
    torch.manual_seed(0)
    ours = DecoderLayer(16, heads=4, feed_forward=32, dropout=0.0)
    theirs = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    names = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}
    state = {}
    for name, value in ours.state_dict().items():
        part, rest = name.split(".", 1)
        state[f"{names.get(part, part)}.{rest}"] = value
    theirs.load_state_dict(state)
    x, memory = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x, torch.zeros(3, 16), memory, memory), theirs(x, memory))


def test_mask_embeddings_belong_to_their_image():
    torch.manual_seed(0)
    decoder = MaskDecoder(6, queries=3, out_features=5, width=16, heads=2, feed_forward=8).eval()
    x = torch.randn(2, 6, 4, 4)
    both = decoder(x)
    assert both.shape == (2, 3, 5)
    torch.testing.assert_close(both[1:], decoder(x[1:]))
    assert not torch.allclose(both[1:], decoder(x[1:].flip(3)), atol=1e-4)  # it knows where things are


def test_sinkhorn_balances_regions():
    torch.manual_seed(0)
    scores = (3 * torch.randn(40, 4)).exp()
    expected = scores.tolist()
    for _ in range(3):
        for m in range(4):
            mass = sum(row[m] for row in expected)
            for row in expected:
                row[m] /= mass
        expected = [[value / sum(row) for value in row] for row in expected]
    torch.testing.assert_close(sinkhorn(scores, 3), torch.tensor(expected))
    balanced = sinkhorn(scores, 100)
    torch.testing.assert_close(balanced.sum(1), torch.ones(40))
    torch.testing.assert_close(balanced.sum(0), torch.full((4,), 10.0), rtol=1e-3, atol=0)


def test_sinkhorn_survives_an_unused_region_and_half_precision():
    scores = torch.rand(6, 3).to(torch.bfloat16)
    scores[:, 1] = 0
    out = sinkhorn(scores, 3)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.sum(1), torch.ones(6))
    assert out[:, 1].eq(0).all()


def test_momentum_rises_to_one_by_a_cosine():
    assert cosine_momentum(0.996, 0.0) == pytest.approx(0.996)
    assert cosine_momentum(0.996, 0.5) == pytest.approx(0.998)
    assert cosine_momentum(0.996, 1.0) == 1.0


def test_momentum_update_leaves_statistics_alone():
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    target = frozen_copy(online)
    assert not any(p.requires_grad for p in target.parameters())
    update = MomentumUpdate((online, target))
    online(torch.randn(4, 3) + 5)  # moves the running mean of the online network only
    with torch.no_grad():
        online[0].weight.add_(1)
    before = target[0].weight.clone()
    convert_sync_batchnorm(online)
    convert_sync_batchnorm(target)
    update(0.9)
    torch.testing.assert_close(target[0].weight, before + 0.1)
    assert target[1].running_mean.eq(0).all()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_conversion_keeps_keys_and_outputs(name):
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=64)
    x = torch.randn(2, 3, 64, 64)
    expected, keys = backbone(x), list(backbone.state_dict())
    parameters = list(backbone.parameters())
    assert convert_sync_batchnorm(backbone) is backbone
    assert list(backbone.state_dict()) == keys
    assert all(a is b for a, b in zip(parameters, backbone.parameters(), strict=True))
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, SyncBatchNorm) for m in norms)
    torch.testing.assert_close(backbone(x), expected)  # activations of timm's fused norms are still there
    assert convert_sync_batchnorm(nn.BatchNorm1d(3)).running_mean is not None


def test_norms_over_the_ranks_are_not_compiled():
    backbone = Backbone("test_resnet", image_size=64)
    convert_sync_batchnorm(backbone)
    with pytest.raises(ConfigError, match=r"--compile.*batch norms.*test_resnet.*--sync-batch-norm false"):
        backbone.compile_features()


def test_one_process_reduces_to_itself():
    x = torch.ones(2)
    assert world_size() == 1
    assert all_reduce_sum(x) is x
    torch.testing.assert_close(all_reduce_mean(x), x)


@torch.no_grad()
@pytest.mark.fault("B4", "an operator of torch's own kept ViTs from being traced, exported and quantised")
def test_a_vit_is_traced_exported_and_quantised(tmp_path: Path) -> None:
    """Nothing in a ViT is other than what torch's tools know: they record every operation and find every layer."""
    torch.manual_seed(0)
    backbone = Backbone("test_vit", image_size=160).eval()
    x, other = torch.randn(2, 2, 3, 160, 160)
    traced = torch.jit.trace(backbone, x)
    torch.testing.assert_close(traced(other), backbone(other))
    torch.testing.assert_close(torch.export.export(backbone, (x,)).module()(other), backbone(other))
    if importlib.util.find_spec("onnxscript"):
        torch.onnx.export(backbone, (x,), tmp_path / "vit.onnx", dynamo=True)
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(backbone), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(part) is nn.Linear for part in small.modules())
    found, exact = small(other), backbone(other)
    assert 0 < (found - exact).norm() / exact.norm() < 0.05
