"""Weights from files: tensors compared name by name, and networks built from their cards and names."""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict

import timm
import torch
from torch import Tensor, nn

from facessl.core.errors import CheckpointError, ConfigError, UnknownName
from facessl.core.schema import check
from facessl.models.backbone import Backbone

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


#: Prefixes of a network's names in other code.
_PREFIXES = ("backbone.", "model.", "encoder.")


class Card(TypedDict, total=False):
    """Fields of a card that are needed to build the network."""

    timm_name: Required[str]
    timm_options: dict[str, Any]
    image_size: Required[int]
    mean: Required[tuple[float, float, float]]
    std: Required[tuple[float, float, float]]


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name, without the outer dictionary and the prefixes of DistributedDataParallel and torch.compile."""
    inner = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), Mapping)), state)
    names = {n: re.sub(r"^(module\.)+", "", str(n).replace("_orig_mod.", "")) for n in inner}
    return {names[n]: v for n, v in inner.items() if isinstance(v, Tensor)}


def networks(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a loaded checkpoint and the networks below the prefixes of other code in it, each with its prefix."""
    yield prefix, dict(state)
    own = tensors(state)
    for outer in _PREFIXES:
        if below := under(own, outer):
            yield from networks({**state, "state_dict": below}, prefix + outer)


def begins(state: Mapping[str, Any], pattern: str) -> bool:
    """Whether the name of some tensor begins like `pattern`; one damaged name does not change the family."""
    return any(re.match(pattern, name) for name in tensors(state))


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def shape_of(state: Mapping[str, Tensor], name: str, family: str, sizes: int) -> tuple[int, ...]:
    """Shape of a tensor. CheckpointError: it is missing, or has not as many `sizes`."""
    if name not in state:
        raise CheckpointError(f"this checkpoint of {family} has no tensor {name}")
    shape = tuple(state[name].shape)
    if len(shape) != sizes:
        raise CheckpointError(f"tensor {name} of this checkpoint of {family} has the shape {shape}")
    return shape


def renamer(prefixes: Sequence[tuple[str, str]], parts: Sequence[tuple[str, str]] = ()) -> Callable[[str], str]:
    """Return a function from the names of this library to those of a family.

    Args:
        prefixes: (prefix, its replacement); the first that fits is replaced.
        parts: (part, its replacement), replaced everywhere.
    """

    def rename(name: str) -> str:
        prefix, replacement = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
        name = replacement + name.removeprefix(prefix)
        for part, replacement in parts:
            name = name.replace(part, replacement)
        return name

    return rename


def fit(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    rename: Callable[[str], str],
    family: str,
    *,
    left_out: str | None = None,
    own: str | None = None,
    copy: tuple[str, str] | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a family's file under the names of `module`, every one of them accounted for.

    Args:
        module: the network that they must fit; it may be on the meta device.
        tensors: those of the file, by name.
        rename: from the names of `module` to the family's.
        left_out: pattern of the family's tensors that have no place in `module`.
        own: pattern of the tensors of `module` that the family does not have.
        copy: (prefix, original prefix) of tensors that are in the file twice, see `check_copy`.

    Returns:
        float tensors in the types of `module`; sizes of 1 at the beginning or end of a shape may differ (a 1x1
        convolution and a linear layer, a class token with and without its batch).

    Raises:
        CheckpointError: tensors that are missing, unknown or of another shape; they are named as in the checkpoint.
    """
    state = {n: v for n, v in module.state_dict().items() if own is None or not re.match(own, n)}
    expected = {rename(n): v for n, v in state.items()}
    used = {n: v for n, v in tensors.items() if n in expected or left_out is None or not re.match(left_out, n)}
    if wrong := _misfit(expected, used, _core_shape):
        raise CheckpointError(f"tensors of this checkpoint of {family} do not fit: {wrong}")
    if copy is not None:
        check_copy(tensors, *copy, family)
    return {name: tensors[rename(name)].reshape(value.shape).to(value.dtype) for name, value in state.items()}


def check_copy(state: Mapping[str, Tensor], copy: str, original: str, family: str, *, values: bool = True) -> None:
    """Compare the tensors below the prefix `copy`, if any, with those below `original`.

    CheckpointError: other names or shapes, or with `values` other values; they are named.
    """
    first, second = under(state, original), under(state, copy)
    if not second:
        return

    def equal(name: str) -> bool:
        first_tensor, second_tensor = first[name], second[name]
        return first_tensor.shape == second_tensor.shape and (not values or torch.equal(first_tensor, second_tensor))

    common = first.keys() & second.keys()
    if wrong := sorted(copy + n for n in first.keys() | second.keys() if n not in common or not equal(n)):
        raise CheckpointError(
            f"{len(wrong)} tensors of this checkpoint of {family} differ from those below {original}, which they "
            f"should equal: {_first_names(wrong)}"
        )


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Any], size: Callable[[Any], Any]) -> str:
    """Describe what in `state` does not fit `own`; empty if everything does."""
    resized = [
        f"{name} {tuple(getattr(state[name], 'shape', ()))} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and size(state[name]) != size(value)
    ]
    wrong = {"missing": own.keys() - state.keys(), "unknown": state.keys() - own.keys(), "of another shape": resized}
    lists = {kind: sorted(map(str, names)) for kind, names in wrong.items() if names}
    return "; ".join(f"{len(names)} {kind}: {_first_names(names)}" for kind, names in lists.items())


def _core_shape(value: Tensor) -> list[int]:
    """The shape without sizes of 1 at its ends."""
    large = [i for i, size in enumerate(value.shape) if size != 1]
    return list(value.shape[large[0] : large[-1] + 1]) if large else []


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def load_exactly(module: nn.Module, state: Mapping[str, Any], path: str | Path, what: str = "") -> None:
    """Strict loading with one sentence for what does not fit; `what` says what `module` is."""
    if wrong := _misfit(module.state_dict(), state, lambda value: getattr(value, "shape", None)):
        raise CheckpointError(f"{path} does not fit {what or type(module).__name__}: {wrong}")
    module.load_state_dict(state)


def check_finite(module: nn.Module, path: str | Path) -> None:
    """CheckpointError if weights or statistics are not numbers: everything made with them would be wrong."""
    floating = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    bad = [name for name, value in floating.items() if not bool(value.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{path}: {len(bad)} of {len(floating)} tensors hold values that are not finite, {bad[0]} first: the "
            "training that wrote it diverged; use an earlier checkpoint, or another file"
        )


def resnet_name(names: Iterable[str], family: str) -> str:
    """timm's name of the ResNet whose tensors have these names. CheckpointError: no ResNet-18, 34, 50, 101 or 152."""
    matches = [m for m in (re.match(r"layer([1-4])\.(\d+)\.(conv3)?", name) for name in names) if m]
    blocks = tuple(len({m[2] for m in matches if m[1] == stage}) for stage in "1234")
    bottleneck = any(m[3] for m in matches)
    if (bottleneck, blocks) not in RESNETS:
        raise CheckpointError(
            f"this checkpoint of {family} has {blocks} {'bottleneck' if bottleneck else 'basic'} blocks: "
            f"only {', '.join(RESNETS.values())} can be read"
        )
    return RESNETS[bottleneck, blocks]


def from_card(card: Mapping[str, Any], file: str | Path) -> Backbone:
    """A backbone without its weights, from the card in `file`. CheckpointError names a field that cannot be used."""
    check(card, Card, file)
    name, options = card["timm_name"], card.get("timm_options", {})
    try:
        if options and timm.is_model(name):  # nothing that would read another file, or reach for a network
            with torch.device("meta"):
                kind = type(timm.create_model(name, num_classes=0))
            taken = inspect.signature(kind.__init__).parameters.keys() - {"self", "num_classes"}
            if odd := sorted(options.keys() - taken):
                raise ConfigError(f"timm_options.{odd[0]} is not a property of {name}")
        return Backbone(name, image_size=card["image_size"], mean=card["mean"], std=card["std"], **options)
    except (ConfigError, UnknownName) as error:
        raise CheckpointError(f"the card of {file} cannot be used: {error}") from None


def from_export(path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> Backbone:
    """The backbone of an export, tensors and card read from `path`. CheckpointError if they do not fit."""
    backbone = from_card(card, path)
    load_exactly(backbone.model, state, path)
    return backbone


def with_options(backbone: Backbone, options: Mapping[str, Any]) -> Backbone:
    """The same weights in a backbone with other timm options, e.g. another `output_stride`.

    ConfigError: an option that the model does not take, or one that changes its weights.
    """
    changed = Backbone(
        backbone.name,
        image_size=backbone.image_size,
        mean=backbone.mean,
        std=backbone.std,
        **{**backbone.timm_options, **options},
    )
    try:
        changed.model.load_state_dict(backbone.model.state_dict())
    except RuntimeError:
        raise ConfigError(
            f"backbone.options {dict(options)} change the weights of {backbone.name}: leave them out for a trained one"
        ) from None
    return changed.eval()


def set_image_size(backbone: Backbone, image_size: int) -> None:
    """Let a backbone take squares of another size; a ViT's position table is interpolated (timm's resampling).

    ConfigError: the model cannot take that size.
    """
    if image_size == backbone.image_size:
        return
    if hasattr(backbone.model, "set_input_size"):
        try:
            backbone.model.set_input_size(img_size=image_size)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{backbone.name} cannot take images of {image_size} px: {error}") from None
    backbone.image_size = image_size


def fingerprint(network: Any) -> str:
    """Hexadecimal digits that change with the weights, architecture, image size and normalization of a backbone, or of
    another network with the same attributes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((network.name, network.timm_options, network.image_size)).encode())
    digest.update(repr((network.mean, network.std)).encode())
    for name, tensor in network.model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
