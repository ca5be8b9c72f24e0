"""A task that has been trained: its file, and what it predicts for images."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required

import numpy as np
import torch
from torch import Tensor, nn

from facessl.config.run import to_plain
from facessl.core import checkpoint, plugins
from facessl.core.errors import CheckpointError, FaceSSLError, no_run
from facessl.core.schema import check
from facessl.data.face_square import Frame
from facessl.models.forward import evaluating, forward
from facessl.models.weights import Card, from_card, load_exactly
from facessl.pretrained.load import TASK_FORMAT, TIMM, weight_files
from facessl.tasks.base import Labels, Task
from facessl.views.augment import Augment, augment_from_dict


class TaskCard(Card, total=False):
    """Fields of `model.json` that are needed to use the weights."""

    task: Required[dict[str, Any]]
    labels: Required[Labels]
    augment: Required[dict[str, Any]]


@dataclass
class Trained:
    """A trained task with all that is needed to use it."""

    task: Task  # the network, in evaluation mode
    image_size: int  # side of its views in pixels
    augment: Augment  # its crop
    card: dict[str, Any]  # of its file

    @property
    def name(self) -> str:
        """Name of the task."""
        return str(self.card["task"]["name"])

    @property
    def module(self) -> nn.Module:
        """The network."""
        module: nn.Module = self.task  # type: ignore[assignment]
        return module

    def predict(self, images: list[np.ndarray], frames: list[Frame], *, precision: str = "fp32") -> dict[str, Any]:
        """Arrays with one row per image (`Task.predict`), which `Task.describe` turns into the image's own pixels.

        Args:
            images: (H, W, 3) uint8 RGB, of any sizes.
            frames: the crop of each.
            precision: fp32, bf16 or fp16.
        """
        border = self.augment.border
        views = np.stack([frame.image(image, border) for frame, image in zip(frames, images, strict=True)])
        x = torch.from_numpy(views).permute(0, 3, 1, 2)  # (B, 3, S, S)
        predictions = forward(self.task, x, precision, self.task.predict)
        return {name: values.float().cpu().numpy() for name, values in predictions.items()}


class Embedder(nn.Module):
    """The embedding that a task was trained for (verification), in place of a backbone.

    Each image is taken for one cropped face, as `facessl predict --no-crop` takes it.

    Attributes:
        view: (H, W, 3) uint8 image -> (S, S, 3) view.
        augment: the same as a crop of labeled images.
        num_features: D.
        name, timm_options, image_size, mean, std: of the backbone.
        model: the task, whose state dict tells this network from others.
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model: Any = trained.module
        backbone, own = trained.task.backbone, trained.augment
        self.name, self.timm_options = backbone.name, backbone.timm_options
        self.mean, self.std = backbone.mean, backbone.std
        self.image_size = trained.image_size
        scale = own.crop_scale if own.crop == "whole" else 1.0
        self.augment = Augment(crop="whole", crop_scale=scale, warp=own.warp, border=own.border)
        self.view = functools.partial(picture_view, own, trained.image_size)
        with evaluating(self):
            self.num_features = self(torch.zeros(1, 3, trained.image_size, trained.image_size)).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Normalized views (B, 3, S, S) -> embeddings (B, D). KeyError: the task predicts none."""
        z: Tensor = self.model.predict(x)["embeddings"]
        return z


def picture_view(augment: Augment, size: int, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 picture of one cropped face -> its view (S, S, 3) uint8."""
    height, width = image.shape[:2]
    return augment.frame_of_picture(height, width, size).image(image, augment.border)


def card(
    task: Task,
    labels: Labels,
    settings: Mapping[str, Any],
    augment: Augment,
    *,
    steps: int,
    commit: str,
    framing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `model.json`: all that is needed to use the weights."""
    backbone = task.backbone
    return {
        "format": TASK_FORMAT,
        "task": settings["task"],
        "protocol": settings["protocol"],
        "labels": to_plain(dataclasses.asdict(labels)),
        "augment": to_plain(dataclasses.asdict(augment)),
        "framing": framing,  # of faces in whole images (`facessl.inference.framing`)
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
    """The trained task in a run folder of `facessl finetune`, or in its `model.safetensors` under any name, in
    evaluation mode. CheckpointError: there is none, or it is of another kind.
    """
    files = weight_files(path)
    if "task" not in files:
        if other := next(iter(files.values()), None):
            fix = f"train one with `facessl finetune {path} ...`"
            raise CheckpointError(f"{other} is a backbone, not a trained task: {fix}")
        if not str(path).startswith(TIMM) and not Path(path).exists():
            raise CheckpointError(no_run(path, "a run folder of `facessl finetune`"))
        raise CheckpointError(
            f"{path} holds no trained task (model.safetensors): give a run folder of `facessl finetune` that has ended"
        )
    file = files["task"]
    tensors, info = checkpoint.read_safetensors(file)
    check(info, TaskCard, file)
    check(info["augment"], Augment, file)
    backbone = from_card(info, file)
    arguments = dict(info["task"])
    try:
        task = plugins.find("tasks", str(arguments.pop("name", None)))(
            backbone, Labels.from_dict(info["labels"]), **arguments
        )
    except (FaceSSLError, TypeError) as error:
        raise CheckpointError(f"the card of {file} cannot be used: {error}") from None
    load_exactly(task, tensors, file)
    task.eval().requires_grad_(False)
    return Trained(task=task, image_size=info["image_size"], augment=augment_from_dict(info["augment"]), card=info)
