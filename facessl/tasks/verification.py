"""Verification: whether two images show one person, by the angle between their embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.errors import ConfigError, DataError
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.data.face_square import Frame
from facessl.data.source import Source
from facessl.data.subset import Subset
from facessl.metrics.verification import cosine, thresholds, verification
from facessl.models.backbone import Backbone
from facessl.tasks.base import Collected, Example, Examples, Labels, Predictions, headline
from facessl.views.augment import FRA_ATTRIBUTES, Augment


@dataclass(frozen=True)
class VerificationArgs:
    """Settings of the verification task.

    Attributes:
        dim: D, width of the embedding behind the backbone; 0: the backbone's own embedding is compared.
        margin: of CosFace, taken off the cosine of the right person.
        scale: of CosFace, the length of embeddings and class centers.
    """

    dim: int = 512
    margin: float = 0.35
    scale: float = 64.0

    def __post_init__(self) -> None:
        if self.dim < 0 or self.margin < 0 or self.scale <= 0:
            raise ConfigError(
                f"task.dim = {self.dim} (0 or more), task.margin = {self.margin} (0 or more) or "
                f"task.scale = {self.scale} (above 0) is out of range"
            )


class Verification(nn.Module):
    """Person by person classification with a margin (CosFace: Wang et al., CVPR 2018, Eq. 4), compared by cosine.

    Training needs images with identities; the test part needs pairs (LFW, `pairs-csv`). FRA and MCF publish no
    verification protocol; the values are CosFace's own.
    """

    Args: ClassVar[type[VerificationArgs]] = VerificationArgs
    needs: ClassVar[frozenset[str]] = frozenset({"identity"})
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "finetune": {
            **{"image_size": 112, "batch_size": 256, "epochs": 30, "select": "last"},
            "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 1, "final_lr": 0.0},
        }
    }
    augments: ClassVar[Mapping[str, Augment]] = {"finetune": FRA_ATTRIBUTES}

    def __init__(self, backbone: Backbone, labels: Labels, **values: Any) -> None:
        """`values` are fields of `VerificationArgs`. DataError: fewer than two persons in the training images."""
        super().__init__()
        self.args = args = VerificationArgs(**values)
        if labels.identities < 2:
            raise DataError(f"a verification task needs two or more persons, and the source has {labels.identities}")
        self.backbone = backbone
        width = args.dim or backbone.num_features
        project = (nn.Linear(backbone.num_features, width, bias=False), nn.BatchNorm1d(width, affine=False))
        self.head = nn.Sequential(*project) if args.dim else nn.Identity()
        self.centers = nn.Linear(width, labels.identities, bias=False)

    def _embed(self, x: Tensor) -> Tensor:
        return F.normalize(at_least_float32(self.head(self.backbone(x))), dim=1)

    def step(self, batch: Batch, progress: Progress) -> Step:
        """CosFace loss of the first view; logs `margin_softmax`."""
        assert batch.identity is not None
        z = self._embed(batch.views[0])  # (B, D)
        with full_precision(z):
            cosines = z @ F.normalize(self.centers.weight, dim=1).T  # (B, P)
        own = F.one_hot(batch.identity, cosines.shape[1]) * self.args.margin
        loss = F.cross_entropy(self.args.scale * (cosines - own), batch.identity)
        return Step(loss, {"margin_softmax": loss.detach()})

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) normalized -> embeddings (B, D) of unit length, the image's and its mirror image's added."""
        return {"embeddings": F.normalize(self._embed(x) + self._embed(x.flip(3)), dim=1)}

    def meter(self, source: Source, augment: Augment) -> VerificationMeter:
        """Scores on the pairs of `source`."""
        if source.pairs is None:
            raise DataError(
                "verification is measured on pairs, and the test source has none: name lfw:PATH or pairs-csv:FILE "
                "with --test, and keep the last weights with --select last"
            )
        return VerificationMeter(source)

    def describe(self, predictions: Predictions, row: int, frame: Frame, height: int, width: int) -> dict[str, Any]:
        """The embedding."""
        return {"embedding": [round(float(v), 6) for v in predictions["embeddings"][row]]}


class VerificationMeter:
    """Ten-fold accuracy, TAR at FAR, ROC area and EER of a source's pairs."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.collected = Collected(source)

    def add(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Embeddings of one batch."""
        self.collected.add(batch, embeddings=predictions["embeddings"])

    def _compared(self) -> tuple[Subset, np.ndarray, np.ndarray, np.ndarray]:
        """The images that could be read, their pairs (P, 2), whether these show one person, and their cosines (P,)."""
        z = self.collected["embeddings"]
        read = Subset(self.source, self.collected["index"])
        assert read.pairs is not None
        assert read.same is not None
        return read, read.pairs, read.same.astype(bool), cosine(*(z[images] for images in read.pairs.T))

    def examples(self) -> Examples:
        """One answer per pair; the wrong ones by how far their cosine lies from the threshold of their fold."""
        read, pairs, same, similarity = self._compared()
        positions = read.positions[pairs]  # (P, 2) in the source
        limits = thresholds(similarity, same, read.folds)
        accepted = similarity >= limits

        def example(row: int) -> Example:
            names = ("different persons", "same person")
            label, answer = names[int(same[row])], names[int(accepted[row])]
            return Example(tuple(positions[row].tolist()), label, answer, "cosine similarity", float(similarity[row]))

        return Examples(np.where(accepted == same, np.nan, np.abs(similarity - limits)), example)

    def result(self) -> dict[str, Any]:
        """Scores with intervals; headline `accuracy`. Pairs with an unreadable image are left out."""
        read, pairs, same, similarity = self._compared()
        assert self.source.pairs is not None
        scores = verification(similarity, same, read.folds)
        return {
            "headline": headline("accuracy", scores["accuracy"], scores["accuracy_interval"]),
            **scores,
            "pairs_left_out": len(self.source.pairs) - len(pairs),
            "images": len(read),
        }
