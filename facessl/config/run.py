"""Settings of both kinds of run, and functions on plain values.

Nothing rewrites a configuration after parsing. Values that follow from others (scaled learning rate, warm-up steps)
are computed once, in `facessl.training.derived`, and logged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from facessl.core.errors import ConfigError
from facessl.core.values import as_text

#: Pixels of the largest view.
LARGEST = 4096
#: Settings that may differ between the two halves of a resumed run: they do not change what is learned.
FREE_ON_RESUME = frozenset(
    {"resume", "out", "accumulate_approximate", "strategy", "workers", "threads", "device", "checkpoint_every"}
    | {"log_every", "max_minutes", "monitor", "compile", "backbone.checkpointing"}
)


@dataclass(frozen=True)
class BackboneConfig:
    """The network that is trained and shipped.

    Attributes:
        name: any timm model with a feature map.
        pretrained: start from timm's supervised weights.
        options: keywords for timm, e.g. `{output_stride: 16}` for a finer map.
        checkpointing: compute activations a second time in the backward pass instead of keeping them: less memory,
            about a third more time, the same gradients; for ViTs, ResNets and what else timm can checkpoint.
    """

    name: str = "resnet50"
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False


@dataclass(frozen=True)
class RunConfig:
    """Settings of every kind of run.

    Attributes:
        source: images, `NAME:PATH?option=value` or a path.
        out: run folder; null: runs/<method or task>-<backbone>, numbered where taken.
        image_size: side of the views in pixels.
        batch_size: global batch size: images of one optimizer step over all ranks.
        epochs: passes over the training images.
        max_steps: optimizer steps instead of epochs.
        max_minutes: stop with a checkpoint after this many minutes of this process; the schedule is not shortened.
        precision: number format of the forward pass: fp32, or bf16 or fp16, which take half the memory and are faster
            on a GPU (fp16 needs one); losses and statistics stay in fp32.
        seed: random seed of the initial weights, the order of the images, the augmentation and the choice of labels;
            the same seed reproduces the run.
        threads: CPU threads that compute in this process; null: torch's choice, one per core. Results of different
            numbers differ by rounding.
        workers: loader processes per rank; null: the cores of this rank minus one, at most 8.
        device: auto, cpu, cuda or mps.
        sync_batch_norm: batch norm statistics over all ranks.
        channels_last: memory format of images and weights.
        clip_grad: largest gradient norm; 0: no clipping.
        resume: go on with the run in `out`.
        checkpoint_every: steps between checkpoints; 0: only the last one.
        log_every: steps between lines of metrics.csv.
        max_bad: fraction of unreadable images above which the run stops.
        explicit: names of the settings that were asked for, dotted: defaults give way to a small source or a short run,
            these do not. Not a setting.
    """

    source: str = ""
    out: str | None = None
    image_size: int | None = None
    batch_size: int | None = None
    epochs: int = 50
    max_steps: int | None = None
    max_minutes: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    threads: int | None = None
    workers: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    sync_batch_norm: bool = True
    channels_last: bool = True
    clip_grad: float = 0.0
    resume: bool = False
    checkpoint_every: int = 500
    log_every: int = 20
    max_bad: float = 0.05
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    explicit: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        in_range(self, ("batch_size", "epochs", "max_steps", "max_minutes", "log_every", "threads"), positive=True)
        in_range(self, ("image_size",), positive=True, most=LARGEST)
        in_range(self, ("checkpoint_every", "clip_grad", "workers"))
        in_range(self, ("seed",), most=2**32 - 1)
        in_range(self, ("max_bad",), most=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (str, int, float, bool, list, dict), as `config.yaml` holds them."""
        values: dict[str, Any] = to_plain(dataclasses.asdict(self))
        del values["explicit"]
        return values


def in_range(
    settings: Any, names: Iterable[str], *, positive: bool = False, most: float = math.inf, part: str = ""
) -> None:
    """Raise ConfigError for the first field of `settings` that is not in 0 to `most`, or not `positive`.

    None is valid if the field's type has it. `part` precedes the name in the message.
    """
    valid = "a positive number" if positive else "0 or more"
    if most < math.inf:
        valid = f"a number from {int(positive)} to {most}"
    types = {field.name: str(field.type) for field in dataclasses.fields(settings)}
    for name in names:
        value = getattr(settings, name)
        if value is None and "None" in types[name]:
            continue
        if value is None or not 0 <= value <= most or (positive and value == 0):
            raise ConfigError(f"{part}{name} = {value} is out of range: give {valid}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings in which two configurations (plain dicts) train differently, as `key: old -> new`."""
    a, b = (flatten(to_plain(values)) for values in (old, new))
    keys = sorted(k for k in a.keys() | b.keys() if not FREE_ON_RESUME & {k, k.split(".")[0]})
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in keys if a.get(k) != b.get(k)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of `base`, overridden by those of `over`."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def to_plain(value: Any) -> Any:
    """`value` with mappings as dicts, tuples as lists and path objects as text."""
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return as_text(value)


def one_line(text: str) -> str:
    """`text` without line breaks."""
    return " ".join(text.split())
