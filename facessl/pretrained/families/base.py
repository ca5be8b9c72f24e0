"""What the families share: unwrapping a checkpoint, telling networks from shapes, comparing it name by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from facessl.core.errors import CheckpointError, ConfigError
from facessl.methods.base import Method
from facessl.models import vit_files
from facessl.models.backbone import Backbone
from facessl.views.spec import IMAGENET_MEAN, IMAGENET_STD

#: (bottleneck, blocks per stage) -> timm name.
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
#: Tensors of a two- or three-layer head of linears and batch norms.
MLP = r"\d+\.(weight|bias|running_mean|running_var|num_batches_tracked)$"


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name, without the outer dictionary and DistributedDataParallel's prefix."""
    inner = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), Mapping)), state)
    return {str(n).removeprefix("module."): v for n, v in inner.items() if isinstance(v, Tensor)}


def begins(state: Mapping[str, Any], pattern: str) -> bool:
    """Whether the name of some tensor begins like `pattern`; one damaged name does not change the family."""
    begin = re.compile(pattern)
    return any(begin.match(name) for name in tensors(state))


def under(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands below `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def shape_of(found: Mapping[str, Tensor], name: str, family: str, sizes: int) -> tuple[int, ...]:
    """Shape of a tensor from which sizes are read.

    Raises:
        CheckpointError: there is none, or it has not as many sizes.
    """
    if name not in found:
        raise CheckpointError(f"this checkpoint of {family} has no tensor {name}")
    shape = tuple(found[name].shape)
    if len(shape) != sizes:
        raise CheckpointError(f"tensor {name} of this checkpoint of {family} has the shape {shape}")
    return shape


def renamer(prefixes: Iterable[tuple[str, str]], parts: Iterable[tuple[str, str]] = ()) -> Callable[[str], str]:
    """A function from our names to a family's.

    Args:
        prefixes: (ours, theirs); the first that fits is replaced.
        parts: (ours, theirs), replaced wherever they stand.
    """
    begins_with, inside = tuple(prefixes), tuple(parts)

    def theirs(name: str) -> str:
        for ours, other in begins_with:
            if name.startswith(ours):
                name = other + name.removeprefix(ours)
                break
        for ours, other in inside:
            name = name.replace(ours, other)
        return name

    return theirs


def fit(
    module: nn.Module,
    found: Mapping[str, Tensor],
    theirs: Callable[[str], str],
    family: str,
    *,
    left_out: str | None = None,
    own: str | None = None,
    copy: tuple[str, str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of `found` under our names, every one of them accounted for.

    Args:
        module: what they must fit; it may be on the meta device.
        found: tensors of the checkpoint.
        theirs: from our names to the family's.
        family: for the sentence.
        left_out: pattern of the family's tensors that have no place in `module`.
        own: pattern of our tensors that the family does not have.
        copy: (prefix, other prefix) of tensors that stand twice in the file, see `check_copy`.

    Returns:
        float tensors in the types of `module`; sizes of 1 at the beginning or end of a shape may differ (a 1x1
        convolution and a linear layer, a class token with and without its batch).

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; they are named as in the checkpoint.
    """
    state = {n: v for n, v in module.state_dict().items() if own is None or not re.match(own, n)}
    names = {theirs(name): name for name in state}
    missing = sorted(names.keys() - found.keys())
    unknown = sorted(n for n in found.keys() - names.keys() if left_out is None or not re.match(left_out, n))
    resized = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(state[ours].shape)}"
        for name, ours in sorted(names.items())
        if name in found and _core(found[name].shape) != _core(state[ours].shape)
    ]
    wrong = [
        f"{what}: {_some(which)}"
        for what, which in (("missing", missing), ("unknown", unknown), ("of another shape", resized))
        if which
    ]
    if wrong:
        raise CheckpointError(
            f"{len(missing) + len(unknown) + len(resized)} tensors of this checkpoint of {family} do not fit: "
            f"{'; '.join(wrong)}"
        )
    if copy is not None:
        check_copy(found, *copy, family)
    return {ours: found[name].reshape(state[ours].shape).to(state[ours].dtype) for name, ours in names.items()}


def check_copy(found: Mapping[str, Tensor], copy: str, of: str, family: str, *, values: bool = True) -> None:
    """Compare tensors below the prefix `copy`, where there are any, with those below `of`.

    Raises:
        CheckpointError: other names or shapes, or with `values` other values; they are named.
    """
    first, second = under(found, of), under(found, copy)
    if not second:
        return
    different = [
        name
        for name in first.keys() & second.keys()
        if first[name].shape != second[name].shape or (values and not torch.equal(first[name], second[name]))
    ]
    wrong = sorted({copy + n for n in first.keys() ^ second.keys()} | {copy + n for n in different})
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of this checkpoint of {family} are no copies of those below {of}: {_some(wrong)}"
        )


def _core(shape: torch.Size) -> tuple[int, ...]:
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    while sizes and sizes[0] == 1:
        sizes.pop(0)
    return tuple(sizes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def whole_method(
    make: Callable[[], Method], found: Mapping[str, Tensor], theirs: Callable[[str], str], family: str, **kept: Any
) -> Method:
    """What `make` builds, with every tensor of the checkpoint; `kept` and errors as in `fit`."""
    method = _made(make, family)
    module = cast(nn.Module, method)
    module.load_state_dict(fit(module, found, theirs, family, **kept), strict="own" not in kept)
    return method


def online_backbone(
    make: Callable[[], Method], found: Mapping[str, Tensor], theirs: Callable[[str], str], family: str, **kept: Any
) -> Backbone:
    """The backbone alone; heads and target take no memory, but are compared as well. Arguments as in `fit`."""
    with torch.device("meta"):
        method = _made(make, family)
    fitted = fit(cast(nn.Module, method), found, theirs, family, **kept)
    like = method.backbone
    backbone = Backbone(like.name, image_size=like.image_size, **_normalisation(like), **like.timm_options)
    backbone.model.load_state_dict(under(fitted, "backbone.model."))
    return backbone


def _made(make: Callable[[], Method], family: str) -> Method:
    try:
        return make()
    except ConfigError as error:
        raise CheckpointError(f"the shapes of this checkpoint of {family} do not go together: {error}") from None


def _normalisation(backbone: Backbone) -> dict[str, Any]:
    return {"mean": backbone.mean, "std": backbone.std}


def resnet_name(names: Iterable[str], family: str) -> str:
    """timm's name of the ResNet whose tensors have these names.

    Raises:
        CheckpointError: no ResNet-18, 34, 50, 101 or 152.
    """
    found = [m for m in (re.match(r"layer([1-4])\.(\d+)\.(conv3)?", name) for name in names) if m]
    blocks = tuple(len({m[2] for m in found if m[1] == stage}) for stage in "1234")
    bottleneck = any(m[3] for m in found)
    if (bottleneck, blocks) not in RESNETS:
        raise CheckpointError(
            f"this checkpoint of {family} has {blocks} {'bottleneck' if bottleneck else 'basic'} blocks: "
            f"only {', '.join(RESNETS.values())} can be read"
        )
    return RESNETS[bottleneck, blocks]


def vit_sizes(
    found: Mapping[str, Tensor],
    family: str,
    *,
    patch: str = "patch_embed.proj.weight",
    positions: str = "pos_embed",
    blocks: str = "blocks.",
    heads: Callable[[int], int] = vit_files.usual_heads,
) -> tuple[int, dict[str, Any]]:
    """Sizes of a ViT with a class token.

    Args:
        found: its tensors.
        family: for the sentence.
        patch, positions: names of the patch embedding (C, 3, p, p) and of the position table (..., 1 + h * w, C).
        blocks: what stands before a block's number.
        heads: attention heads of a ViT of a width, as they leave no trace in a shape.

    Returns:
        image size in pixels; sizes as `build_vit` takes them.

    Raises:
        CheckpointError: a missing tensor, or a table of no square.
    """
    width, _, side, _ = shape_of(found, patch, family, 4)
    if positions not in found:
        raise CheckpointError(f"this checkpoint of {family} has no tensor {positions}")
    cells = found[positions].shape[-2] - 1 if found[positions].ndim > 1 else 0
    grid = round(cells**0.5) if cells > 0 else 0
    if grid < 1 or grid * grid != cells:
        shape = tuple(found[positions].shape)
        raise CheckpointError(f"tensor {positions} of this checkpoint of {family} is of another shape: {shape}")
    depth = len({n.removeprefix(blocks).split(".")[0] for n in found if n.startswith(blocks)})
    ratio = vit_files.mlp_ratio(found, width, blocks)
    return grid * side, {"width": width, "depth": depth, "heads": heads(width), "patch": side, "ratio": ratio}


def build_vit(
    family: str, image_size: int, sizes: Mapping[str, Any], *, name: str | None = None, **normalisation: Any
) -> Backbone:
    """A timm ViT of these sizes (`vit_sizes`); arguments as in `_vit_files.network`.

    Raises:
        CheckpointError: sizes that make no ViT.
    """
    name, options = vit_files.network(name=name, **sizes)
    try:
        return Backbone(name, image_size=image_size, **normalisation, **options)
    except ConfigError as error:
        raise CheckpointError(f"the shapes of this checkpoint of {family} make no ViT: {error}") from None


def guessed_normalisation(backbone: Backbone) -> dict[str, str]:
    """What `guessed` of a family says where mean and std are ImageNet's for want of a better one."""
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {key: f"ImageNet's {key}" for key, value in usual.items() if getattr(backbone, key) == value}
