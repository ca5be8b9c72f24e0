"""A fine-tuning run from its configuration: parts of the source, task, trainer, selection, scores, files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.fabric import Fabric
from safetensors.torch import load_file

from facessl.config import parse
from facessl.config.finetune import FinetuneConfig
from facessl.config.run import BackboneConfig, differences, plain
from facessl.core import environment, files
from facessl.core.errors import ConfigError, DataError, many
from facessl.core.types import Progress
from facessl.data.decode import EXTENSIONS, ImageError, read_file, stored_size
from facessl.data.loader import TrainLoader
from facessl.data.source import Source
from facessl.data.splits import Parts, parts
from facessl.evaluation import score
from facessl.inference import trained
from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.models.layers.sync_batch_norm import convert_sync_batchnorm
from facessl.pretrained import load
from facessl.report.write import write_report
from facessl.tasks.base import Labels
from facessl.training.optim import build_tuning_optimizer
from facessl.training.plan import cheaper_hint, derive, settle, size_reason
from facessl.training.run import (
    loader_workers,
    make_folder,
    one_after_another,
    one_error_in_distributed,
    run_folder,
    saved_state,
    say,
    start_fabric,
)
from facessl.training.trainer import Plan, Trainer
from facessl.training.tuned import Tuned
from facessl.views.augment import Augment, augment_from_dict
from facessl.views.photometric import Photometric
from facessl.views.supervised import Supervised

#: Files of a part of which one must be an image; what a larger part has behind them is seen when it is scored.
_TRIED = 200


def finetune(run: str = "none", source: str = "", **settings: Any) -> dict[str, Any]:
    """Fine-tune a backbone for a downstream task, and score it.

    `facessl.finetune("runs/mine", "labelled/", task="expression", out="runs/expression")`

    Args:
        run: run folder, checkpoint or exported backbone; `none` for random weights.
        source: labelled images, `NAME:PATH?option=value` or a path.
        settings: fields of `facessl.config.finetune.FinetuneConfig`; `task` may be a plain name or a dict.

    Returns:
        What `results.json` holds (`test`: the scores on the test part) with `out`, the run folder, and `finished`.
        A run that was stopped before its end has no scores.

    Raises:
        FaceSSLError: a setting, image or checkpoint that cannot work; the message says which and what to do.
    """
    return run_finetuning(parse.from_dict({**settings, "run": run, "source": source}, parse.FINETUNE))


def run_finetuning(config: FinetuneConfig) -> dict[str, Any]:
    """Carry out `config`; every rank of a distributed job calls this. Returns as `finetune`, on the first rank."""
    with one_error_in_distributed():
        return _run(config)


def _run(config: FinetuneConfig) -> dict[str, Any]:
    fabric = start_fabric(config.device, config.precision)
    backbone, own_size = _backbone(config)
    folder = run_folder(config.out, config.resume, f"{config.task['name']}-{backbone.name}", fabric)
    saved = saved_state(folder, resume=config.resume)
    data = one_after_another(fabric, lambda: _parts(config))
    config, notes = settle(config, len(data.train), fabric.world_size)
    resolved = _resolve(config, backbone)
    if saved:
        _refuse_other(saved["config"], resolved, folder)
    augment = augment_from_dict(resolved["augment"])
    fabric.seed_everything(config.seed, workers=False, verbose=False)
    arguments = dict(config.task)
    kind = parse.FINETUNE.plugin(arguments.pop("name"))
    labels = Labels.of(data.train, kind.needs)
    model = Tuned(kind(backbone, labels, **arguments), ema=config.ema, ramp=config.ema_ramp, frozen=config.frozen)
    if hasattr(model.task, "check"):
        model.task.check(augment)
    plan = derive(config, len(data.train))
    chosen = {"val": data.val, "test": data.test, "last": None}[config.select]
    watch = _Selection(folder, chosen, augment, config)
    for part in (data.test, chosen or data.test):
        model.task.meter(part, augment)  # what cannot be scored is said now, not after hours of training
        _check_readable(part, "test" if part is data.test else "validation")
    trainer = _trainer(fabric, model, plan, config, folder, resolved, watch)
    if fabric.world_size > 1 and not saved:
        torch.manual_seed(config.seed + fabric.global_rank)  # dropout differs between the ranks
    if saved:
        trainer.load_state(saved)
    loader = _loader(data.train, model.task, labels, augment, config, fabric, trainer.step)
    if fabric.is_global_zero:
        _write_head(folder, resolved, plan, data, size_reason(config, own_size), fresh=saved is None)
        if saved:
            more = trainer.step < plan.total_steps
            step = f"step {trainer.step:,} of {plan.total_steps:,}"
            say(f"going on from {step}" if more else f"the run is already finished at {step}; scoring it again")
        for note in notes:
            say(note)
        if saved is None and (hint := cheaper_hint(model.task, fabric.device.type)):
            say(hint)
    finished = trainer.fit(iter(loader))
    results: dict[str, Any] = {}
    if fabric.is_global_zero:
        results = _finish(folder, model, labels, resolved, augment, config, data, trainer.step, finished)
        if not finished:
            say(f"stopped at step {trainer.step} ({trainer.stop_reason}); go on with --resume --out {folder}")
    fabric.barrier()
    return results


# ---- parts -----------------------------------------------------------------------------------------------------


def _backbone(config: FinetuneConfig) -> tuple[Backbone, int | None]:
    """The backbone that is fine-tuned, trainable, at the size of the run; and the size it was trained at, if any."""
    size = config.image_size
    if config.run == "none":
        b: BackboneConfig = config.backbone
        torch.manual_seed(config.seed)
        fresh = Backbone(b.name, image_size=size or 224, pretrained=b.pretrained, **b.options)
        fresh.check_size()
        return fresh, None
    backbone = load.load_backbone(config.run)
    if config.backbone.options:
        backbone = weights.with_options(backbone, config.backbone.options)
    backbone.requires_grad_(True)
    own = backbone.image_size
    if size is not None:
        weights.set_image_size(backbone, size)
        backbone.check_size()
    return backbone, own


def _parts(config: FinetuneConfig) -> Parts:
    """What is trained, selected and tested on."""
    if not config.source:
        raise ConfigError("fine-tuning needs labelled images: facessl finetune RUN SOURCE (`synthetic:` for a trial)")
    found = parts(
        config.source,
        test=config.test,
        val=config.val,
        val_share=config.val_share,
        need_val=config.select == "val",
        labels=config.labels,
        seed=config.seed,
    )
    if any(part is not None and part.streaming for part in (found.train, found.val, found.test)):
        raise ConfigError(
            f"fine-tuning needs images by position, and a part of {config.source} is a stream: use a folder, a list or "
            "shards on a disk"
        )
    return found


def _check_readable(source: Source, part: str) -> None:
    """DataError where no file of a part is an image; of many files the first are tried.

    Headers alone are read, and not through the source: nobody sees a test image before the end. Keys that name no
    image file (drawn images, members of shards) are not looked at.
    """
    failed: ImageError | None = None
    for path in (Path(source.key(index)) for index in range(min(len(source), _TRIED))):
        if path.suffix.lower() not in EXTENSIONS or not path.parent.is_dir():
            return
        try:
            stored_size(read_file(path), key=str(path))
            return
        except ImageError as error:
            failed = failed or error
    if failed is not None and len(source) <= _TRIED:
        which = f"the first of {len(source)}" if len(source) > 1 else "its only one"
        raise DataError(
            f"no image of the {part} part can be read ({which}: {failed.key}: {failed.reason}): correct the paths, or "
            f"name other images with --{'test' if part == 'test' else 'val'}"
        )


def _resolve(config: FinetuneConfig, backbone: Backbone) -> dict[str, Any]:
    """The configuration as `config.yaml` holds it: what was left open (null) is filled in."""
    return parse.resolved(config) | {
        "image_size": backbone.image_size,
        "backbone": {"name": backbone.name, "pretrained": False, "options": plain(backbone.timm_options)},
    }


def _refuse_other(saved: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    changed = differences(saved, asked)
    if changed:
        raise ConfigError(
            f"{folder} was started with other settings ({'; '.join(changed)}): resume with the old ones, or start a "
            "new run with another --out"
        )


def _loader(
    source: Source,
    task: Any,
    labels: Labels,
    augment: Augment,
    config: FinetuneConfig,
    fabric: Fabric,
    start_step: int,
) -> TrainLoader:
    view = Supervised(
        augment,
        task.backbone.image_size,
        layout=labels.order,
        mask_flip=labels.mask_flip,
        needs=task.needs,
        mask_outside=getattr(task, "mask_outside", 255),
        mean=task.backbone.mean,
        std=task.backbone.std,
    )
    return TrainLoader(
        source,
        view,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=loader_workers(config.workers),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        start_step=start_step,
        pin_memory=fabric.device.type == "cuda",
        weights=_balance(source) if config.balanced else None,
    )


def _trainer(
    fabric: Fabric,
    model: Tuned,
    plan: Plan,
    config: FinetuneConfig,
    folder: Path,
    resolved: Mapping[str, Any],
    watch: _Selection,
) -> Trainer:
    model.train()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(fabric.device)
    if config.sync_batch_norm and fabric.world_size > 1:
        convert_sync_batchnorm(model)
    backbone = model.backbone
    return Trainer(
        fabric=fabric,
        method=model,  # type: ignore[arg-type]
        optimizer=build_tuning_optimizer(model.task, config.optim),
        photometric=Photometric(backbone.mean, backbone.std),  # type: ignore[arg-type]
        plan=plan,
        folder=folder,
        config=resolved,
        monitors={"selection": watch} if watch.source is not None and fabric.is_global_zero else {},
    )


class _Selection:
    """Scores the part that the weights are selected on, and keeps the best ones in `best.safetensors`."""

    def __init__(self, folder: Path, source: Source | None, augment: Augment, config: FinetuneConfig) -> None:
        self.folder = folder
        self.source = source
        self.augment = augment
        self.config = config

    def __call__(self, model: Tuned, progress: Progress) -> dict[str, float]:
        """Monitor of the trainer: the headline of the part, by its name."""
        assert self.source is not None
        found = _score(model.best, self.source, self.augment, self.config)["headline"]
        value = float(found["value"])
        note = self.folder / "best.json"
        best = json.loads(note.read_text()) if note.is_file() else {"step": math.inf}
        sign = 1 if found["better"] == "higher" else -1
        if not math.isfinite(value):
            say(f"step {progress.step}: {found['name']} of the {self.config.select} part is not a number: not kept")
        # The score before training is watched, not kept; a resumed run measures again what it redoes.
        elif progress.step and (best["step"] >= progress.step or sign * value > sign * best["value"]):
            told = {"step": progress.step, "name": found["name"], "value": value}
            files.write_backbone(note.with_suffix(".safetensors"), model.best.state_dict(), told)  # and the note
        return {f"{self.config.select}_{found['name']}": value}


def _score(task: Any, source: Source, augment: Augment, config: FinetuneConfig) -> dict[str, Any]:
    return score.score(
        task,
        source,
        augment,
        image_size=task.backbone.image_size,
        batch_size=max(config.batch_size, 32),
        workers=loader_workers(config.workers),
        precision=config.precision,
        max_bad=config.max_bad,
    )


def _balance(source: Source) -> np.ndarray:
    """(N,) weights with which every class is drawn equally often."""
    labels = source.column("label")
    counts = np.bincount(labels[labels >= 0])
    weights = np.where(labels >= 0, 1 / counts[labels.clip(0)], 0)
    total: np.ndarray = weights / weights.sum()
    return total


def _write_head(
    folder: Path, resolved: Mapping[str, Any], plan: Plan, data: Parts, size_reason: str, *, fresh: bool
) -> None:
    make_folder(folder)
    if fresh:
        for stale in ("best.json", "best.safetensors"):  # of a run that was stopped before its first checkpoint
            (folder / stale).unlink(missing_ok=True)
        files.write_atomic(folder / "config.yaml", yaml.safe_dump(dict(resolved), sort_keys=False).encode())
    files.write_atomic(folder / "environment.json", json.dumps(environment.describe(), indent=2).encode())
    held = "none set apart" if data.val is None else f"{len(data.val)}{' of the training images' * data.carved}"
    say(
        f"{resolved['task']['name']} ({resolved['protocol']}) on {resolved['backbone']['name']}, "
        f"{resolved['image_size']} px ({size_reason}) -> {folder}\n"
        f"{many(len(data.train), 'image')} to train on, validation {held}, test {len(data.test)}; "
        f"{many(plan.total_steps, 'step')} of {many(plan.batch_size, 'image')}, {plan.steps_per_epoch} an epoch"
    )


def _finish(
    folder: Path,
    model: Tuned,
    labels: Labels,
    resolved: Mapping[str, Any],
    augment: Augment,
    config: FinetuneConfig,
    data: Parts,
    steps: int,
    finished: bool,
) -> dict[str, Any]:
    """Scores on the test part with the weights that were selected, and every file of the run."""
    status = json.dumps({"finished": finished, "steps": steps}).encode()
    told: dict[str, Any] = {
        "task": resolved["task"]["name"],
        "protocol": "linear (frozen)" if config.frozen else config.protocol,
        "run": config.run,
        "source": config.source,
        "labels": config.labels,
    }
    ended = {"out": str(folder), "steps": steps, "finished": finished}
    if not finished:
        files.write_atomic(folder / "status.json", status)
        return told | ended
    task = model.best
    chosen: dict[str, Any] = {"step": steps, "by": "last"}
    if (folder / "best.json").is_file():
        task.load_state_dict(load_file(folder / "best.safetensors"))
        chosen = json.loads((folder / "best.json").read_text()) | {"by": config.select}
    elif config.select != "last":
        say(f"no score of the {config.select} part was a number: the last weights are kept")
    info = trained.card(task, labels, resolved, augment, steps=chosen["step"], commit=environment.commit())
    files.write_backbone(folder / "model.safetensors", task.state_dict(), info)
    shipped = {k: v for k, v in info.items() if k not in ("labels", "augment", "format")}
    shipped |= {"format": "facessl-backbone-1", "num_features": task.backbone.num_features}
    files.write_backbone(folder / "backbone.safetensors", task.backbone.model.state_dict(), shipped)
    test = _score(task, data.test, augment, config)
    results = told | {"selected": chosen, "train_images": len(data.train), "test": test}
    files.write_atomic(folder / "results.json", json.dumps(results, indent=2).encode() + b"\n")
    files.write_atomic(folder / "status.json", status)
    write_report(folder)
    say(f"report: {folder / 'report.html'}")
    return results | ended
