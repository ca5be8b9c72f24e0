"""Fully sharded data parallel (FSDP2): parameters, gradients and optimizer state are spread over the ranks.

Every parameter is split along its first dimension, momentum networks like their originals, so that the EMA needs no
communication. Checkpoints hold whole tensors, whatever the strategy and the number of ranks.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from facessl.config.pretrain import PretrainConfig
from facessl.core.distributed import rank
from facessl.core.errors import ConfigError
from facessl.core.types import Step

#: Fewest parameters of a block that is gathered and freed by itself.
UNIT = 1_000_000


def check(settings: PretrainConfig, compiled: bool) -> None:
    """Raise ConfigError for LARS, fp16 and compilation, which are not known to work sharded."""
    if settings.optim.name == "lars":
        raise ConfigError(
            "strategy fsdp cannot use lars, whose rate needs the norm of whole tensors: use --optim.name adamw, or ddp"
        )
    if settings.precision == "fp16":
        raise ConfigError("strategy fsdp has no loss scaling for fp16: use --precision bf16, or --strategy ddp")
    if compiled:
        raise ConfigError("strategy fsdp was not tested with --compile: leave one of them out")


def shard(module: nn.Module, mesh: Any) -> None:
    """Spread the parameters of `module` over the ranks of a one-dimensional mesh, in place.

    Blocks (children of a Sequential or a list with `UNIT` parameters or more) are gathered one at a time, the rest for
    the whole step. ConfigError: a parameter is a single number, which FSDP cannot split.
    """
    scalars = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ConfigError(
            f"strategy fsdp cannot cut {', '.join(scalars)} of {type(module).__name__}, a single number: use ddp"
        )
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # all that FSDP can cut
    for block in _blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(module, "step")
    _show_loss()


@functools.cache
def _show_loss() -> None:
    """Let FSDP find the loss in a `Step`, on whose tensors it puts the hooks of the backward pass."""
    pytree.register_pytree_node(
        Step, lambda step: ([step.loss, step.logs], None), lambda parts, _: Step(*parts), serialized_type_name="Step"
    )


def _blocks(module: nn.Module) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for child in module.children():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and sum(p.numel() for p in child.parameters()) >= UNIT:
            blocks.append(child)
        else:
            blocks += _blocks(child)
    return blocks


def is_sharded(value: object) -> bool:
    """Whether `value` is a tensor of which this rank has only a part."""
    return hasattr(value, "full_tensor")


def whole(value: Any) -> Any:
    """`value` (a state dict, or anything in one) with its sharded tensors gathered on the host of rank 0, one after the
    other, so that no GPU holds them all; other ranks get empty tensors. Collective call."""
    if is_sharded(value):
        full = value.full_tensor()
        return full.cpu() if rank() == 0 else full.new_empty(0, device="cpu")
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    return [whole(entry) for entry in value] if isinstance(value, list) else value


@torch.no_grad()
def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`module.load_state_dict(state)` with whole tensors, sharded or not; collective call."""
    sharded = {key: own for key, own in module.state_dict().items() if is_sharded(own)}
    if not sharded:
        module.load_state_dict(state)
        return
    local = {key: _like(value, sharded[key]) if key in sharded else value for key, value in state.items()}
    module.load_state_dict(local)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict(state)` with whole tensors, sharded or not; collective call."""
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        if is_sharded(parameter):
            for key, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[key] = _like(value, parameter)


def _like(value: Tensor, model: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(model.device, model.dtype), model.device_mesh, model.placements)
