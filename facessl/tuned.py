"""A task while it is trained (average of the weights, frozen backbone), and its file once it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facessl import checkpoint, plugins
from facessl.backbones import Backbone
from facessl.batch import Batch
from facessl.config import plain
from facessl.data.crop import Frame, frame_of
from facessl.data.loader import EvalLoader
from facessl.data.source import Source
from facessl.errors import CheckpointError, DataError
from facessl.inference import autocast, evaluating
from facessl.loading import load_exactly
from facessl.methods.base import Progress, Step
from facessl.nn.ema import MomentumUpdate, frozen_copy
from facessl.nn.normalise import normalise
from facessl.tasks.base import Labels, Task, check_result
from facessl.views.augment import Augment, augment_from_dict
from facessl.views.supervised import Supervised

FORMAT = "facessl-task-1"


class Tuned(nn.Module):
    """What the trainer trains: a task, its average where one is kept, its backbone frozen where it shall be.

    Attributes:
        task: the weights that the optimiser moves.
        average: their exponential average, batch-norm statistics and other floating buffers included, as in STAR's
            release (FaRL's is not in its repository); counters are copied. None without one. With `ramp` its momentum
            is min(ema, (1 + t) / (10 + t)) at update t: a short run would otherwise stay near its first weights.
    """

    def __init__(self, task: nn.Module, *, ema: float = 0.0, ramp: bool = True, frozen: bool = False) -> None:
        super().__init__()
        self.task: Any = task
        average: Any = frozen_copy(task) if ema else None
        self.average = average
        self.ema = ema
        self.ramp = ramp
        self.frozen = frozen
        self._follow = MomentumUpdate((self.task, self.average), buffers=True) if ema else None
        if frozen:
            self.task.backbone.requires_grad_(False)

    @property
    def backbone(self) -> Backbone:
        """The backbone of the weights that count."""
        backbone: Backbone = self.best.backbone
        return backbone

    @property
    def best(self) -> Any:
        """The weights that are evaluated and kept."""
        return self.task if self.average is None else self.average

    def train(self, mode: bool = True) -> Tuned:
        """Training mode; a frozen backbone and the average stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.task.backbone.eval()
        if self.average is not None:
            self.average.eval()
        return self

    def step(self, batch: Batch, progress: Progress) -> Step:
        """The task's loss of one batch."""
        result: Step = self.task.step(batch, progress)
        return result

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Moves the average."""
        self.task.after_step(progress)
        if self._follow is not None:
            start = (1 + progress.step) / (10 + progress.step) if self.ramp else 1.0
            self._follow(min(self.ema, start))


@dataclass
class Trained:
    """A trained task with all that is needed to use it.

    Attributes:
        task: the network, in evaluation mode.
        image_size: side of its views in pixels.
        augment: its crop.
        card: what its file says about it.
    """

    task: Task
    image_size: int
    augment: Augment
    card: dict[str, Any]

    @property
    def module(self) -> nn.Module:
        """The network."""
        module: nn.Module = self.task  # type: ignore[assignment]
        return module

    def predict(self, images: list[np.ndarray], frames: list[Frame], *, precision: str = "fp32") -> dict[str, Any]:
        """Raw predictions of images.

        Args:
            images: (H, W, 3) uint8 RGB, of any sizes.
            frames: the crop of each.
            precision: fp32, bf16 or fp16.

        Returns:
            Arrays with one row per image (`Task.predict`); `Task.describe` turns a row into the image's own pixels.
        """
        border = self.augment.border
        views = np.stack([frame.image(image, border) for frame, image in zip(frames, images, strict=True)])
        backbone = self.task.backbone
        device = next(backbone.parameters()).device
        x = normalise(torch.from_numpy(views).permute(0, 3, 1, 2).to(device), backbone.mean, backbone.std)
        with evaluating(self.module), autocast(device, precision):
            return {k: v.float().cpu().numpy() for k, v in self.task.predict(x).items()}

    def frame(self, sample: Any, height: int, width: int) -> Frame:
        """The crop of one sample."""
        a = self.augment
        return frame_of(
            sample,
            (height, width, 3),
            crop=a.crop,
            size=self.image_size,
            scale=a.crop_scale,
            warp=a.warp,
            template=a.template,
        )


def score(
    task: Any,
    source: Source,
    augment: Augment,
    *,
    image_size: int,
    batch_size: int = 64,
    workers: int = 0,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Scores of a task on a source, in the stored images' coordinates.

    Args:
        task: any task; its mode is put back afterwards.
        source: labelled images.
        augment: gives the crop; nothing random is done.
        image_size: side of the views in pixels.
        batch_size, workers, precision: as in `facessl.embed`.

    Returns:
        `Meter.result`, and `skipped`, the number of images that could not be read.

    Raises:
        DataError: no image could be read.
        PluginError: the meter's scores lack what its contract asks for.
    """
    meter = task.meter(source, augment)
    backbone = task.backbone
    device = next(backbone.parameters()).device
    view = Supervised(augment, image_size, needs=task.needs, train=False)
    loader = EvalLoader(source, view, batch_size=batch_size, workers=workers, pin_memory=device.type == "cuda")
    seen = 0
    for batch in loader:
        x = normalise(batch.views[0].to(device, non_blocking=True), backbone.mean, backbone.std)
        with evaluating(task), autocast(device, precision):
            found: dict[str, Tensor] = task.predict(x)
        meter.add(found, batch)
        seen += len(batch)
    if not seen:
        first = ": ".join(loader.skipped[0]) if loader.skipped else "it has none"
        raise DataError(f"no image that was to be scored could be read (the first: {first}): correct the paths")
    result: dict[str, Any] = {**meter.result(), "skipped": len(loader.skipped)}
    check_result(result, task)
    return result


def card(
    task: Task, labels: Labels, settings: Mapping[str, Any], augment: Augment, *, steps: int, commit: str
) -> dict[str, Any]:
    """What `model.json` says: all that is needed to use the weights."""
    backbone = task.backbone
    return {
        "format": FORMAT,
        "task": settings["task"],
        "protocol": settings["protocol"],
        "labels": labels.to_dict(),
        "augment": plain(dataclasses.asdict(augment)),
        "timm_name": backbone.name,
        "timm_options": dict(backbone.timm_options),
        "image_size": settings["image_size"],
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "run": settings["run"],
        "source": settings["source"],
        "steps": steps,
        "commit": commit,
    }


def load_trained(path: str | Path) -> Trained:
    """A trained task in evaluation mode.

    Args:
        path: run folder of `facessl finetune`, or its `model.safetensors`.

    Raises:
        CheckpointError: there is none, or it is of another kind.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"{path} holds no trained task (model.safetensors): give a run folder of `facessl finetune` that has ended"
        )
    tensors, info = checkpoint.read_safetensors(file)
    if info.get("format") != FORMAT:
        raise CheckpointError(f"{file} is no trained task but a backbone: train one with `facessl finetune {path} ...`")
    backbone = Backbone(
        info["timm_name"],
        image_size=info["image_size"],
        mean=tuple(info["mean"]),
        std=tuple(info["std"]),
        **info["timm_options"],
    )
    arguments = dict(info["task"])
    name = arguments.pop("name")
    task = plugins.find("tasks", name)(backbone, Labels.from_dict(info["labels"]), **arguments)
    load_exactly(task, tensors, file)
    task.eval().requires_grad_(False)
    return Trained(task=task, image_size=info["image_size"], augment=augment_from_dict(info["augment"]), card=info)
