"""Numbers of a run derived from its configuration and its images, and notes on them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from facessl.config.finetune import FinetuneConfig
from facessl.config.pretrain import PretrainConfig
from facessl.core.errors import ConfigError, many
from facessl.core.types import Progress
from facessl.data.skipped import most_skipped
from facessl.training.optimizers import schedule

#: Largest views in pixels that do not need the heads that protocols for 448 px publish.
SMALL = 128
#: A default batch is at most a quarter of the training images, but not below 8 of them.
_DEFAULT_BATCH_DIVISOR, _SMALLEST_DEFAULT_BATCH = 4, 8
#: A default warm-up is at most a fifth of the run.
_WARMUP_DIVISOR = 5


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run, all in optimizer steps."""

    total_steps: int  # length of the schedule
    steps_per_epoch: int | None  # None if the source has no length
    batch_size: int  # the global batch size, images of one step over all ranks
    learning_rate: Callable[[int], float]  # step -> learning rate
    accumulate: int = 1  # micro-batches per step
    clip_grad: float = 0.0  # largest gradient norm, 0 = no clipping
    log_every: int = 20  # the first step is always logged
    checkpoint_every: int = 500  # 0 = only the last step
    monitor_every: int = 500  # 0 = never
    max_seconds: float | None = None  # stop with a checkpoint after this time; None = never
    most_unreadable: int | None = None  # unreadable images above which the run stops; None = no limit
    peak: float = 0.0  # largest learning rate, reached after `warmup_steps`
    warmup_steps: int = 0

    def progress(self, step: int) -> Progress:
        """Position in the run after `step` steps."""
        epoch = step // self.steps_per_epoch if self.steps_per_epoch else 0
        return Progress(step, self.total_steps, epoch, self.steps_per_epoch)


def derive(config: PretrainConfig | FinetuneConfig, images: int | None) -> Plan:
    """Derive the plan of a configuration from the number of training images; None: a stream without a length.

    Raises:
        ConfigError: a batch larger than the source, no length to derive the schedule from, or an explicit warm-up
            longer than the run; a recipe's is then a fifth of the run.
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
    if warmup > total and _has_explicit_warmup(config):
        raise ConfigError(
            f"optim.warmup_epochs = {epochs:g} is {warmup} steps, but the run has {total}: use "
            f"--optim.warmup-epochs {total // _WARMUP_DIVISOR / (per_epoch or 1):.2g} or less, or train longer"
        )
    warmup = total // _WARMUP_DIVISOR if warmup > total else warmup
    peak = config.optim.peak(batch)
    if isinstance(config, PretrainConfig):
        accumulate, monitor_every = config.accumulate, config.monitor.every
    else:
        accumulate = 1
        monitor_every = 0 if config.select == "last" else max(1, round(config.eval_every * (per_epoch or 0)))
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
        monitor_every=monitor_every,
        max_seconds=config.max_minutes * 60 if config.max_minutes else None,
        most_unreadable=None if images is None else most_skipped(config.max_bad, images),
    )


def _has_explicit_warmup(config: PretrainConfig | FinetuneConfig) -> bool:
    return not config.explicit.isdisjoint(("optim", "optim.warmup_epochs"))


def default_batch(images: int | None, ranks: int, device: str) -> int:
    """Default batch size of pre-training: what fits the device, at most the source."""
    batch = 256 * ranks if device == "cuda" else 32
    return max(1, (batch if images is None else min(batch, images)) // ranks) * ranks


def fitting_batch(config: PretrainConfig, images: int | None, ranks: int, device: str) -> tuple[int, str]:
    """Batch size of pre-training: the one asked for, a recipe's or the default; a note where a recipe's is reduced to
    the source, "" otherwise.
    """
    batch = config.batch_size
    if batch is None:
        return default_batch(images, ranks, device), ""
    if images is None or batch <= images or "batch_size" in config.explicit:
        return batch, ""
    parts = ranks * config.accumulate
    fitting = max(1, images // parts) * parts
    rate = f"; optim.lr stays {config.optim.lr:g}" if config.optim.reference_batch is None else ""
    return fitting, (
        f"batch size {fitting} instead of the recipe's {batch}, as there are {images} images to train on (--batch-size "
        f"sets it{rate})"
    )


def adapt_defaults(config: FinetuneConfig, images: int, world_size: int = 1) -> tuple[FinetuneConfig, list[str]]:
    """Reduce the defaults that are too large for `images` training images; return a note on each change.

    Defaults are those of the published protocols, whose training sets have thousands of images. Explicit settings
    (`FinetuneConfig.explicit`) are never changed.
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
    if steps > most and not _has_explicit_warmup(config):
        epochs = most / per_epoch
        notes.append(
            f"{many(most, 'step')} of warm-up, at most a fifth of the run, instead of the protocol's {steps} "
            "(--optim.warmup-epochs sets it)"
        )
    optim = dataclasses.replace(config.optim, warmup_epochs=epochs)
    return dataclasses.replace(config, batch_size=batch, optim=optim), notes


def shorter_warmup(config: PretrainConfig, plan: Plan) -> str:
    """Note on a warm-up that was shortened to the run; "" otherwise."""
    epochs, origin = config.optim.warmup_epochs, "recipe"
    if epochs is None:
        epochs, origin = 10, "default"
    if plan.warmup_steps >= round(epochs * (plan.steps_per_epoch or plan.total_steps)):
        return ""
    length = f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
    return f" ({origin}: {length}, but at most a fifth of the run; --optim.warmup-epochs sets it)"


def size_reason(config: FinetuneConfig, own: int | None) -> str:
    """Origin of the image size; `own` is the size that the backbone was trained at, if any."""
    size = config.image_size
    if size is None:
        return "the backbone's own" if own is not None else "the default"
    origin = "as it was" if config.resume else "asked for" if "image_size" in config.explicit else "the protocol's"
    if own in (None, size):
        return origin
    return f"{origin}; the backbone was trained at {own} px, and --image-size {own} keeps that"


def cheaper_hint(task: Any, device: str) -> str | None:
    """Hint at settings that make a task with small views faster on a CPU (`Task.cheaper`), if any."""
    size: int = task.backbone.image_size
    if device != "cpu" or size > SMALL or not hasattr(task, "cheaper"):
        return None
    flags = " ".join(f"--task.{name.replace('_', '-')} {value}" for name, value in task.cheaper(size).items())
    return f"hint: on a CPU a step is much quicker with {flags}, enough for {size} px" if flags else None
