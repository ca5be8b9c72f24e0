"""A task that has been trained: its file, and what it predicts for images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from facessl.config.run import plain
from facessl.core import files, plugins
from facessl.core.errors import CheckpointError
from facessl.data.frame import Frame, frame_of
from facessl.models.forward import autocast, evaluating
from facessl.models.weights import from_card, load_exactly
from facessl.tasks.base import Labels, Task
from facessl.views.augment import Augment, augment_from_dict
from facessl.views.normalise import normalise

FORMAT = "facessl-task-1"


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
    tensors, info = files.read_safetensors(file)
    if info.get("format") != FORMAT:
        raise CheckpointError(f"{file} is a backbone, not a trained task: train one with `facessl finetune {path} ...`")
    backbone = from_card(info)
    arguments = dict(info["task"])
    name = arguments.pop("name")
    task = plugins.find("tasks", name)(backbone, Labels.from_dict(info["labels"]), **arguments)
    load_exactly(task, tensors, file)
    task.eval().requires_grad_(False)
    return Trained(task=task, image_size=info["image_size"], augment=augment_from_dict(info["augment"]), card=info)
