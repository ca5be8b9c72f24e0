"""Choice between timm's two attentions: the fused kernel, or plain products with a softmax between them."""

from typing import Any

import torch
from torch import Tensor, nn

#: Tokens up to which the plain attention may run: its memory grows with their square.
MOST_TOKENS = 256


def choose_attention(module: nn.Module) -> None:
    """Let every attention of a timm network choose its path by the input, at each call.

    On a CPU in 16 bits torch's fused kernel takes 2 to 5 times as long as plain products; elsewhere it is the faster.
    """
    for part in module.modules():
        if getattr(part, "fused_attn", False):
            part.register_forward_pre_hook(_choose)


def _choose(module: Any, inputs: tuple[Any, ...]) -> None:
    if torch.compiler.is_compiling():
        return
    x: Tensor = inputs[0]
    on_cpu = x.device.type == "cpu"
    short = torch.is_autocast_enabled("cpu") or x.dtype in (torch.bfloat16, torch.float16)
    module.fused_attn = not (on_cpu and short and x.ndim == 3 and x.shape[1] <= MOST_TOKENS)
