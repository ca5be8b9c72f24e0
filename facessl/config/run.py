"""Configuration of a pre-training run: frozen dataclasses. `config.parse` reads them from flags and recipes.

Nothing rewrites a configuration after parsing. Values that follow from others (scaled learning rate, warm-up
steps) are computed once, in `derive`, and logged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from facessl.core.errors import ConfigError
from facessl.views.spec import View, renamed


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
        final_lr: where the cosine ends, as a fraction of the peak.
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

    def __post_init__(self) -> None:
        for name in ("lr", "momentum", "weight_decay", "trust", "warmup_epochs", "final_lr", "reference_batch"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"optim.{name} = {value} is out of range: give 0 or more")
        if self.momentum >= 1 or any(not 0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.momentum = {self.momentum} and optim.betas = {self.betas} must be below 1")


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

    def __post_init__(self) -> None:
        if self.every < 0 or self.images < 2 or self.knn_images < 1:
            raise ConfigError(
                f"monitor.every = {self.every} (0 or more), monitor.images = {self.images} (2 or more) or "
                f"monitor.knn_images = {self.knn_images} (1 or more) is out of range"
            )


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
        accumulate: micro-batches per step; batch norm then sees one micro-batch.
        accumulate_approximate: allow it for a loss that spans the batch (negatives, Sinkhorn), which is then the mean
            of the losses of the micro-batches.
        epochs: passes over the source.
        max_steps: optimiser steps instead of epochs.
        max_minutes: stop with a checkpoint after this many minutes of this process; the schedule is not shortened.
        precision: of the forward pass; losses and statistics stay in float32.
        seed: random seed of the initial weights, the order of the images and the augmentation; an equal seed repeats
            the run.
        workers: loader processes per rank; null: the cores of this rank minus one, at most 8.
        device: auto, cpu, cuda or mps.
        strategy: of several ranks: ddp, a whole network on each; fsdp, parameters and optimiser spread over them, for
            networks that do not fit (with adamw). auto: ddp.
        sync_batch_norm: batch norm statistics over all ranks.
        channels_last: memory format of images and weights.
        compile: torch.compile the backbones.
        clip_grad: largest gradient norm; 0: no clipping.
        resume: go on with the run in `out`.
        checkpoint_every: steps between checkpoints; 0: only the last one.
        log_every: steps between lines of metrics.csv.
        max_bad: fraction of unreadable images above which the run stops.
        mean: of the normalisation, RGB in 0..1; null: the method's.
        std: of the normalisation, RGB in 0..1; null: the method's.
        views: augmentation; null: the method's.
        given: names of the settings that were asked for beside a recipe, dotted; a recipe's warm-up gives way to a
            short run.
    """

    source: str = "synthetic:"
    out: str | None = None
    image_size: int = 224
    batch_size: int | None = None
    accumulate: int = 1
    accumulate_approximate: bool = False
    epochs: int = 50
    max_steps: int | None = None
    max_minutes: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    workers: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
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
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        positive = ("image_size", "accumulate", "epochs", "log_every")
        bad = [k for k in positive if getattr(self, k) < 1]
        bad += [k for k in ("batch_size", "max_steps", "max_minutes") if (v := getattr(self, k)) is not None and v <= 0]
        bad += [k for k in ("checkpoint_every", "clip_grad", "seed") if getattr(self, k) < 0]
        bad += ["workers"] if self.workers is not None and self.workers < 0 else []
        if bad:
            raise ConfigError(f"{bad[0]} = {getattr(self, bad[0])} is out of range: give a positive number")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad = {self.max_bad} is out of range: give a fraction from 0 to 1")
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise ConfigError(f"batch size {self.batch_size} cannot be cut in {self.accumulate} equal micro-batches")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (str, int, float, bool, list, dict), as `config.yaml` holds them."""
        values = dataclasses.asdict(self)
        del values["given"]
        return plain(values)


#: Settings that may differ between the two halves of a resumed run: they do not change what is learned.
FREE_ON_RESUME = frozenset(
    {
        "resume",
        "out",
        "accumulate_approximate",
        "strategy",
        "workers",
        "device",
        "checkpoint_every",
        "log_every",
        "max_minutes",
        "monitor",
        "compile",
    }
)


#: Settings of earlier versions, each with the value that did nothing.
RETIRED = {"cache": "none", "cache_size": None}


def unscaled_rate(config: RunConfig, meant: int) -> str | None:
    """A sentence where `config` has another batch than `meant`, that of its recipe, and the same learning rate."""
    o = config.optim
    if o.reference_batch is not None or config.batch_size in (None, meant):
        return None
    return (
        f"batch {config.batch_size} instead of the recipe's {meant}, and optim.lr stays {o.lr:g}, as reference_batch "
        "is null: see the recipe's source for its rule and set --optim.lr (SimCLR: 0.075 times the root of the batch)"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which two configurations (plain dicts) would train differently, as `key: old -> new`."""
    a, b = (flatten(spelled(values)) for values in (old, new))
    keys = sorted(k for k in a.keys() | b.keys() if k.split(".")[0] not in FREE_ON_RESUME)
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in keys if a.get(k) != b.get(k)]


def without_retired(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run of an earlier version without those that are gone, where they did nothing.

    Raises:
        ConfigError: one of them did something.
    """
    for name, idle in RETIRED.items():
        if values.get(name, idle) not in (idle, None):
            raise ConfigError(
                f"{name} = {values[name]!r} is a setting of an earlier version: pack the images at the size that is "
                "needed (`facessl pack`) and start a new run without it"
            )
    return spelled({key: value for key, value in values.items() if key not in RETIRED})


def spelled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run or recipe, with the fields of `views` and `augment` by their present names."""
    out = dict(values)
    if isinstance(out.get("views"), (list, tuple)):
        out["views"] = [renamed(view) if isinstance(view, Mapping) else view for view in out["views"]]
    if isinstance(out.get("augment"), Mapping):
        out["augment"] = renamed(out["augment"])
    return out


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those of `over` on top."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def plain(value: Any) -> Any:
    """`value` with mappings as dicts, tuples as lists and paths as text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def one_line(text: str) -> str:
    """`text` without line breaks."""
    return " ".join(text.split())
