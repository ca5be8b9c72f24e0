"""Data types of the pipeline: one `Sample` from a source, one `Batch` to a method, one `Step` back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Value of a mask whose pixels losses and scores leave out.
IGNORE_INDEX = 255
#: Optional fields that a source may provide and a method may need.
FIELDS = frozenset(
    {
        *("label", "text", "landmarks", "visible", "mask", "identity", "attributes", "pose"),
        *("box", "five_points", "group", "frame"),
    }
)


@dataclass(slots=True)
class Sample:
    """One image as a source gives it, before views.

    Attributes:
        image: encoded file content (bytes), or (H, W, 3) uint8 RGB if the source renders its images.
        key: name of the image: a path, that of a shard followed by its member's name, or `shard.tar/member.jpg` of a
            stream.
        label: class index (int).
        text: caption.
        landmarks: (K, 2) float32, x and y in pixels; the center of the top-left pixel is (0, 0).
        visible: (K,) uint8, 1 for annotated landmarks; None: all are.
        mask: (H, W) uint8 class map; 255 (`IGNORE_INDEX`) is left out of losses and scores.
        identity: person index.
        attributes: (A,) uint8, 0 or 1.
        pose: (3,) float32, yaw, pitch, roll in degrees.
        box: (4,) float32, left, top, right, bottom of the face in pixels as the data set gives it; may reach outside.
        five_points: (5, 2) float32 pixels: the eye on the image's left, the one on its right, nose, mouth corner on
            the left, on the right.
        group: index of the group that a fairness breakdown puts the image in.
        frame: (3, 3) float32, maps pixels of the stored image to pixels of the view; made by the crop, not by sources.
    """

    image: bytes | np.ndarray
    key: str
    label: int | None = None
    text: str | None = None
    landmarks: np.ndarray | None = None
    mask: np.ndarray | None = None
    identity: int | None = None
    attributes: np.ndarray | None = None
    pose: np.ndarray | None = None
    visible: np.ndarray | None = None
    box: np.ndarray | None = None
    five_points: np.ndarray | None = None
    group: int | None = None
    frame: np.ndarray | None = None


@dataclass(slots=True)
class Batch:
    """A batch of B images in V views.

    Attributes:
        views: V tensors (B, 3, S_v, S_v), channels-last in memory: uint8 from the loader, float32 and
            normalized once the photometric part has run on the device.
        params: V tensors (B, P) float32 of photometric parameters (columns: `facessl.views.spec.Column`);
            empty for batches that are only normalized.
        index: (B,) int64, positions of the images in their source.
        keys: B keys of the images.
        skipped: (key, reason) of images that could not be read and were replaced.
        label: (B,) int64; None if the source has none, like those that follow.
        text: B strings.
        landmarks: (B, K, 2) float32, pixels of the view.
        mask: (B, H, W) uint8.
        identity: (B,) int64.
        attributes: (B, A) uint8.
        pose: (B, 3) float32.
        visible: (B, K) uint8.
        box: (B, 4) float32.
        five_points: (B, 5, 2) float32.
        group: (B,) int64.
        frame: (B, 3, 3) float32, maps pixels of the stored image to pixels of the view.
        crops: V tensors (B, 5) float32, crop box of each view: left, top, width, height as fractions of the stored
            image's width and height, and 1 if it is flipped. Empty unless `facessl.views.geometric` cut the views.
    """

    views: list[Tensor]
    params: list[Tensor]
    index: Tensor
    keys: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    label: Tensor | None = None
    text: list[str] | None = None
    landmarks: Tensor | None = None
    mask: Tensor | None = None
    identity: Tensor | None = None
    attributes: Tensor | None = None
    pose: Tensor | None = None
    visible: Tensor | None = None
    box: Tensor | None = None
    five_points: Tensor | None = None
    group: Tensor | None = None
    frame: Tensor | None = None
    crops: list[Tensor] = field(default_factory=list)

    def _map(self, fn: Callable[[Any], Any], lists: tuple[str, ...] = ("views", "crops")) -> Batch:
        """Apply `fn` to every tensor, also to those in `lists`."""
        from torch import Tensor

        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in lists:
                value = [fn(v) for v in value]
            out[f.name] = fn(value) if isinstance(value, Tensor) else value
        return Batch(**out)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on `device`; `params` stay on the host, where the photometric part plans its work."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Called by the DataLoader on a GPU machine."""
        return self._map(lambda t: t.pin_memory())

    def slice(self, start: int, stop: int) -> Batch:
        """Images start..stop of this batch (a micro-batch of gradient accumulation)."""
        part = self._map(lambda v: v[start:stop], ("views", "params", "crops"))
        return replace(part, keys=self.keys[start:stop], text=self.text and self.text[start:stop])

    def __len__(self) -> int:
        return len(self.index)


class Progress(NamedTuple):
    """Position in a run. (A tuple: Fabric casts the fields of arguments, which a frozen dataclass does not allow.)

    Attributes:
        step: optimizer steps done so far (0 during the first).
        total_steps: optimizer steps of the whole run.
        epoch: completed passes over the source.
        steps_per_epoch: None if the source has no length.
    """

    step: int
    total_steps: int
    epoch: int = 0
    steps_per_epoch: int | None = None

    def first_steps(self, epochs: float) -> int:
        """Steps of the first `epochs`, at most a third of the run; a third if the source has no length."""
        most = self.total_steps // 3 if epochs else 0
        return most if self.steps_per_epoch is None else min(most, round(epochs * self.steps_per_epoch))

    @property
    def fraction(self) -> float:
        """Completed fraction of the run, 0 to 1."""
        return self.step / max(1, self.total_steps)


@dataclass
class Step:
    """Result of one step.

    Attributes:
        loss: scalar to be minimized.
        logs: every term by its paper's name, unweighted, as detached scalars (tensors; the trainer decides
            when to synchronize). Every step of a run has the same names.
    """

    loss: Tensor
    logs: dict[str, Tensor]
