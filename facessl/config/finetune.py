"""Configuration of a fine-tuning run: what `facessl finetune` takes, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from facessl.config.run import BackboneConfig, plain
from facessl.core.errors import ConfigError


@dataclass(frozen=True)
class TuneOptim:
    """Optimiser of a fine-tuning run and its schedule.

    Attributes:
        name: adamw, adam or sgd.
        lr: peak learning rate of every parameter that `lrs` does not name; used as it is, never scaled.
        lrs: learning rate by the module's name in the task (`backbone`, `head`, `head.classifier`); the longest that
            fits counts, e.g. `{head: 0.001, head.classifier: 0.01}`.
        layer_decay: the backbone's stages have lr * layer_decay^depth, depth counted from its end; 1: all alike.
        weight_decay: of every parameter, as FRA's and FaRL's released scripts have it; see `decay_norms`.
        decay_norms: false spares biases, norms and other one-dimensional parameters.
        betas: of adamw and adam.
        momentum: of sgd.
        schedule: cosine (to `final_lr`), step (times `gamma` at each of `milestones`), exponential (times `gamma`
            after each epoch) or constant.
        warmup_epochs: linear warm-up; a default is at most a fifth of the run.
        milestones: epochs of `step`.
        gamma: factor of `step` and `exponential`.
        final_lr: learning rate at the end of `cosine`.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 2e-4
    lrs: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    decay_norms: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    schedule: Literal["cosine", "step", "exponential", "constant"] = "cosine"
    warmup_epochs: float = 5
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    final_lr: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("lr", "layer_decay", "weight_decay", "momentum", "warmup_epochs", "gamma", "final_lr"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"optim.{name} = {getattr(self, name)} is out of range: give 0 or more")
        if not self.lr > 0:
            raise ConfigError(
                "optim.lr = 0 would train nothing, as every rate is taken relative to it: give a positive number, and "
                "hold a part still with optim.lrs, e.g. {backbone: 0}, or with --frozen"
            )
        for part, rate in self.lrs.items():
            if not rate >= 0:
                raise ConfigError(f"optim.lrs.{part} = {rate} is out of range: give 0 or more")
        if self.layer_decay > 1:
            raise ConfigError(f"optim.layer_decay = {self.layer_decay} is out of range: give a number from 0 to 1")


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run.

    A partial last batch of an epoch is left out, where the released FRA, EAC and FaRL train on it.

    Attributes:
        run: what is fine-tuned: run folder, checkpoint, exported backbone, or `none` for random weights.
        source: labelled images, `NAME:PATH?option=value`, always to be named; its own training, validation and test
            parts are used.
        out: run folder; null: runs/<task>-<backbone>, numbered where taken.
        protocol: finetune, eac or star (`facessl list protocols`): which published settings are the defaults.
        test: another source as the test part.
        val: another source as the validation part.
        val_share: fraction of the training images that becomes the validation part where there is none.
        labels: how many of the training labels are used: all, a percentage (`10%`) or a number (`25-per-class`).
        select: which weights are kept: the best on the validation part (val), the last ones (last, then no image is
            set apart), or the best on the test part (test, only to mirror a published number that did so).
        image_size: side of the views in pixels; null: the backbone's. The tasks' published protocols have their own.
        batch_size: images of one optimiser step over all ranks; a default is at most a quarter of the training part.
        epochs: passes over the training part.
        max_steps: optimiser steps instead of epochs.
        max_minutes: stop with a checkpoint after so many minutes of this process.
        eval_every: epochs between measurements on the part that `select` names.
        frozen: keep the backbone as it is, in evaluation mode (linear probing on augmented images).
        ema: momentum of the average of the weights that is evaluated and kept; 0: none.
        ema_ramp: a lower momentum at the start, (1 + t) / (10 + t) at update t: a short run would otherwise stay near
            its first weights. FaRL's and STAR's momentum is constant, and their recipes set false.
        balanced: draw the classes equally often.
        precision: of the forward pass; losses stay in float32.
        seed: random seed of the head's weights, the order of the images, the augmentation and the choice of labels.
        workers: loader processes per rank; null: the cores of this rank minus one, at most 8.
        device: auto, cpu, cuda or mps.
        sync_batch_norm: batch norm statistics over all ranks.
        channels_last: memory format of images and weights.
        clip_grad: largest gradient norm; 0: no clipping.
        resume: go on with the run in `out`.
        checkpoint_every: steps between checkpoints; 0: only the last one.
        log_every: steps between lines of metrics.csv.
        max_bad: fraction of unreadable images above which the run stops.
        augment: changes to the protocol's crop and augmentation, fields of `facessl.views.augment.Augment`, e.g.
            `{flip: 0.5, crop_scale: 1.1}`.
        backbone: the network, where `run` is none; its options also change a trained one that keeps its weights, e.g.
            `{output_stride: 16}` for a finer map.
        given: names of the settings that were asked for, dotted; the others are defaults that a small training part
            or a short run lowers (`batch_size`, `optim.warmup_epochs`). No setting.
    """

    run: str = "none"
    source: str = ""
    out: str | None = None
    protocol: str = "finetune"
    test: str | None = None
    val: str | None = None
    val_share: float = 0.1
    labels: str = "all"
    select: Literal["val", "last", "test"] = "val"
    image_size: int | None = None
    batch_size: int = 32
    epochs: int = 100
    max_steps: int | None = None
    max_minutes: float | None = None
    eval_every: float = 1
    frozen: bool = False
    ema: float = 0.0
    ema_ramp: bool = True
    balanced: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    workers: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    sync_batch_norm: bool = True
    channels_last: bool = True
    clip_grad: float = 0.0
    resume: bool = False
    checkpoint_every: int = 500
    log_every: int = 20
    max_bad: float = 0.05
    augment: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    optim: TuneOptim = field(default_factory=TuneOptim)
    task: Mapping[str, Any] = field(default_factory=lambda: {"name": "expression"})
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "epochs", "max_steps", "max_minutes", "log_every", "eval_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} = {value} is out of range: give a positive number")
        for name in ("checkpoint_every", "clip_grad", "seed", "workers"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} = {value} is out of range: give 0 or more")
        for name, top in (("max_bad", 1.0), ("ema", 1.0), ("val_share", 0.9)):
            if not 0 <= getattr(self, name) <= top:
                raise ConfigError(f"{name} = {getattr(self, name)} is out of range: give a number from 0 to {top:g}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (str, int, float, bool, list, dict), as `config.yaml` holds them."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        del values["given"]
        return values
