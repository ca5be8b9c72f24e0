"""From a path to a network: run folders, our checkpoints and exports, and the authors' files."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import nn

from facessl.config.parse import from_dict
from facessl.config.paths import located, published
from facessl.config.pretrain import PretrainConfig
from facessl.core import checkpoint, plugins
from facessl.core.errors import CheckpointError, ConfigError, UnknownName, UnknownPlugin
from facessl.methods.base import Method
from facessl.models.backbone import Backbone, pretrained_settings
from facessl.models.weights import check_finite, from_export, load_exactly, networks, tensors, with_options
from facessl.pretrained.families.timm import build_named

#: How `Backbone.preprocess` makes the square, in the words of `timm.data.create_transform`: the whole image, resized by
#: Pillow's BILINEAR.
RESIZE = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
#: Prefix of the name of a network of timm.
TIMM = "timm:"
#: `format` in the card of a fine-tuned task.
TASK_FORMAT = "facessl-task-1"


@dataclass(frozen=True)
class Origin:
    """The recognized family of an authors' file, or the authors of a network."""

    family: str  # module of `facessl/pretrained/families/`
    authors: str  # of the file, in words
    guessed: Mapping[str, str]  # "heads", "mean", "std" that neither the file nor the user gives: in words


def weight_files(run: str | Path) -> dict[str, Path]:
    """The .safetensors files of a run, an export for timm or transformers, or of one path, by what they hold.

    `task`, `backbone` (by the card of facessl in them) or `authors` (no card) -> file. CheckpointError: damaged.
    """
    path, files = Path(run), {}
    for file in (path / "model.safetensors", path / "backbone.safetensors") if path.is_dir() else (path,):
        if file.suffix == ".safetensors" and file.is_file():
            card = checkpoint.read_safetensors(file, card_only=True)[1]
            kind = "task" if card.get("format") == TASK_FORMAT else "backbone" if "timm_name" in card else "authors"
            files[kind] = file
    return files


def build_method(config: PretrainConfig, *, fresh: bool = True) -> Method:
    """A method on a backbone, as `config` says; not `fresh`: one whose tensors come from a checkpoint, so that the
    weights that training began with are neither downloaded nor read."""
    arguments = dict(config.method)
    kind = plugins.find("methods", arguments.pop("name"))
    if not fresh:
        first: frozenset[str] = getattr(kind, "initial", frozenset())
        arguments = {key: value for key, value in arguments.items() if key not in first}
    mean, std = normalization(config)
    backbone = Backbone(
        config.backbone.name,
        image_size=config.image_size,
        mean=mean,
        std=std,
        pretrained=config.backbone.pretrained and fresh,
        **config.backbone.options,
    )
    if config.backbone.checkpointing:
        backbone.checkpoint_activations()
    return kind(backbone, **arguments)


def normalization(config: PretrainConfig) -> tuple[Any, Any]:
    """Mean and std of a run: those of its configuration, of its pre-trained weights, or of the method."""
    pretrained = config.backbone.pretrained
    own: Any = (
        pretrained_settings(config.backbone.name) if pretrained else plugins.find("methods", config.method["name"])
    )
    return config.mean or own.mean, config.std or own.std


def load_method(path: str | Path) -> Method:
    """A trained method, heads included, in eval mode.

    Args:
        path: run folder, its .ckpt, or an authors' checkpoint of a method this library has.

    Raises:
        CheckpointError: missing, damaged, of no known kind, without a method, or with keys that do not match.
    """
    if str(path).startswith(TIMM) or Path(path).suffix == ".safetensors":
        raise CheckpointError(f"{path} is a backbone without its method: name a run folder of `facessl pretrain`")
    path = Path(path)
    state = checkpoint.read_run(checkpoint_of(path)) if path.is_dir() else checkpoint.read(path)
    if path.is_dir() or state.get("format") == checkpoint.FORMAT:
        return _own_method(path, state)
    family, _, part = family_of(path, state)
    if not hasattr(family, "build"):
        raise CheckpointError(f"{path} is a checkpoint of {family.FAMILY}, read without heads: use load_backbone")
    method = _read_by(family, family.build, path, part)
    _print_origin(path, Origin(_name(family), family.FAMILY, {}), method.backbone, {})
    return _ready(method, path)


def _own_method(path: Path, state: Mapping[str, Any]) -> Method:
    """The method of a training checkpoint of this library that was read from `path`."""
    checkpoint.check_run(state, path)
    if "method" not in state["config"]:
        raise CheckpointError(
            f"{path} is a run of `facessl finetune` and has no pre-training method: name the run it started from"
        )
    try:
        method = build_method(from_dict(state["config"]), fresh=False)
    except UnknownPlugin as error:
        raise CheckpointError(f"{path} cannot be opened: {error}") from None
    except (ConfigError, UnknownName) as error:
        raise CheckpointError(f"{path} was written by another version, or changed: {error}") from None
    load_exactly(method, state["method"], path)  # type: ignore[arg-type]
    return _ready(method, path)


def _ready(method: Method, path: Path) -> Method:
    """`method` in eval mode. CheckpointError if its values are not finite."""
    module: nn.Module = method  # type: ignore[assignment]
    module.eval()
    check_finite(module, path)
    return method


def load_backbone(
    run: str | Path,
    *,
    name: str | None = None,
    heads: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Backbone:
    """A backbone in eval mode, ready for `backbone(backbone.preprocess(images))`; its parameters are trainable.

    As after `timm.create_model`, a forward pass keeps what a backward pass needs: call it under
    `torch.inference_mode()` where nothing is trained, and call `backbone.train()` where it is.

    Args:
        run: run folder, our .ckpt, .safetensors or export for timm, or an authors' file, whose family is recognized by
            its keys and printed to standard error (`facessl/pretrained/families/`), with guessed settings; or
            `timm:NAME`, a network of timm with its pre-trained weights (downloads once) and their mean, std and image
            size; `timm:NAME?pretrained=false&seed=0` has random weights.
        name: of the timm model whose weights an authors' file holds, if they are of no family.
        heads: attention heads of an authors' ViT: no shape depends on them.
        mean, std: normalization that an authors' file wants, RGB in 0..1.

    Raises:
        CheckpointError: missing, damaged, of no known kind, or with keys that do not match (they are named).
        UnknownName: timm has no such model.
        ConfigError: heads that the network cannot have, any of these for a network that knows them, or pre-trained
            weights that cannot be downloaded.
    """
    return open_backbone(run, name=name, heads=heads, mean=mean, std=std)[0]


def load_frozen(run: str | Path) -> Backbone:
    """A backbone in eval mode that no optimizer changes, such as a teacher; errors as for `load_backbone`."""
    return load_backbone(run).requires_grad_(False)


def open_backbone(run: str | Path, **given: Any) -> tuple[Backbone, Origin | None]:
    """The backbone as `load_backbone` gives it, and what an authors' file was taken for (None for our own)."""
    path = Path(run)
    given = {key: value for key, value in given.items() if value is not None}
    files = weight_files(run)
    origin, backbone = None, None
    if str(run).startswith(TIMM):
        backbone = _from_timm(str(run))
    elif file := files.get("backbone"):
        backbone = from_export(file, *checkpoint.read_safetensors(file))
    elif file := files.get("authors"):
        backbone, origin = _from_authors(file, checkpoint.read_safetensors(file)[0], given)
    elif "task" in files and path.is_file():
        raise CheckpointError(f"{run} is a fine-tuned task: name its run folder, or the backbone.safetensors in it")
    elif path.is_dir():
        backbone = load_method(path).backbone
    else:
        state = checkpoint.read(path)
        if state.get("format") == checkpoint.FORMAT:
            backbone = _own_method(path, state).backbone
        else:
            backbone, origin = _from_authors(path, state, given)
    if given and origin is None:
        raise ConfigError(f"{run} knows its network and normalization itself: leave out {', '.join(given)}")
    backbone.requires_grad_(True)  # a method may have left tables of its backbone fixed
    check_finite(backbone, path)
    return backbone.eval(), origin


def _from_timm(text: str) -> Backbone:
    """The network that `timm:NAME?option=value` names."""
    name, _, query = text.removeprefix(TIMM).partition("?")
    options = {"pretrained": "true", "seed": "0"} | dict(parse_qsl(query, keep_blank_values=True))
    valid = (
        len(options) == 2
        and options["pretrained"] in ("true", "false")
        and re.fullmatch(r"[0-9]{1,18}", options["seed"])
    )
    if not valid:
        raise ConfigError(
            f"{text} is not a network of timm: write timm:NAME, or timm:NAME?pretrained=false&seed=0 for random weights"
        )
    size = pretrained_settings(name).image_size
    with torch.random.fork_rng(devices=[]):  # the same weights in every process and after every resume
        torch.manual_seed(int(options["seed"]))
        return Backbone(name, image_size=size, pretrained=options["pretrained"] == "true")


def card(method: Method, config: PretrainConfig, *, steps: int, commit: str) -> dict[str, Any]:
    """Content of `backbone.json`: all that is needed to use the weights."""
    origin = published(located({"method": config.method, "source": config.source}))
    return backbone_card(method.backbone, **origin, steps=steps, commit=commit)


def backbone_card(
    backbone: Backbone, *, method: Mapping[str, Any], source: str, steps: int | None, commit: str
) -> dict[str, Any]:
    """The card of any backbone; `steps` is None if they are not known."""
    return {
        "format": "facessl-backbone-1",
        "timm_name": backbone.name,
        "timm_options": dict(backbone.timm_options),
        "num_features": backbone.num_features,
        "image_size": backbone.image_size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        **RESIZE,
        "pooling": backbone.pooling,
        "method": dict(method),
        "source": source,
        "steps": steps,
        "commit": commit,
    }


def _from_authors(path: Path, state: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Backbone, Origin]:
    """The backbone of an authors' file, with `given` as of `load_backbone`."""
    backbone: Backbone
    if name := given.get("name"):
        try:
            backbone = build_named(dict(state), name)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}; name the model that it was saved from, or get it again") from None
        tagged = "." in name
        guessed = {} if tagged else {key: f"timm's {name} {key}" for key in ("mean", "std")}
        family, authors = "timm", f"timm's {name}"
    else:
        module, prefix, state = family_of(path, state)
        backbone = _read_by(module, module.build_backbone, path, state)
        guessed = module.guessed(state, backbone) if hasattr(module, "guessed") else {}
        family, authors = _name(module), module.FAMILY + (f" below {prefix}" if prefix else "")
    backbone = _with_settings(backbone, given)
    origin = Origin(family, authors, {key: words for key, words in guessed.items() if key not in given})
    _print_origin(path, origin, backbone, given)
    return backbone, origin


def _with_settings(backbone: Backbone, given: Mapping[str, Any]) -> Backbone:
    """Apply the given attention heads and normalization."""
    if (heads := given.get("heads")) is not None:
        if not hasattr(backbone.model, "blocks") or not hasattr(backbone.model.blocks[0], "attn"):
            raise ConfigError(f"heads = {heads} is for ViTs and this file holds a {backbone.name}: leave it out")
        if heads < 1 or backbone.num_features % heads:
            raise ConfigError(
                f"heads = {heads} do not divide the {backbone.num_features} channels of this ViT: give a divisor"
            )
        backbone = with_options(backbone, {"num_heads": heads})
    for key in ("mean", "std"):
        if key in given:
            backbone.set_normalization(**{"mean": backbone.mean, "std": backbone.std, key: given[key]})
    return backbone


def _name(family: Any) -> str:
    name: str = family.__name__.rsplit(".", 1)[-1]
    return name


def _read_by(family: Any, build: Callable[..., Any], path: Path, state: Mapping[str, Any]) -> Any:
    """Call `build` of a family; CheckpointError says what to do with a file that does not fit."""
    try:
        return build(state)
    except CheckpointError as error:
        fix = "use the file as its authors published it"
        if _name(family) in ("timm", "torchvision"):
            fix = _name_hint(path, state) + ", else get the file again"
        raise CheckpointError(f"{path}: {error}; {fix}") from None


def _name_hint(path: Path, state: Mapping[str, Any]) -> str:
    name = state["arch"] if isinstance(state.get("arch"), str) else "NAME"
    return (
        f"if it holds another model of timm, name that: `facessl convert {path} --name {name}`, or "
        f"load_backbone(FILE, name={name!r})"
    )


def family_of(path: Path, state: Mapping[str, Any]) -> tuple[Any, str, Mapping[str, Any]]:
    """The module of `facessl/pretrained/families` whose checkpoint `state`, read from `path`, is or holds.

    With the prefix below which it holds its network (`weights.networks`), and what is below it. CheckpointError: none.
    """
    known = plugins.names("pretrained.families")
    for prefix, part in networks(state):
        for name in known:
            family = plugins.module("pretrained.families", name)
            if family.matches(part):
                return family, prefix, part
    keys = ", ".join(map(str, list(tensors(state) or state)[:4])) or "none"
    raise CheckpointError(
        f"{path} is of no known kind (families: {', '.join(known)}; its first keys: {keys}): {_name_hint(path, state)}"
    )


def _print_origin(path: Path, origin: Origin, backbone: Backbone, given: Mapping[str, Any]) -> None:
    """Print the recognized family of a file and the guessed settings to standard error."""
    options = ", ".join(f"{key} {value}" for key, value in backbone.timm_options.items())
    network = f"{backbone.name}{f' ({options})' if options else ''} at {backbone.image_size} px"
    text = f"{path.name}: a checkpoint of {origin.authors}, {network}"
    if origin.guessed:
        words = dict(origin.guessed)
        if {"mean", "std"} <= words.keys():
            words["mean"] = f"{words['mean']} and {words.pop('std').rsplit(' ', 1)[-1]}"
        flags = [f"--{key} {'N' if key == 'heads' else repr('[R, G, B]')}" for key in origin.guessed]
        flags = [f"--{key} {given[key]}" for key in ("name", "heads") if key in given] + flags
        text += (
            f"; guessed: {', '.join(words.values())}; where they are others: "
            f"`facessl convert {path} {' '.join(flags)}`, or the same of load_backbone"
        )
    print(text, file=sys.stderr, flush=True)


def checkpoint_of(path: Path) -> Path:
    """The newest checkpoint of a run folder; a file is itself. Raises CheckpointError if there is none."""
    if path.is_file():
        return path
    last = path / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise CheckpointError(f"{path} holds no checkpoints/last.ckpt: give a run folder of `facessl pretrain`")
    return last
