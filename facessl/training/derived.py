"""Every number of a run that follows from its configuration and its images, and what is said about them."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from facessl.config.finetune import FinetuneConfig
from facessl.config.pretrain import PretrainConfig
from facessl.core.errors import ConfigError, many
from facessl.models.backbone import Backbone
from facessl.training.optimizers import schedule

#: Views of at most so many pixels do not need the heads that protocols for 448 px publish.
SMALL = 128
#: A batch that nobody asked for is at most a quarter of the training images, but not below 8 of them.
_DEFAULT_BATCH_DIVISOR, _SMALLEST_DEFAULT_BATCH = 4, 8
#: A warm-up that nobody asked for is at most a fifth of the run.
_WARMUP_DIVISOR = 5


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run, all in optimizer steps."""

    total_steps: int  # length of the schedule
    steps_per_epoch: int | None  # None where the source has no length
    batch_size: int  # the global batch size, images of one step over all ranks
    learning_rate: Callable[[int], float]  # step -> learning rate
    accumulate: int = 1  # micro-batches per step
    clip_grad: float = 0.0  # largest gradient norm, 0 = no clipping
    # log_every, checkpoint_every, monitor_every: steps; 0 = never (checkpoint: only the last). The first step is always
    # logged.
    log_every: int = 20
    checkpoint_every: int = 500
    monitor_every: int = 500
    max_seconds: float | None = None  # stop with a checkpoint after so long; None = never
    most_unreadable: int | None = None  # unreadable images above which the run stops; None = no limit
    peak: float = 0.0  # largest learning rate, reached after `warmup_steps`
    warmup_steps: int = 0


def derive(config: PretrainConfig | FinetuneConfig, images: int | None) -> Plan:
    """The plan of a configuration with a batch size, for so many training images; None: a stream without a length.

    Raises:
        ConfigError: a batch larger than the source, no length to derive the schedule from, or a warm-up longer than
            the run that was asked for; a recipe's is then a fifth of the run.
    """
    batch, epochs = config.batch_size, config.optim.warmup_epochs
    assert batch is not None
    per_epoch = None if images is None else images // batch
    if per_epoch == 0:
        raise ConfigError(
            f"batch size {batch} is larger than {config.source} with its {images} images to train on: "
            f"use --batch-size {images} or less"
        )
    if config.max_steps is None and per_epoch is None:
        raise ConfigError(f"{config.source} is a stream without a length: say how long with --max-steps")
    total = config.max_steps or config.epochs * (per_epoch or 0)
    if epochs is None:
        warmup = min(10 * per_epoch if per_epoch else total, total // _WARMUP_DIVISOR)
    elif epochs and per_epoch is None:
        raise ConfigError(
            f"optim.warmup_epochs = {epochs} cannot be counted on the stream {config.source}: "
            "use --optim.warmup-epochs null (a fifth of the run) or 0"
        )
    else:
        warmup = round(epochs * (per_epoch or 0))
    if warmup > total and _asked_warmup(config):
        raise ConfigError(
            f"optim.warmup_epochs = {epochs:g} is {warmup} steps, but the run has {total}: use "
            f"--optim.warmup-epochs {total // _WARMUP_DIVISOR / (per_epoch or 1):.2g} or less, or train longer"
        )
    warmup = total // _WARMUP_DIVISOR if warmup > total else warmup
    peak = config.optim.peak(batch)
    if isinstance(config, PretrainConfig):
        accumulate, measured = config.accumulate, config.monitor.every
    else:
        accumulate = 1
        measured = 0 if config.select == "last" else max(1, round(config.eval_every * (per_epoch or 0)))
    return Plan(
        total_steps=total,
        steps_per_epoch=per_epoch,
        batch_size=batch,
        peak=peak,
        warmup_steps=warmup,
        learning_rate=schedule(
            config.optim, peak=peak, warmup_steps=warmup, total_steps=total, steps_per_epoch=per_epoch
        ),
        accumulate=accumulate,
        clip_grad=config.clip_grad,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        monitor_every=measured,
        max_seconds=config.max_minutes * 60 if config.max_minutes else None,
        most_unreadable=None if images is None else math.ceil(config.max_bad * images),
    )


def _asked_warmup(config: PretrainConfig | FinetuneConfig) -> bool:
    return not config.explicit.isdisjoint(("optim", "optim.warmup_epochs"))


def default_batch(images: int | None, ranks: int, device: str) -> int:
    """Images of a pre-training step where nobody asked for a number: what fits the device, at most the source."""
    wanted = 256 * ranks if device == "cuda" else 32
    return max(1, min(wanted, wanted if images is None else images) // ranks) * ranks


def settle(config: FinetuneConfig, images: int, world_size: int = 1) -> tuple[FinetuneConfig, list[str]]:
    """The configuration with the defaults that are too large for `images` training images, and a sentence on each.

    Defaults are those of the published protocols, whose training sets have thousands of images. What was asked for
    (`FinetuneConfig.explicit`) is never changed.
    """
    notes = []
    batch = config.batch_size
    if "batch_size" not in config.explicit:
        most = max(images // _DEFAULT_BATCH_DIVISOR, min(images, _SMALLEST_DEFAULT_BATCH))
        batch = min(batch, max(most // world_size, 1) * world_size)
        if batch < config.batch_size:
            notes.append(
                f"batch size {batch} instead of the protocol's {config.batch_size}, as there are {images} images to "
                "train on (--batch-size sets it)"
            )
    per_epoch = images // batch
    most, epochs = (config.max_steps or config.epochs * per_epoch) // _WARMUP_DIVISOR, config.optim.warmup_epochs
    steps = round(epochs * per_epoch)
    if steps > most and not _asked_warmup(config):
        epochs = most / per_epoch
        notes.append(
            f"{many(most, 'step')} of warm-up, at most a fifth of the run, instead of the protocol's {steps} "
            "(--optim.warmup-epochs sets it)"
        )
    optim = dataclasses.replace(config.optim, warmup_epochs=epochs)
    return dataclasses.replace(config, batch_size=batch, optim=optim), notes


def shorter_warmup(config: PretrainConfig, plan: Plan) -> str:
    """What is said behind the warm-up of a run that is too short for it."""
    epochs = config.optim.warmup_epochs
    asked = 10 if epochs is None else epochs
    if plan.warmup_steps >= round(asked * (plan.steps_per_epoch or plan.total_steps)):
        return ""
    usual = f"{'default' if epochs is None else 'recipe'}: {asked:g} epoch{'' if asked == 1 else 's'}"
    return f" ({usual}, but at most a fifth of the run; --optim.warmup-epochs sets it)"


def size_reason(config: FinetuneConfig, own: int | None) -> str:
    """Why the views have their size, for the start line; `own` is the size that the backbone was trained at, if any."""
    size = config.image_size
    if size is None:
        return "the backbone's own" if own is not None else "the default"
    why = "as it was" if config.resume else "asked for" if "image_size" in config.explicit else "the protocol's"
    if own in (None, size):
        return why
    return f"{why}; the backbone was trained at {own} px, and --image-size {own} keeps that"


def cheaper_hint(task: Any, device: str) -> str | None:
    """What makes a task with small views quicker on a CPU (`Task.cheaper`); None where there is nothing to say."""
    backbone: Backbone = task.backbone
    if device != "cpu" or backbone.image_size > SMALL or not hasattr(task, "cheaper"):
        return None
    values: dict[str, Any] = task.cheaper(backbone.image_size)
    flags = " ".join(f"--task.{name.replace('_', '-')} {value}" for name, value in values.items())
    return f"hint: on a CPU a step is much quicker with {flags}, enough for {backbone.image_size} px" if flags else None
