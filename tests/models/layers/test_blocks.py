"""How heads and decoder start, the limits of Sinkhorn, batch norm over ranks; what torch's tools make of a ViT."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from facessl.core.errors import ConfigError, DataError
from facessl.models.backbone import Backbone
from facessl.models.layers.heads import MLPHead
from facessl.models.layers.losses import sinkhorn
from facessl.models.layers.mask_decoder import MaskDecoder
from facessl.models.layers.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm


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


def test_sinkhorn_balances_regions():
    torch.manual_seed(0)
    balanced = sinkhorn((3 * torch.randn(40, 4)).exp(), 100)
    torch.testing.assert_close(balanced.sum(1), torch.ones(40))
    torch.testing.assert_close(balanced.sum(0), torch.full((4,), 10.0), rtol=1e-3, atol=0)


def test_sinkhorn_survives_an_unused_region_and_half_precision():
    scores = torch.rand(6, 3).to(torch.bfloat16)
    scores[:, 1] = 0
    out = sinkhorn(scores, 3)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.sum(1), torch.ones(6))
    assert out[:, 1].eq(0).all()


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


@pytest.mark.parametrize(
    ("images", "told"), [([], "no images"), ([np.zeros((8, 8, 3), np.uint8), None], "image 1 is None")]
)
def test_preprocessing_names_a_photo_without_a_face(images, told):
    with pytest.raises(DataError, match=f"{told}.*crop_face found no face"):
        Backbone("test_resnet", image_size=64).preprocess(images)


def test_norms_over_the_ranks_are_not_compiled():
    backbone = Backbone("test_resnet", image_size=64)
    convert_sync_batchnorm(backbone)
    with pytest.raises(ConfigError, match=r"--compile.*batch norms.*test_resnet.*--sync-batch-norm false"):
        backbone.compile_features()


def test_evaluation_is_not_compiled(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: seen.append(x) or function(x))
    backbone, x = Backbone("test_resnet", image_size=64), torch.zeros(2, 3, 64, 64)
    target = copy.deepcopy(backbone).requires_grad_(False).eval()
    for one in (backbone, target):
        one.compile_features()
    backbone.train()(x)
    backbone.eval()(x)
    target(x)
    assert len(seen) == 2


@torch.no_grad()
@pytest.mark.fault("B4", "an operator of torch's own kept ViTs from being traced, exported and quantized")
def test_a_vit_is_traced_exported_and_quantized(tmp_path: Path) -> None:
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
