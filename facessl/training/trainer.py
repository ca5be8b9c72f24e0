"""The training loop, on Lightning Fabric, of any method with `step` and `after_step`.

An optimizer step: next batch -> photometric views on the device -> `step` of each micro-batch -> backward -> optimizer
-> `after_step` -> log, measure, save if due.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from facessl.core import checkpoint
from facessl.core.distributed import gathered
from facessl.core.errors import PluginError, TrainingError, many
from facessl.core.progress import ProgressLine
from facessl.core.types import Batch, Progress
from facessl.data.loader import Transform
from facessl.data.prefetch import Prefetcher
from facessl.data.skipped import too_many
from facessl.data.source import Source
from facessl.models.forward import evaluating
from facessl.training import fsdp
from facessl.training.derived import Plan
from facessl.training.metrics_log import MetricsLog
from facessl.training.stopping import Stopping

Monitor = Callable[[Any, Progress], dict[str, float]]


@dataclass
class _Window:
    terms: list[dict[str, Tensor]] = field(default_factory=list)
    first_step: int = 0
    resumed: int = 0  # steps of an earlier process, not in `started` and `waited`
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)


@dataclass
class TrainingSetup:
    """Model and data of a run."""

    module: Any  # has `step` and `after_step`
    # Called with the plan once `module` is on its device in its memory format; may change `module`.
    optimizer: Callable[[Plan], torch.optim.Optimizer]
    source: Source  # training images
    transform: Transform  # stored image -> views, in the loader's processes
    photometric: Callable[[Batch], Batch]  # augmentation on the device, with the normalization
    monitors: Mapping[str, Monitor] = field(default_factory=dict)  # by name
    # Step, values of all monitors -> None.
    on_measured: Callable[[int, dict[str, float]], None] = lambda step, values: None
    weights: np.ndarray | None = None  # (N,) probabilities of the images; None: every image once an epoch


class Trainer:
    """Trains a method to the end of its plan; checkpoints also hold `metadata`, plain values by name."""

    def __init__(
        self, fabric: Fabric, setup: TrainingSetup, plan: Plan, folder: Path, metadata: Mapping[str, Any]
    ) -> None:
        self.fabric = fabric
        self.setup = setup
        self.method = setup.module
        self.optimizer = setup.optimizer(plan)
        self.plan = plan
        self.folder = folder
        self.metadata = metadata
        self.step = 0
        self.skipped: dict[str, str] = {}
        self._window = _Window()
        self._first_logs: tuple[int, set[str]] | None = None  # number of the first step, and the terms it logged
        self.stopping = Stopping(fabric.device, fabric.world_size)
        self._log = MetricsLog(folder) if fabric.is_global_zero else None
        self._wrapped, self._optimizer = fabric.setup(self.method, self.optimizer)
        self._wrapped.mark_forward_method("step")

    # ---- state -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Fields of `facessl.core.checkpoint.TrainingCheckpoint` except format and step (collective call)."""
        terms = [{name: value.cpu() for name, value in step.items()} for step in self._window.terms]
        ranks = gathered((_rng_state(), terms))
        return {
            "method": fsdp.whole(self.method.state_dict()),
            "optimizer": fsdp.whole(self.optimizer.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
            "rng": [rng for rng, _ in ranks],
            "unlogged": [terms for _, terms in ranks],
            **self.metadata,
            "skipped": [list(item) for item in self.skipped.items()],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of a run with the same configuration (collective call)."""
        fsdp.load_module(self.method, state["method"])
        fsdp.load_optimizer(self.optimizer, state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step = int(state["step"])
        self.skipped = dict(state["skipped"])
        self._window.first_step = self.step
        if len(state["rng"]) == self.fabric.world_size:
            _set_rng_state(state["rng"][self.fabric.global_rank])
            # Steps that the stopped process had not logged.
            unlogged = state["unlogged"][self.fabric.global_rank]
            terms = [{name: value.to(self.fabric.device) for name, value in step.items()} for step in unlogged]
            self._window = _Window(terms, self.step - len(terms), resumed=len(terms))
            if terms:
                self._first_logs = self._window.first_step + 1, terms[0].keys() - {"loss", "grad_norm"}
        if self._log is not None:
            self._log.cut_after(self.step, self.skipped)

    # ---- loop --------------------------------------------------------------------------------------------------

    def fit(self, batches: Iterator[Batch]) -> bool:
        """Train to the end of the plan, a stop signal or the time limit. Return whether the end was reached.

        Raises:
            TrainingError: a loss term is not finite, or too many images are unreadable. The last checkpoint stays.
            PluginError: two steps do not log the same terms.
        """
        began = time.perf_counter()
        if self.step == 0 and self._log is not None:  # a run that was stopped before its first checkpoint starts again
            self._log.cut_after(-1, {})
        self._window.started = time.perf_counter()
        ready = Prefetcher(batches, self.fabric.device, self.setup.photometric)
        with self.stopping, ProgressLine("step", enabled=self.fabric.is_global_zero) as line:
            if self.step == 0:
                self._measure()
                self._window.started = time.perf_counter()
            self.stopping.agree(at_once=True)  # a signal may have come while images were scored
            while self.step < self.plan.total_steps and self.stopping.reason is None:
                self._one_step(ready)
                if self.step % self.plan.log_every == 0 or self.step in (1, self.plan.total_steps):
                    self._show(line, self._write_window())
                    self._window = _Window(first_step=self.step)
                elif line.due():  # without a reduction, as other ranks may not be due
                    loss = torch.stack([terms["loss"] for terms in self._window.terms]).mean()
                    self._show(line, {"loss": float(loss), **self._speed()})
                last = self.step == self.plan.total_steps
                if self.plan.monitor_every and (self.step % self.plan.monitor_every == 0 or last):
                    self._measure()
                    self._window = _Window(first_step=self.step)
                if self.plan.max_seconds and time.perf_counter() - began > self.plan.max_seconds:
                    self.stopping.ask("time limit")
                self.stopping.agree()
                due = self.plan.checkpoint_every and self.step % self.plan.checkpoint_every == 0
                if due or last or self.stopping.reason:
                    self._check_finite()
                    self.save()
        if self._log is not None:
            self._log.close()
        return self.step >= self.plan.total_steps

    def _one_step(self, batches: Prefetcher) -> None:
        waited = batches.waited
        batch = next(batches)
        self._window.waited += batches.waited - waited
        self._record_skipped(batch.skipped)
        rate = self.plan.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        size = len(batch) // self.plan.accumulate
        terms: dict[str, Tensor] = {}
        for part in range(self.plan.accumulate):
            micro_batch = batch if self.plan.accumulate == 1 else batch.slice(part * size, (part + 1) * size)
            with self.fabric.no_backward_sync(self._wrapped, enabled=part + 1 < self.plan.accumulate):
                # Without a strategy that wraps the module (one process), Fabric runs `step` outside its precision.
                with self.fabric.autocast():
                    result = self._wrapped.step(micro_batch, self.progress)
                self.fabric.backward(result.loss / self.plan.accumulate)
            self._check_names(result.logs)
            for name, value in {"loss": result.loss.detach(), **result.logs}.items():
                terms[name] = terms.get(name, 0) + value.float() / self.plan.accumulate
        self._window.terms.append(terms)
        if self.fabric.device.type == "cpu":
            self._check_finite(only_last=True)
        if self.plan.clip_grad:
            norm: Any = self.fabric.clip_gradients(
                self._wrapped, self._optimizer, max_norm=self.plan.clip_grad, error_if_nonfinite=False
            )
            terms["grad_norm"] = norm.full_tensor() if fsdp.is_sharded(norm) else norm
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.method.after_step(self.progress)  # the k-th update (from 0) has the momentum of k / total, as in BYOL
        self.step += 1

    @property
    def progress(self) -> Progress:
        """Current position in the run."""
        return self.plan.progress(self.step)

    # ---- logging, measuring, saving ------------------------------------------------------------------------------

    def _show(self, line: ProgressLine, row: Mapping[str, float]) -> None:
        if row:
            speed, waiting = row["images_per_second"], f"waiting for data {100 * row['data_wait']:.0f} %"
            rate = f"{speed:.{0 if speed >= 10 else 1}f} images/s"
            line(self.step, self.plan.total_steps, f"loss {row['loss']:.4f}  {rate}  {waiting}")

    def _speed(self) -> dict[str, float]:
        window = self._window
        seconds = max(time.perf_counter() - window.started, 1e-9)
        images = (len(window.terms) - window.resumed) * self.plan.batch_size
        return {"images_per_second": images / seconds, "data_wait": window.waited / seconds}

    def _write_window(self) -> dict[str, float]:
        self._check_finite()
        speed, terms = self._speed(), self._window.terms
        names = list(terms[0])
        means = torch.stack([torch.stack([t[n] for n in names]) for t in terms]).mean(0)  # (terms,)
        global_means: Any = self.fabric.all_reduce(means, reduce_op="mean")
        row = dict(zip(names, global_means.tolist(), strict=True))
        row |= {"lr": self.plan.learning_rate(self.step - 1), **speed}
        ema = getattr(self.method, "ema_momentum", None)
        if ema is not None:
            row["momentum"] = float(ema(self.plan.progress(self.step - 1)))
        if self._log is not None:
            self._log.write(self._row_head() | row)
        return row

    def _row_head(self) -> dict[str, float]:
        epoch = self.step / self.plan.steps_per_epoch if self.plan.steps_per_epoch else 0.0
        return {"step": self.step, "epoch": epoch, "images": self.step * self.plan.batch_size}

    def _measure(self) -> None:
        if not self.plan.monitor_every:
            return
        self._check_folder()
        values: dict[str, float] = {}
        if self.setup.monitors and self.fabric.is_global_zero:  # the others wait at the barrier
            rng_state = _rng_state()
            with evaluating(self.method):
                for monitor in self.setup.monitors.values():
                    values |= monitor(self.method, self.progress)
            _set_rng_state(rng_state)
            if self._log is not None:
                self._log.write(self._row_head() | {f"monitor/{k}": v for k, v in values.items()})
            self.setup.on_measured(self.step, values)
        self.fabric.barrier()

    def _check_names(self, logs: Mapping[str, Tensor]) -> None:
        """Raise PluginError if a step does not log what the first step of this process logged."""
        step, names = self.step + 1, logs.keys() - {"loss", "grad_norm"}
        first, expected = self._first_logs = self._first_logs or (step, names)
        if names == expected:
            return
        name = min(names ^ expected)
        has, lacks = (step, first) if name in names else (first, step)
        where = f"in step {has} and not in step {lacks}"
        if step == first:
            where = f"in one micro-batch of step {step} and not in another"
        kind = type(getattr(self.method, "task", self.method)).__name__
        raise PluginError(f"the class {kind} logs {name!r} {where}: give Step.logs the same names in every step")

    def _check_finite(self, only_last: bool = False) -> None:
        window = self._window
        terms = window.terms[-1:] if only_last else window.terms
        if not terms:
            return
        names = [n for n in terms[0] if n != "grad_norm"]
        values = torch.stack([torch.stack([t[n] for n in names]) for t in terms])
        if bool(torch.isfinite(values).all()):
            return
        offset, column = (~torch.isfinite(values)).nonzero()[-1 if only_last else 0].tolist()
        bad = [n for n, v in zip(names, values[offset].tolist(), strict=True) if not math.isfinite(v) and n != "loss"]
        step = window.first_step + (len(window.terms) - len(terms)) + offset + 1
        raise self._diverged(f"step {step}: {' and '.join(bad) or names[column]} is not finite")

    def _check_weights(self) -> None:
        """Raise TrainingError if weights are not finite, as may happen after a finite loss."""
        parameters = {name: p.detach() for name, p in self.method.named_parameters() if not fsdp.is_sharded(p)}
        if not parameters:
            return
        finite = torch.stack([p.isfinite().all() for p in parameters.values()]).tolist()
        bad = [name for name, is_finite in zip(parameters, finite, strict=True) if not is_finite]
        if bad:
            raise self._diverged(f"step {self.step}: the weights {bad[0]} are not finite")

    def _check_folder(self) -> None:
        """Raise TrainingError if the folder was moved: a new one would hold half a run."""
        if self.fabric.is_global_zero and not self.folder.is_dir():
            raise TrainingError(f"the run folder {self.folder} is gone: put it back, then go on with --resume")

    def _diverged(self, reason: str) -> TrainingError:
        saved = checkpoint.steps(self.folder / "checkpoints")
        last = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint had been written"
        return TrainingError(
            f"{reason}; {last}: lower --optim.lr, set --clip-grad 1, or use --precision bf16 instead of fp16"
        )

    def save(self) -> None:
        """Write a checkpoint of the current step (collective call). TrainingError: weights are not finite."""
        self._check_weights()
        self._check_folder()
        state = self.state()
        if self.fabric.is_global_zero:
            checkpoint.save_run(self.folder / "checkpoints", self.step, state)
            if self._log is not None:
                self._log.flush()
        self.fabric.barrier()

    def _record_skipped(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Count and list unreadable images (key, reason). TrainingError: they are too many."""
        new = {key: reason for key, reason in skipped if key not in self.skipped}
        if not new:
            return
        self.skipped |= new
        if self._log is not None:
            self._log.skipped(new)
        allowed = self.plan.most_unreadable
        if allowed is not None and len(self.skipped) > allowed:
            message = too_many(many(len(self.skipped), "image"), allowed, next(iter(new.items())))
            raise TrainingError(f"{message}; all are in {self.folder / 'skipped.csv'}")


def _rng_state() -> dict[str, Any]:
    """Random state of this process as tensors and plain values."""
    legacy: Any = np.random.get_state()
    kind, keys, position, has_gauss, cached = legacy
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_initialized():  # not in a run on the CPU of a machine with a GPU
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
