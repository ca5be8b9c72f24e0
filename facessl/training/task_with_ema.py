"""A task in training: EMA of the weights, frozen backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from facessl.core.types import Batch, Progress, Step
from facessl.models.backbone import Backbone
from facessl.models.layers.ema import MomentumUpdate, frozen_copy


class TaskWithEma(nn.Module):
    """A task, with an optional EMA of its weights and an optionally frozen backbone.

    Attributes:
        task: the trained weights.
        average: their EMA, batch-norm statistics and other floating buffers included, as in STAR's release (FaRL's is
            not in its repository); counters are copied. None without one. With `ramp` its momentum is
            min(ema, (1 + t) / (10 + t)) at update t: a short run would otherwise stay near its first weights.
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
        """Backbone of `eval_task`."""
        return self.eval_task.backbone

    @property
    def eval_task(self) -> Any:
        """The task that is evaluated and saved: the average, if any."""
        return self.task if self.average is None else self.average

    def train(self, mode: bool = True) -> TaskWithEma:
        """Training mode; a frozen backbone and the average stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.task.backbone.eval()
        if self.average is not None:
            self.average.eval()
        return self

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of the task for one batch."""
        return self.task.step(batch, progress)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Update the average."""
        if self._follow is not None:
            start = (1 + progress.step) / (10 + progress.step) if self.ramp else 1.0
            self._follow(min(self.ema, start))
