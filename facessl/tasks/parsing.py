"""Parsing: a class for every pixel of a face, by a feature pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import rank_mean
from facessl.core.errors import ConfigError, DataError, listed
from facessl.core.precision import at_least_float32
from facessl.core.types import IGNORE_INDEX, Batch, Progress, Step
from facessl.data.face_square import Frame
from facessl.data.label_fractions import class_mapping
from facessl.data.source import Source
from facessl.metrics.segmentation import ConfusionMatrix, mean_f1, parsing_scores
from facessl.models.backbone import Backbone
from facessl.models.layers.upernet import UPerNet
from facessl.tasks._dense import FARL, FARL_OPTIM, NARROW, freeze_unreached
from facessl.tasks.base import Collected, Example, Examples, Labels, Predictions, headline
from facessl.views.augment import FARL_PARSING_CELEBAM, Augment


@dataclass(frozen=True)
class ParsingArgs:
    """Settings of the parsing task.

    Attributes:
        width: channels of the head; 768 is FaRL's, 64 to 128 suit a CPU.
        dropout: fraction of the head's channels that are dropped per image.
        outside: what a view shows beyond the image counts as background, as in FaRL, or is ignored. Pixels that a mask
            itself sets to 255 are ignored either way.
    """

    width: int = 768
    dropout: float = 0.1
    outside: Literal["background", "ignored"] = "background"

    def __post_init__(self) -> None:
        if self.width < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"task.width = {self.width} (1 or more) or task.dropout = {self.dropout} (below 1) is out of range"
            )


class Parsing(nn.Module):
    """Face parsing: cross entropy of every pixel of the view, on UPerNet.

    `finetune` is FaRL's downstream protocol (Zheng et al., CVPR 2022, section 4.2, and its released configuration):
    AdamW, weight decay 1e-5, 1e-4 for the backbone, 1e-3 for the head, average of the weights with momentum 0.999,
    batch 40, 448 px, 300 epochs with a step at 200. The crop of CelebAMask-HQ is the default, that of LaPa is in its
    recipe.

    Differences: FaRL's release makes views and labels of 512 px, shrinks the views to 448 and enlarges the logits to
    512; here views and labels are cut at 448 at once, and the logits are enlarged to that.

    Attributes:
        mask_outside: class of a view's pixels outside the image in training.
    """

    Args: ClassVar[type[ParsingArgs]] = ParsingArgs
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "finetune": {**FARL, "epochs": 300, "optim": {**FARL_OPTIM, "lrs": {"head": 1e-3}}},
    }
    augments: ClassVar[Mapping[str, Augment]] = {"finetune": FARL_PARSING_CELEBAM}

    def __init__(self, backbone: Backbone, labels: Labels, **values: Any) -> None:
        """The classes are `labels.mask_names`; `values` are fields of `ParsingArgs`. DataError: fewer than two."""
        super().__init__()
        args = ParsingArgs(**values)
        self.mask_outside = IGNORE_INDEX if args.outside == "ignored" else 0
        self.width = args.width
        self.names = labels.mask_names
        if len(self.names) < 2:
            raise DataError(f"a parsing task needs two or more classes, and the source names {len(self.names)}")
        self.backbone = backbone
        freeze_unreached(backbone)
        self.head = UPerNet(
            backbone.pyramid_channels,
            backbone.pyramid_strides,
            out_channels=len(self.names),
            width=args.width,
            dropout=args.dropout,
        )

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Cross entropy of the first view; logs `cross_entropy`."""
        if batch.mask is None:
            raise DataError("the masks of a batch are missing: give every image one")
        logits = self.head(self.backbone.forward_pyramid(batch.views[0]))  # (B, C, S/4, S/4)
        full = F.interpolate(at_least_float32(logits), size=batch.mask.shape[-2:], mode="bilinear", align_corners=False)
        each = F.cross_entropy(full, batch.mask.long(), ignore_index=IGNORE_INDEX, reduction="none")  # (B, S, S)
        loss = rank_mean(each, batch.mask != IGNORE_INDEX)
        return Step(loss, {"cross_entropy": loss.detach()})

    def cheaper(self, image_size: int) -> dict[str, Any]:
        """Settings for small views."""
        return {"width": NARROW} if self.width > NARROW else {}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) normalized -> scores (B, C, S/4, S/4) of the view's area."""
        return {"scores": self.head(self.backbone.forward_pyramid(x)).float()}

    def meter(self, source: Source, augment: Augment) -> ParsingMeter:
        """Scores on `source`, in the pixels of its stored images."""
        return ParsingMeter(self.names, source, augment)

    def describe(self, predictions: Predictions, row: int, frame: Frame, height: int, width: int) -> dict[str, Any]:
        """`mask` (height, width) uint8 of the stored image, class names, and the share of each class."""
        mask = frame.inverse_mask(predictions["scores"][row], height, width)
        share = np.bincount(mask.ravel(), minlength=len(self.names)) / mask.size
        return {
            "mask": mask,
            "classes": list(self.names),
            "share": {name: round(float(s), 4) for name, s in zip(self.names, share, strict=True)},
        }


class ParsingMeter:
    """F1 per class, mean F1 without the background and mIoU from one confusion matrix in stored pixels."""

    def __init__(self, names: tuple[str, ...], source: Source, augment: Augment) -> None:
        own = tuple(source.mask_names)
        if not own:
            raise DataError(f"the test source has no masks; the classes of training are {listed(names)}")
        self.names = names
        self.training_class = np.arange(256)  # by value of a mask
        self.training_class[: len(own)] = class_mapping(own, names, "mask classes")
        if own != names:
            self.training_class[len(own) : IGNORE_INDEX] = IGNORE_INDEX - 1
        self.source = source
        self.warp = augment.warp
        self.matrix = ConfusionMatrix(len(names))
        self.collected = Collected(source)

    def add(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Predictions of one batch; the masks come from the source, in their own size."""
        assert batch.frame is not None
        size = batch.views[0].shape[-1]
        scores = predictions["scores"].cpu().numpy()
        for i, matrix, row in zip(batch.index.tolist(), batch.frame.cpu().double().numpy(), scores, strict=True):
            truth = self.source[i].mask
            assert truth is not None
            predicted = Frame(matrix, size, self.warp).inverse_mask(row, *truth.shape)
            self.matrix.update(predicted, self.training_class[truth])
        self.collected.add(batch)

    def examples(self) -> Examples:
        """One answer per image; the lower its mean F1, the worse."""
        index, scores = self.collected["index"], mean_f1(self.matrix.per_image)

        def example(row: int) -> Example:
            return Example((int(index[row]),), "", "", "mean_f1", float(scores[row]))

        return Examples(-scores, example)

    def result(self) -> dict[str, Any]:
        """Scores with intervals; headline `mean_f1`."""
        scores = parsing_scores(self.matrix, names=self.names)
        return {
            "headline": headline("mean_f1", scores["mean_f1"], scores["mean_f1_interval"]),
            **scores,
            **self.collected.breakdown({"mean_f1_per_image": mean_f1(self.matrix.per_image)}),
        }
