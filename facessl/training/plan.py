"""Every number of a fine-tuning run that follows from its configuration and its images, and what is said about them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from facessl.config.finetune import FinetuneConfig
from facessl.core.errors import ConfigError, many
from facessl.models.backbone import Backbone
from facessl.training.optim import schedule
from facessl.training.trainer import Plan

#: Views of at most so many pixels do not need the heads that protocols for 448 px publish.
SMALL = 128
#: A batch that nobody asked for is at most this share of the training part, but not below so many images.
_SHARE, _FEW = 4, 8
#: A warm-up that nobody asked for is at most this share of the run.
_WARMUP = 5


def settle(config: FinetuneConfig, images: int, world_size: int = 1) -> tuple[FinetuneConfig, list[str]]:
    """The configuration with the defaults that are too large for `images` training images, and a sentence on each.

    Defaults are those of the published protocols, whose training sets have thousands of images. What was asked for
    (`FinetuneConfig.given`) is never changed.

    Raises:
        ConfigError: what was asked for is a batch larger than the training part, or a warm-up longer than the run.
    """
    notes = []
    batch = config.batch_size
    if "batch_size" not in config.given:
        most = max(images // _SHARE, min(images, _FEW))
        batch = min(batch, max(most // world_size, 1) * world_size)
        if batch < config.batch_size:
            notes.append(
                f"batch size {batch} instead of the protocol's {config.batch_size}, as there are {images} images to "
                "train on (--batch-size sets it)"
            )
    per_epoch = _per_epoch(batch, images)
    total = config.max_steps or config.epochs * per_epoch
    epochs = config.optim.warmup_epochs
    steps, most = round(epochs * per_epoch), total // _WARMUP
    if not config.given.isdisjoint(("optim", "optim.warmup_epochs")):
        if steps > total:
            raise ConfigError(
                f"optim.warmup_epochs = {epochs:g} is {steps} steps, but the run has {total}: use "
                f"--optim.warmup-epochs {most / per_epoch:.2g} or less, or train longer"
            )
    elif steps > most:
        epochs = most / per_epoch
        notes.append(
            f"{many(most, 'step')} of warm-up, at most a fifth of the run, instead of the protocol's {steps} "
            "(--optim.warmup-epochs sets it)"
        )
    optim = dataclasses.replace(config.optim, warmup_epochs=epochs)
    return dataclasses.replace(config, batch_size=batch, optim=optim), notes


def derive(config: FinetuneConfig, images: int) -> Plan:
    """The plan of a settled configuration for `images` training images. Raises ConfigError as `settle`."""
    per_epoch = _per_epoch(config.batch_size, images)
    total = config.max_steps or config.epochs * per_epoch
    every = max(1, round(config.eval_every * per_epoch))
    return Plan(
        total_steps=total,
        steps_per_epoch=per_epoch,
        batch_size=config.batch_size,
        peak=config.optim.lr,
        warmup_steps=min(round(config.optim.warmup_epochs * per_epoch), total),
        learning_rate=schedule(config.optim, total_steps=total, steps_per_epoch=per_epoch),
        clip_grad=config.clip_grad,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        monitor_every=0 if config.select == "last" else every,
        max_seconds=config.max_minutes * 60 if config.max_minutes else None,
        max_bad=math.floor(config.max_bad * images),
    )


def _per_epoch(batch: int, images: int) -> int:
    if images < batch:
        raise ConfigError(
            f"batch size {batch} is larger than the training part with its {images} images: "
            f"use --batch-size {images} or less"
        )
    return images // batch


def size_reason(config: FinetuneConfig, own: int | None) -> str:
    """Why the views have the size that they have, for the start line.

    Args:
        config: of the run.
        own: image size that the backbone was trained at; None for random weights.
    """
    size = config.image_size
    if size is None:
        return "the backbone's own" if own is not None else "the default"
    why = "as it was" if config.resume else "asked for" if "image_size" in config.given else "the protocol's"
    if own in (None, size):
        return why
    return f"{why}; the backbone was trained at {own} px, and --image-size {own} keeps that"


def cheaper_hint(task: Any, device: str) -> str | None:
    """What makes a task with small views quicker on a CPU; None where there is nothing to say.

    A task that can be cheaper says how with `cheaper(image_size)`, settings and the values that suit these views.
    """
    backbone: Backbone = task.backbone
    if device != "cpu" or backbone.image_size > SMALL or not hasattr(task, "cheaper"):
        return None
    values: dict[str, Any] = task.cheaper(backbone.image_size)
    flags = " ".join(f"--task.{name.replace('_', '-')} {value}" for name, value in values.items())
    return f"hint: on a CPU a step is much quicker with {flags}, enough for {backbone.image_size} px" if flags else None
