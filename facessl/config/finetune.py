"""Configuration of a fine-tuning run, the settings of `facessl finetune`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from facessl.config.optim import FinetuneOptim
from facessl.config.run import BackboneConfig, RunConfig, in_range


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """One fine-tuning run.

    A partial last batch of an epoch is left out, where the released FRA, EAC and FaRL train on it.

    Attributes:
        run: what is fine-tuned: run folder, checkpoint, exported backbone, `timm:NAME`, or `none` for random weights.
        image_size: side of the views in pixels; null: the backbone's. The tasks' published protocols have their own.
        batch_size: global batch size: images of one optimizer step over all ranks; a default is at most a quarter of
            the training part.
        epochs: passes over the training part.
        protocol: finetune, eac or star (`facessl list protocols`): which published settings are the defaults.
        test: another source as the test part.
        val: another source as the validation part.
        val_fraction: fraction of the training images that becomes the validation part where there is none.
        labels: how many of the training labels are used: all, a percentage (`10%`) or a number (`25-per-class`).
        select: which weights are kept: the best on the validation part (val), the last ones (last, then no image is
            set apart), or the best on the test part (test, only to mirror a published number that did so).
        eval_every: epochs between measurements on the part that `select` names.
        frozen: keep the backbone as it is, in evaluation mode (linear probing on augmented images).
        ema: momentum of the average of the weights that is evaluated and kept; 0: none.
        ema_ramp: a lower momentum at the start, (1 + t) / (10 + t) at update t: a short run would otherwise stay near
            its first weights. FaRL's and STAR's momentum is constant, and their recipes set false.
        balanced: draw the classes equally often.
        augment: changes to the protocol's crop and augmentation, fields of `facessl.views.augment.Augment`, e.g.
            `{flip: 0.5, crop_scale: 1.1}`.
        backbone: the network, where `run` is none; its options also change a trained one that keeps its weights, e.g.
            `{output_stride: 16}` for a finer map.
    """

    run: str = "none"
    image_size: int | None = None
    batch_size: int = 32
    epochs: int = 100
    protocol: str = "finetune"
    test: str | None = None
    val: str | None = None
    val_fraction: float = 0.1
    labels: str = "all"
    select: Literal["val", "last", "test"] = "val"
    eval_every: float = 1
    frozen: bool = False
    ema: float = 0.0
    ema_ramp: bool = True
    balanced: bool = False
    augment: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    task: Mapping[str, Any] = field(default_factory=lambda: {"name": "expression"})

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, ("eval_every",), positive=True)
        in_range(self, ("ema",), most=1)
        in_range(self, ("val_fraction",), most=0.9)
