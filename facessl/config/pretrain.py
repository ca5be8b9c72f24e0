"""Configuration of a pre-training run, the settings of `facessl pretrain`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from facessl.config.optim import PretrainOptim
from facessl.config.run import RunConfig, in_range
from facessl.core.errors import ConfigError
from facessl.views.spec import View


@dataclass(frozen=True)
class MonitorConfig:
    """Measurements during training, which they do not change.

    Attributes:
        every: steps between measurements; 0: none.
        images: images of the training source for embedding spread and region usage.
        knn: labeled source for k-NN accuracy (`folder:/data/faces`); null: none.
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
class PretrainConfig(RunConfig):
    """One pre-training run.

    Attributes:
        image_size: side of the views in pixels.
        batch_size: global batch size: images of one optimizer step over all ranks; null: 256 per GPU, 32 on a CPU; at
            most the source, as is a recipe's.
        accumulate: micro-batches per step; batch norm then sees one micro-batch.
        accumulate_approximate: allow it for a loss that spans the batch (negatives, Sinkhorn), which is then the mean
            of the losses of the micro-batches.
        strategy: of several ranks: ddp, a whole network on each; fsdp, parameters and optimizer spread over them, for
            networks that do not fit (with adamw). auto: ddp.
        compile: torch.compile the backbones; not for methods that leave patches out, nor with checkpointing.
        mean: of the normalization, RGB in 0..1; null: that of the pre-trained weights, if any, else the method's.
        std: of the normalization, RGB in 0..1; null: as for `mean`.
        views: augmentation; null: the method's.
    """

    source: str = "synthetic:"
    image_size: int = 224
    batch_size: int | None = None
    accumulate: int = 1
    accumulate_approximate: bool = False
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    compile: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    views: list[View] | None = None
    optim: PretrainOptim = field(default_factory=PretrainOptim)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "fra"})

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, ("accumulate",), positive=True)
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"std = {list(self.std)} is out of range: give three positive numbers")
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise ConfigError(f"batch size {self.batch_size} cannot be cut in {self.accumulate} equal micro-batches")


def unscaled_rate(config: PretrainConfig, recipe_batch: int) -> str | None:
    """A warning if the batch size is not the recipe's but the learning rate is; None otherwise."""
    optim = config.optim
    if optim.reference_batch is not None or config.batch_size in (None, recipe_batch):
        return None
    suited = optim.lr * math.sqrt((config.batch_size or 1) / recipe_batch)
    return (
        f"the recipe's learning rate is for a batch of {recipe_batch}, and with {config.batch_size} optim.lr stays "
        f"{optim.lr:g}, as reference_batch is null: --optim.lr {suited:.2g} would go with the root of the batch"
    )
