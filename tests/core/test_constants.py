"""Constants that are shared by callers of any kind."""

import torch

from facessl.core.constants import constant


def test_a_constant_made_in_inference_mode_takes_part_in_gradients() -> None:
    x = torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        made = constant((2.5, 7.5), x.detach())
    (x * constant((2.5, 7.5), x.detach())).sum().backward()
    assert constant((2.5, 7.5), x.detach()) is made
    assert torch.equal(x.grad, torch.tensor([2.5, 7.5]))
