"""Optimizers and schedules of both kinds of run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from facessl.config.run import in_range
from facessl.core.errors import ConfigError


@dataclass(frozen=True)
class PretrainOptim:
    """Optimizer of a pre-training run and its schedule.

    Attributes:
        name: lars (BYOL's) or adamw; each has its own default of lr and weight_decay.
        lr: base learning rate; with lars 0.45 at batch 256, which is 0.9 at 512, as FRA's release has it (BYOL's
            paper: 0.2), with adamw 1.5e-4, MAE's, unless the method has its own.
        reference_batch: batch size that `lr` is meant for; the rate used is lr * batch_size / reference_batch.
            null: `lr` is used as it is.
        momentum: of LARS.
        betas: of AdamW.
        weight_decay: not applied to biases, norms and other one-dimensional parameters; with lars 1e-6, as in FRA's
            release, with adamw 0.05, MAE's, unless the method has its own.
        trust: LARS trust coefficient eta.
        warmup_epochs: linear warm-up; null: 10 epochs, but at most a fifth of the run.
        final_lr: where the cosine ends, as a fraction of the peak.
    """

    schedule: ClassVar[str] = "cosine"
    #: Optimizer -> its defaults where they are not the values below.
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"adamw": {"lr": 1.5e-4, "weight_decay": 0.05}}

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
        names = ("lr", "momentum", "weight_decay", "trust", "warmup_epochs", "final_lr", "reference_batch")
        in_range(self, names, part="optim.")
        if self.momentum >= 1 or any(not 0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.momentum = {self.momentum} and optim.betas = {self.betas} must be below 1")

    def peak(self, batch_size: int) -> float:
        """Largest learning rate of a run."""
        return self.lr * batch_size / self.reference_batch if self.reference_batch else self.lr

    @property
    def final_fraction(self) -> float:
        """Where the cosine ends, as a fraction of the peak."""
        return self.final_lr


@dataclass(frozen=True)
class FinetuneOptim:
    """Optimizer of a fine-tuning run and its schedule.

    Attributes:
        name: adamw, adam or sgd.
        lr: peak learning rate of every parameter that `lrs` does not name; used as it is, never scaled.
        lrs: learning rate by the module's name in the task (`backbone`, `head`, `head.classifier`); the longest that
            fits counts, e.g. `{head: 0.001, head.classifier: 0.01}`.
        layer_decay: the backbone's stages have lr * layer_decay^depth, depth counted from its end; 1: all alike.
        weight_decay: of every parameter, as FRA's and FaRL's released scripts have it; see `decay_norms`.
        decay_norms: false spares biases, norms, other one-dimensional parameters, position tables and class tokens.
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
        in_range(self, ("lr", "weight_decay", "momentum", "warmup_epochs", "gamma", "final_lr"), part="optim.")
        in_range(self, ("layer_decay",), most=1, part="optim.")
        if self.lr == 0:
            raise ConfigError(
                "optim.lr = 0 would train nothing, as every rate is taken relative to it: give a positive number, and "
                "freeze a part with optim.lrs, e.g. {backbone: 0}, or with --frozen"
            )
        for part, rate in self.lrs.items():
            if not rate >= 0:
                raise ConfigError(f"optim.lrs.{part} = {rate} is out of range: give 0 or more")

    def peak(self, batch_size: int) -> float:
        """Largest learning rate of a run, at any batch size."""
        return self.lr

    @property
    def final_fraction(self) -> float:
        """Where the cosine ends, as a fraction of the peak."""
        return self.final_lr / self.lr
