"""From a path to a network: run folders, our checkpoints and exports, and the authors' files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from facessl import checkpoint, plugins
from facessl.backbones import Backbone
from facessl.config import RunConfig
from facessl.errors import CheckpointError, ConfigError, UnknownName
from facessl.methods.base import Method
from facessl.parsing import from_dict


def build_method(config: RunConfig) -> Method:
    """A fresh method on a fresh backbone, as `config` says."""
    arguments = dict(config.method)
    kind = plugins.find("methods", arguments.pop("name"))
    backbone = Backbone(
        config.backbone.name,
        image_size=config.image_size,
        mean=config.mean or kind.mean,
        std=config.std or kind.std,
        pretrained=config.backbone.pretrained,
        **config.backbone.options,
    )
    return kind(backbone, **arguments)


def load_method(path: str | Path) -> Method:
    """A trained method, heads included, in eval mode.

    Args:
        path: run folder, its .ckpt, or an authors' checkpoint of a method this library has.

    Raises:
        CheckpointError: missing, damaged, of no known kind, or with keys that do not match (they are named).
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".ckpt":
        state = checkpoint.read_run(checkpoint_of(path))
        if "method" not in state["config"]:
            raise CheckpointError(
                f"{path} is a run of `facessl finetune` and has no pre-training method: name the run it started from"
            )
        method = build_method(_without_downloads(state["config"]))
        load_exactly(method, state["method"], path)  # type: ignore[arg-type]
    else:
        state = checkpoint.read(path)
        family = family_of(path, state)
        if not hasattr(family, "build"):
            raise CheckpointError(f"{path} is a checkpoint of {family.FAMILY}, read without heads: use load_backbone")
        method = family.build(state)
        _say(path, family, method.backbone)
    module: nn.Module = method  # type: ignore[assignment]
    module.eval()
    return method


def load_backbone(path: str | Path) -> Backbone:
    """A backbone in eval mode, ready for `backbone(backbone.preprocess(images))`.

    Args:
        path: run folder, our .ckpt or .safetensors, or an authors' file, whose family is recognised by its keys and
            told on standard error (`facessl/weights/`).

    Raises:
        CheckpointError: missing, damaged, of no known kind, or with keys that do not match (they are named).
    """
    path = Path(path)
    exported = path / "backbone.safetensors" if path.is_dir() else path
    if exported.suffix == ".safetensors" and exported.is_file():
        backbone = _from_export(exported)
    elif path.is_dir() or path.suffix == ".ckpt":
        backbone = load_method(path).backbone
    else:
        backbone = _from_authors(path, checkpoint.read(path))
    backbone.requires_grad_(False)
    return backbone.eval()


def with_options(backbone: Backbone, options: Mapping[str, Any]) -> Backbone:
    """The same weights in a backbone with other timm options, e.g. another `output_stride`.

    Raises:
        ConfigError: an option that the model does not take, or one that changes its weights.
    """
    changed = Backbone(
        backbone.name,
        image_size=backbone.image_size,
        mean=backbone.mean,  # type: ignore[arg-type]
        std=backbone.std,  # type: ignore[arg-type]
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

    Raises:
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


def card(method: Method, config: RunConfig, *, steps: int, commit: str) -> dict[str, Any]:
    """What `backbone.json` says: all that is needed to use the weights."""
    values = dict(config.method)
    return backbone_card(method.backbone, method=values, source=config.source, steps=steps, commit=commit)


def backbone_card(
    backbone: Backbone, *, method: Mapping[str, Any], source: str, steps: int | None, commit: str
) -> dict[str, Any]:
    """The card of any backbone; `steps` is None where they are not known."""
    return {
        "format": "facessl-backbone-1",
        "timm_name": backbone.name,
        "timm_options": dict(backbone.timm_options),
        "num_features": backbone.num_features,
        "image_size": backbone.image_size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "method": dict(method),
        "source": source,
        "steps": steps,
        "commit": commit,
    }


def _from_export(path: Path) -> Backbone:
    tensors, info = checkpoint.read_safetensors(path)
    if "timm_name" not in info:  # others' files have no card
        return _from_authors(path, tensors)
    backbone = Backbone(
        info["timm_name"],
        image_size=info["image_size"],
        mean=tuple(info["mean"]),
        std=tuple(info["std"]),
        **info.get("timm_options", {}),
    )
    load_exactly(backbone.model, tensors, path)
    return backbone


def _from_authors(path: Path, state: Mapping[str, Any]) -> Backbone:
    family = family_of(path, state)
    backbone: Backbone = family.build_backbone(state)
    _say(path, family, backbone)
    return backbone


def family_of(path: Path, state: Mapping[str, Any]) -> Any:
    """The module of `facessl/weights` whose checkpoint `state`, read from `path`, is.

    Raises:
        CheckpointError: of no known kind.
    """
    known = plugins.names("weights")
    for name in known:
        family = plugins.module("weights", name)
        if family.matches(state):
            return family
    keys = ", ".join(list(state)[:4]) or "none"
    raise CheckpointError(f"{path} is of no known kind (families: {', '.join(known)}; its first keys: {keys})")


def _say(path: Path, family: Any, backbone: Backbone) -> None:
    """What a file was taken for, on standard error."""
    text = f"{path.name}: a checkpoint of {family.FAMILY}, {backbone.name} at {backbone.image_size} px"
    print(text, file=sys.stderr, flush=True)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Strict loading with one sentence for what does not fit."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", sorted(shapes))):
        if keys:
            shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
            raise CheckpointError(f"{path} does not fit {type(module).__name__}: {what}: {shown}")
    module.load_state_dict(state)


def checkpoint_of(path: Path) -> Path:
    """The newest checkpoint of a run folder; a file is itself. Raises CheckpointError where there is none."""
    if path.is_file():
        return path
    last = path / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise CheckpointError(f"{path} holds no checkpoints/last.ckpt: give a run folder of `facessl pretrain`")
    return last


def _without_downloads(values: Mapping[str, Any]) -> RunConfig:
    backbone = {**values["backbone"], "pretrained": False}
    try:
        first: frozenset[str] = getattr(plugins.find("methods", values["method"]["name"]), "initial", frozenset())
        method = {key: value for key, value in values["method"].items() if key not in first}
        return from_dict({**values, "backbone": backbone, "method": method})
    except UnknownName as error:
        raise CheckpointError(f"the checkpoint was written by another version: {error}") from None
