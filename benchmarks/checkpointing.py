"""Memory that activations take with and without `--backbone.checkpointing`, counted on a CPU.

python benchmarks/checkpointing.py [NAME ...]: bytes of the tensors that a forward pass of 4 images of 224 pixels in
float32 keeps for the backward pass, the inputs of checkpointed blocks included, without the weights.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from facessl.models.backbone import Backbone


def kept(name: str, *, checkpointing: bool) -> float:
    """Bytes."""
    backbone = Backbone(name)
    stages: Any = [getattr(backbone.model, f"layer{i}", ()) for i in (1, 2, 3, 4)]
    blocks = [block for stage in (getattr(backbone.model, "blocks", ()), *stages) for block in stage]
    own = {t.untyped_storage().data_ptr() for t in (*backbone.parameters(), *backbone.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def note(_: Any, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    if checkpointing:
        backbone.checkpoint_activations()
        for block in blocks:
            block.register_forward_pre_hook(note)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = backbone(torch.randn(4, 3, 224, 224))
    assert out.requires_grad
    return sum(size for place, size in found.items() if place not in own)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["resnet50", "vit_base_patch16_224"]:
        plain, less = (kept(name, checkpointing=on) / 2**20 for on in (False, True))
        print(f"{name}: {plain:.0f} MiB, with checkpointing {less:.0f} MiB")
