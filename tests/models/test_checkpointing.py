"""Activations that are computed twice: less memory, the same gradients and statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from facessl.core.errors import ConfigError
from facessl.core.types import Batch, Progress
from facessl.methods.mae import MAE
from facessl.models.backbone import Backbone
from facessl.models.layers.sync_batch_norm import convert_sync_batchnorm


def run(name: str, twice: bool, head: Any, convert: bool = False, **options: Any) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers after a step, and bytes of the tensors that the forward pass keeps for the backward one."""
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=64, **options)
    if twice:
        backbone.checkpoint_activations()
    if convert:
        convert_sync_batchnorm(backbone)
    module, x = head(backbone), torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(x)
    for parameter in module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()
    found = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None} | dict(backbone.named_buffers())
    return found, sum(kept.values())


class Pyramid(torch.nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([m.square().mean() for m in self.backbone.forward_pyramid(x)]).sum()


class Pooled(Pyramid):
    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x).square().mean()


class Masked(Pyramid):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.method = MAE(backbone, decoder_width=16, decoder_depth=1, decoder_heads=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.method.step(Batch([x], [], torch.arange(len(x))), Progress(0, 1)).loss


VIT = {"patch_size": 8, "embed_dim": 48, "num_heads": 4, "depth": 6}


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("resnet18", Pooled, {}),
        ("resnet18", Pyramid, {}),
        ("resnet18", Pooled, {"convert": True}),
        ("vit_tiny_patch16_224", Pooled, {"proj_drop_rate": 0.1, **VIT}),
        ("vit_tiny_patch16_224", Pyramid, VIT),
        ("vit_tiny_patch16_224", Masked, VIT),
    ],
)
def test_gradients_and_statistics_are_equal_and_less_is_kept(name: str, head: Any, options: dict[str, Any]) -> None:
    (plain, bytes_plain), (ours, bytes_ours) = (run(name, on, head, **options) for on in (False, True))
    assert ours.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-7, msg=lambda m, k=key: f"{k}: {m}")
    assert bytes_ours < 0.6 * bytes_plain


def test_a_network_that_timm_cannot_checkpoint_is_told() -> None:
    with pytest.raises(ConfigError, match="pcl_facecycle has no checkpointing"):
        Backbone("pcl_facecycle", image_size=64).checkpoint_activations()
