"""Run configuration: frozen dataclasses, read by jsonargparse from recipes (YAML) and flags.

Nothing rewrites a configuration after parsing. Values that follow from others (scaled learning rate, warm-up
steps) are computed once, in `derive`, and logged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from facessl import plugins
from facessl.errors import ConfigError, UnknownName
from facessl.views.spec import View


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and its schedule.

    Attributes:
        name: lars (BYOL's) or adamw.
        lr: base learning rate; 0.45 at batch 256 is 0.9 at 512, as FRA's release has it (BYOL's paper: 0.2).
        reference_batch: batch size that `lr` is meant for; the rate used is lr * batch_size / reference_batch.
            null: `lr` is used as it is.
        momentum: of LARS.
        betas: of AdamW.
        weight_decay: not applied to biases, norms and other one-dimensional parameters; 1e-6 as in FRA's release.
        trust: LARS trust coefficient eta.
        warmup_epochs: linear warm-up; null: 10 epochs, but at most a fifth of the run.
        final_lr: where the cosine ends, as a share of the peak.
    """

    name: Literal["lars", "adamw"] = "lars"
    lr: float = 0.45
    reference_batch: int | None = 256
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-6
    trust: float = 0.001
    warmup_epochs: float | None = None
    final_lr: float = 0.0


@dataclass(frozen=True)
class MonitorConfig:
    """What is measured while training; none of it changes the training.

    Attributes:
        every: steps between measurements; 0: none.
        images: images of the training source for embedding spread and region usage.
        knn: labelled source for k-NN accuracy (`folder:/data/faces`); null: none.
        knn_test: its test part; null: a `test` or `val` sub-folder, else a fifth of the images.
        knn_images: at most so many images of each part.
    """

    every: int = 500
    images: int = 256
    knn: str | None = None
    knn_test: str | None = None
    knn_images: int = 4000


@dataclass(frozen=True)
class BackboneConfig:
    """The network that is trained and shipped.

    Attributes:
        name: any timm model with a feature map.
        pretrained: start from timm's supervised weights.
        options: keywords for timm, e.g. `{output_stride: 16}` for a finer map.
    """

    name: str = "resnet50"
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunConfig:
    """One pre-training run.

    Attributes:
        source: where the images are, `NAME:PATH?option=value` or a bare path.
        out: run folder; null: runs/<method>-<backbone>, numbered where taken.
        image_size: side of the views in pixels.
        batch_size: images of one optimiser step over all ranks; null: 256 per GPU, 32 on a CPU, at most the source.
        accumulate: micro-batches per step (batch norm, Sinkhorn and ME-MAX then see one micro-batch).
        epochs: passes over the source.
        max_steps: optimiser steps instead of epochs.
        max_minutes: stop with a checkpoint after so many minutes of this process; the schedule is not shortened.
        precision: of the forward pass; losses and statistics stay in float32.
        seed: of weights, order and views.
        workers: loader processes per rank; null: the cores of this rank minus one, at most 8.
        device: auto, cpu, cuda or mps.
        sync_batch_norm: batch norm statistics over all ranks.
        channels_last: memory format of images and weights.
        compile: torch.compile the backbones.
        clip_grad: largest gradient norm; 0: no clipping.
        resume: go on with the run in `out`.
        checkpoint_every: steps between checkpoints; 0: only the last one.
        log_every: steps between lines of metrics.csv.
        max_bad: share of unreadable images above which the run stops.
        mean, std: normalisation, RGB in 0..1; null: the method's.
        views: augmentation; null: the method's.
    """

    source: str = "synthetic:"
    out: str | None = None
    image_size: int = 224
    batch_size: int | None = None
    accumulate: int = 1
    epochs: int = 50
    max_steps: int | None = None
    max_minutes: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    workers: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    sync_batch_norm: bool = True
    channels_last: bool = True
    compile: bool = False
    clip_grad: float = 0.0
    resume: bool = False
    checkpoint_every: int = 500
    log_every: int = 20
    max_bad: float = 0.05
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    views: list[View] | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "fra"})

    def __post_init__(self) -> None:
        positive = ("image_size", "accumulate", "epochs", "log_every")
        bad = [k for k in positive if getattr(self, k) < 1]
        bad += [k for k in ("batch_size", "max_steps", "max_minutes") if (v := getattr(self, k)) is not None and v <= 0]
        bad += [k for k in ("checkpoint_every", "clip_grad", "seed") if getattr(self, k) < 0]
        bad += ["workers"] if self.workers is not None and self.workers < 0 else []
        if bad:
            raise ConfigError(f"{bad[0]} = {getattr(self, bad[0])} is out of range: give a positive number")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad = {self.max_bad} is no share: give a number from 0 to 1")
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise ConfigError(f"batch size {self.batch_size} cannot be cut in {self.accumulate} equal micro-batches")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (str, int, float, bool, list, dict), as `config.yaml` holds them."""
        return _plain(dataclasses.asdict(self))


#: Settings that may differ between the two halves of a resumed run: they do not change what is learned.
FREE_ON_RESUME = frozenset(
    {
        "resume",
        "out",
        "workers",
        "device",
        "checkpoint_every",
        "log_every",
        "max_minutes",
        "monitor",
        "compile",
    }
)

_ALIAS = {"method": "method.name", "backbone": "backbone.name"}


def parse(argv: Sequence[str], *, base: Mapping[str, Any] | None = None) -> RunConfig:
    """Flags (and the recipes named by `--config`) -> RunConfig; later ones win.

    Raises:
        ConfigError, UnknownName: one sentence with the value and the nearest valid name.
        SystemExit: after `--help` or `--print_config`.
    """
    values: dict[str, Any] = dict(base or {})
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and key == "config":
            values = _merge(values, read_recipe(value or next(words, "")))
        elif word.startswith("--") and key in _ALIAS:
            rest += [f"--{_ALIAS[key]}", value or next(words, "")]
        elif word.startswith("--"):
            rest.append("--" + key.replace("-", "_") + word[2 + len(key) :])
        else:
            rest.append(word)
    return _build(values, rest)


def print_help(argv: Sequence[str]) -> None:
    """Print every flag of `facessl pretrain`, with those of the method named in `argv`."""
    words = [w.replace("--method=", "--method.name=") for w in argv]
    name = _last_value([w if w != "--method" else "--method.name" for w in words], "--method.name") or "fra"
    _parser(plugins.find("methods", name).Args).print_help()


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """A configuration from plain values, e.g. those of a run's `config.yaml`."""
    return _build(dict(values), [])


def _build(values: dict[str, Any], argv: list[str]) -> RunConfig:
    for key in _ALIAS:
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    name = _last_value(argv, "--method.name") or (values.get("method") or {}).get("name", "fra")
    parser = _parser(plugins.find("methods", name).Args)
    parser.set_defaults({"method.name": name})
    known = {a.dest for a in parser._actions}
    argv = with_true(argv, parser)
    for flag in (w.removeprefix("--").partition("=")[0] for w in argv if w.startswith("--")):
        if flag not in known and flag.split(".")[0] not in ("views", "help"):
            raise UnknownName("option", "--" + flag.replace("_", "-"), _options(known, "--"))
    for key in flatten(values):
        if key not in known and not key.startswith(("views", "backbone.options.")):
            raise UnknownName("setting", key, _options(known, ""))
    try:
        defaults = parser.parse_object(values, defaults=True) if values else parser.get_defaults()
        parsed = parser.parse_args(argv, namespace=defaults) if argv else defaults
        parsed = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ConfigError(readable(error)) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(readable(error)) from None
    fields = _fields(parsed)
    return RunConfig(**fields | {"source": fields["source"] or values.get("source") or RunConfig.source})


def _parser(method_args: type[Any]) -> ArgumentParser:
    parser = ArgumentParser(
        prog="facessl pretrain", exit_on_error=False, description=(RunConfig.__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", nargs="?", default=None, help="NAME:PATH?option=value, or a path")
    parser.add_argument("--config", help="recipe (YAML file, or a name of `facessl list recipes`)")
    parser.add_argument(
        "--method.name", default="fra", help=f"one of {', '.join(plugins.names('methods'))}; also --method"
    )
    parser.add_class_arguments(method_args, "method", instantiate=False)
    parser.add_class_arguments(RunConfig, skip={"source", "method"}, as_group=False)
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    return parser


def _fields(parsed: Namespace) -> dict[str, Any]:
    values = {f.name: parsed[f.name] for f in dataclasses.fields(RunConfig) if f.name != "method"}
    arguments = dict(vars(parsed["method"]))
    name = arguments.pop("name")
    checked = plugins.find("methods", name).Args(**arguments)
    return values | {"method": {"name": name, **dataclasses.asdict(checked)}}


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by path or by its shipped name (`fra/vggface2-r50`, with or without `recipes/` and `.yaml`).

    Its key `base` names a recipe that it changes; everything else is a field of `RunConfig`.
    """
    path = Path(name)
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    shipped = Path(str(resources.files("facessl"))) / "recipes" / f"{short}.yaml"
    chosen = path if path.is_file() else shipped
    if not chosen.is_file():
        raise UnknownName("recipe", name, recipes())
    try:
        values = yaml.safe_load(chosen.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{chosen} is no valid YAML: {_one_line(str(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{chosen} holds no settings: write `key: value` lines")
    base = values.pop("base", None)
    return _merge(read_recipe(str(base)), values) if base else values


def recipes() -> tuple[str, ...]:
    """Names of the recipes shipped with the package."""
    root = Path(str(resources.files("facessl"))) / "recipes"
    return tuple(sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml")))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which two configurations (plain dicts) would train differently, as `key: old -> new`."""
    a, b = flatten(old), flatten(new)
    keys = sorted(k for k in a.keys() | b.keys() if k.split(".")[0] not in FREE_ON_RESUME)
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in keys if a.get(k) != b.get(k)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = _merge(out[key], value)
        else:
            out[key] = value
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _options(known: set[str], prefix: str) -> list[str]:
    return [prefix + k.replace("_", "-") if prefix else k for k in known if k not in ("help", "config")]


def readable(error: Exception) -> str:
    """The parser's complaint in one sentence a person can act on."""
    text = _one_line(str(error))
    found = re.search(r'[Pp]arser key "([^"]+)": (.*?)(?:Got value|Given value): (.*)$', text)
    if not found:
        return text
    key, middle, value = found.groups()
    kinds = [k.strip(" .") for k in re.findall(r"Expected an? (.+?)(?= - |\. |\.$| Given|$)", middle)]
    choices = [
        re.sub(r"^(typing\.)?Literal\[(.+)\]$", r"one of \2", re.sub(r"<class '(.+?)'>", r"\1", k)) for k in kinds
    ]
    wanted = " or ".join("null" if c == "NoneType" else c for c in dict.fromkeys(choices))
    return f"{key} = {value!r} is not valid: give {wanted}"


def with_true(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """`--resume` means `--resume true`, as people expect of a switch."""
    switches = {f"--{a.dest}" for a in parser._actions if getattr(a, "_typehint", None) is bool}
    out = []
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        bare = word in switches and after.lower() not in ("true", "false", "yes", "no")
        out.append(f"{word}=true" if bare else word)
    return out


def _last_value(argv: Sequence[str], flag: str) -> str | None:
    found = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == flag]
    return found[-1] if found else None


def _one_line(text: str) -> str:
    return " ".join(text.split())
