"""Settings and helpers of the tasks on a feature pyramid."""

import torch

from facessl.models.backbone import Backbone
from facessl.models.forward import evaluating

#: Width of a head that suits a CPU.
NARROW = 64
#: Common settings of FaRL's two dense protocols.
FARL = {"image_size": 448, "batch_size": 40, "ema": 0.999}
FARL_OPTIM = {"lr": 1e-4, "weight_decay": 1e-5, "warmup_epochs": 0, "schedule": "step", "milestones": [200]}


def freeze_unreached(backbone: Backbone) -> None:
    """Freeze the parameters that the pyramid does not depend on, such as a ViT's last norm.

    DistributedDataParallel waits for the gradients of every parameter that is not frozen.
    """
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    if not trainable:
        return
    device = trainable[0].device
    with evaluating(backbone), torch.enable_grad():
        maps = backbone.forward_pyramid(torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=device))
        total = torch.stack([m.float().sum() for m in maps]).sum()
        gradients = torch.autograd.grad(total, trainable, allow_unused=True)
    for parameter, gradient in zip(trainable, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
