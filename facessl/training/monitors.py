"""Measurements during pre-training, which do not change the weights or the random state."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from facessl.config.pretrain import PretrainConfig
from facessl.core.files import write_picture
from facessl.core.types import Progress
from facessl.data.source import Source
from facessl.data.splits import at_most, parts
from facessl.evaluation.protocols.knn import knn
from facessl.inference.region_pictures import region_picture, sample_images
from facessl.methods.base import has_regions
from facessl.metrics.collapse import effective_rank, embedding_std
from facessl.metrics.heatmap_statistics import (
    image_information,
    position_information,
    sharpness,
    usage_entropy,
    winning_regions,
)
from facessl.training.trainer import Monitor
from facessl.views.geometric import resize
from facessl.views.normalize import normalize

#: Images in a picture of the regions, and their side in pixels.
ROWS, CELL = 4, 64


def build(source: Source, config: PretrainConfig, folder: Path) -> dict[str, Monitor]:
    """Build the monitors of a run; each is called as `monitor(method, progress)` in eval mode without gradients.

    Fixed images of the training source give spread and region usage; pictures of regions go to `folder`.
    """
    settings = config.monitor
    squares = sample_images(source, count=settings.images, size=config.image_size)
    monitors: dict[str, Monitor] = {"spread": partial(_spread, squares), "regions": partial(_regions, squares, folder)}
    if settings.knn is not None:
        splits = parts(settings.knn, test=settings.knn_test, need_val=False)
        train, test = (at_most(part, settings.knn_images) for part in (splits.train, splits.test))
        monitors["knn"] = partial(_knn, train, test, "bf16" if config.precision == "bf16" else "fp32")
    return monitors


def _spread(squares: np.ndarray, method: Any, progress: Progress) -> dict[str, float]:
    """Standard deviation and effective rank of the embeddings of fixed images."""
    embeddings = torch.cat([method.backbone(x) for x in _batches(method, squares)]).float()  # (M, C)
    return {"embedding_std": float(embedding_std(embeddings)), "effective_rank": float(effective_rank(embeddings))}


def _regions(squares: np.ndarray, folder: Path, method: Any, progress: Progress) -> dict[str, float]:
    """Statistics of the heatmaps of fixed images, and a small picture of them."""
    if not has_regions(method):
        return {}
    maps = torch.cat([method.heatmaps(x).float() for x in _batches(method, squares)])  # (M, N, h, w)
    shown = np.stack([resize(image, CELL) for image in squares[:ROWS]])
    write_picture(folder / f"step-{progress.step:08d}.png", region_picture(shown, maps[:ROWS].cpu()))
    statistics = (usage_entropy, sharpness, winning_regions, image_information, position_information)
    return {statistic.__name__: float(statistic(maps)) for statistic in statistics}


def _knn(
    train: Source, test: Source, precision: Literal["fp32", "bf16"], method: Any, progress: Progress
) -> dict[str, float]:
    result = knn(method.backbone, train, test, k=min(20, len(train)), precision=precision, max_bad=1)
    low, high = result["accuracy_interval"]
    return {
        "knn_accuracy": result["accuracy"],
        "knn_accuracy_low": low,
        "knn_accuracy_high": high,
        "knn_mean_class_accuracy": result["mean_class_accuracy"],
    }


def _batches(method: Any, squares: np.ndarray, size: int = 64) -> list[Tensor]:
    """Normalized batches (<= 64, 3, S, S) of (M, S, S, 3) uint8 squares, on the method's device."""
    backbone = method.backbone
    device = next(backbone.parameters()).device
    batches = torch.from_numpy(squares).permute(0, 3, 1, 2).split(size)
    return [normalize(batch.to(device), backbone.mean, backbone.std) for batch in batches]
