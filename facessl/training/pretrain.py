"""A pre-training run from its configuration: source, loader, method, trainer, exports, report."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric import Fabric
from torch import nn

from facessl.config.parse import from_dict
from facessl.config.run import RunConfig, differences, without_retired
from facessl.core import environment, files, plugins
from facessl.core.errors import ConfigError, DataError, many
from facessl.core.files import write_png
from facessl.data.loader import TrainLoader
from facessl.data.source import Source, open_source
from facessl.inference.regions import region_grid
from facessl.methods.base import Method
from facessl.metrics import collapse
from facessl.models.layers.sync_batch_norm import convert_sync_batchnorm
from facessl.pretrained import load
from facessl.report.write import write_report
from facessl.training import fsdp, monitors, optim
from facessl.training.run import (
    check_accumulation,
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
from facessl.views.geometric import Geometric
from facessl.views.photometric import Photometric


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Attributes:
        folder: the run folder.
        steps: optimiser steps done.
        finished: False where it was stopped before its end and can be resumed.
        headline: the report's headline numbers.
    """

    folder: Path
    steps: int
    finished: bool
    headline: dict[str, Any]


def pretrain(source: str | None = None, **settings: Any) -> Result:
    """Pre-train a face backbone on unlabelled images.

    Args:
        source: a folder of images, `NAME:PATH?option=value`, or None for the embedded synthetic faces.
        settings: fields of `facessl.config.run.RunConfig`; `method` and `backbone` may be plain names or dicts
            (`method={"name": "fra", "num_regions": 16}`), `optim` and `monitor` dicts.

    Returns:
        The run folder and its headline numbers.

    Raises:
        FaceSSLError: a setting, image or checkpoint that cannot work; the message says which and what to do.
    """
    values = dict(settings) | ({"source": source} if source is not None else {})
    return run(from_dict(values))


def run(config: RunConfig) -> Result:
    """Carry out `config`; every rank of a distributed job calls this."""
    with one_error_in_distributed():
        return _run(config)


def _run(config: RunConfig) -> Result:
    fabric = start_fabric(config.device, config.precision, config.strategy)
    source = one_after_another(fabric, lambda: open_source(config.source))
    folder = run_folder(config.out, config.resume, f"{config.method['name']}-{config.backbone.name}", fabric)
    saved = saved_state(folder, resume=config.resume)
    resolved = without_retired(saved["config"]) if saved else _resolve(config, source, fabric)
    if saved:
        _refuse_other(config, resolved, source, fabric, folder)
    settings = from_dict(resolved)
    fabric.seed_everything(settings.seed, workers=False, verbose=False)
    method = load.build_method(settings)
    _check_needs(method, source, settings)
    check_accumulation(method, settings, fabric.world_size)
    if saved is None and (prepare := getattr(method, "prepare", None)) is not None:
        prepare()
    plan = derive(settings, source, config)
    views = Geometric(settings.views or method.views, settings.image_size)
    trainer = _trainer(fabric, method, plan, settings, config, source, folder, resolved)
    if fabric.world_size > 1:  # dropout differs between the ranks, also where other ranks go on than began
        torch.manual_seed(settings.seed + fabric.global_rank + (saved["step"] * fabric.world_size if saved else 0))
    if saved:
        trainer.load_state(saved)
    if fabric.is_global_zero:
        _write_head(folder, resolved, plan, settings, fresh=saved is None)
    batches = TrainLoader(
        source,
        views,
        batch_size=plan.batch_size,
        seed=settings.seed,
        workers=loader_workers(config.workers),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        start_step=trainer.step,
        pin_memory=fabric.device.type == "cuda",
    )
    if trainer.step >= plan.total_steps:
        say(f"the run is already finished at step {trainer.step}; rewriting its report")
    elif saved:
        say(f"going on from step {trainer.step:,} of {plan.total_steps:,}")
    finished = trainer.fit(iter(batches))
    headline: dict[str, Any] = {}
    if sharded(config, fabric):  # what is exported and drawn is a whole network, on one rank
        state = fsdp.whole(method.state_dict())  # type: ignore[attr-defined]
        method = load.build_method(settings)
        method.load_state_dict(state)  # type: ignore[attr-defined]
    if fabric.is_global_zero:
        headline = _finish(folder, method, settings, source, trainer.step, finished)
        if not finished:
            say(f"stopped at step {trainer.step} ({trainer.stop_reason}); go on with --resume --out {folder}")
    fabric.barrier()
    return Result(folder=folder, steps=trainer.step, finished=finished, headline=headline)


def derive(settings: RunConfig, source: Source, asked: RunConfig) -> Plan:
    """Every number that follows from the configuration and the source, in one place.

    Raises:
        ConfigError: no length to derive the schedule from, or a warm-up longer than the run.
    """
    batch = settings.batch_size
    assert batch is not None
    per_epoch = None if source.streaming else len(source) // batch
    if per_epoch == 0:
        raise ConfigError(
            f"batch size {batch} is larger than {settings.source} with its {len(source)} images: "
            f"use --batch-size {len(source)} or less"
        )
    if settings.max_steps is not None:
        total = settings.max_steps
    elif per_epoch is None:
        raise ConfigError(f"{settings.source} is a stream without a length: say how long with --max-steps")
    else:
        total = settings.epochs * per_epoch
    o = settings.optim
    if o.warmup_epochs is None:
        warmup = min(10 * per_epoch if per_epoch else total, total // 5)
    elif o.warmup_epochs and per_epoch is None:
        raise ConfigError(
            f"optim.warmup_epochs = {o.warmup_epochs} cannot be counted on the stream {settings.source}: "
            "use --optim.warmup-epochs null (a fifth of the run) or 0"
        )
    else:
        warmup = round(o.warmup_epochs * (per_epoch or 0))
        if warmup > total and asked.given.isdisjoint(("optim", "optim.warmup_epochs")):
            warmup = total // 5
    if warmup > total:
        raise ConfigError(
            f"optim.warmup_epochs = {o.warmup_epochs} is {warmup} steps, but the run has {total}: use "
            "--optim.warmup-epochs null (at most a fifth of the run), or train longer"
        )
    peak = o.lr * batch / o.reference_batch if o.reference_batch else o.lr

    def rate(step: int) -> float:
        return optim.warmup_cosine(step, peak=peak, warmup_steps=warmup, total_steps=total, final=o.final_lr)

    return Plan(
        total_steps=total,
        steps_per_epoch=per_epoch,
        batch_size=batch,
        peak=peak,
        warmup_steps=warmup,
        learning_rate=rate,
        accumulate=settings.accumulate,
        clip_grad=settings.clip_grad,
        log_every=asked.log_every,
        checkpoint_every=asked.checkpoint_every,
        monitor_every=asked.monitor.every,
        max_seconds=asked.max_minutes * 60 if asked.max_minutes else None,
        max_bad=None if source.streaming else math.floor(settings.max_bad * len(source)),
    )


# ---- parts -----------------------------------------------------------------------------------------------------


def _resolve(config: RunConfig, source: Source, fabric: Fabric) -> dict[str, Any]:
    """The configuration as `config.yaml` holds it: what was left open (null) is filled in."""
    values = config.to_dict()
    kind = plugins.find("methods", config.method["name"])
    values["mean"], values["std"] = list(config.mean or kind.mean), list(config.std or kind.std)
    values["views"] = [dataclasses.asdict(view) for view in config.views or kind.views]
    if config.batch_size is None:
        wanted = 256 * fabric.world_size if fabric.device.type == "cuda" else 32
        have = wanted if source.streaming else len(source)
        values["batch_size"] = max(1, min(wanted, have) // fabric.world_size) * fabric.world_size
    return values


def _refuse_other(config: RunConfig, saved: Mapping[str, Any], source: Source, fabric: Fabric, folder: Path) -> None:
    changed = differences(saved, _resolve(config, source, fabric))
    if changed:
        raise ConfigError(
            f"{folder} was started with other settings ({'; '.join(changed)}): resume with the old ones, "
            "or start a new run with another --out"
        )


def _check_needs(method: Method, source: Source, settings: RunConfig) -> None:
    method.backbone.check_size()
    missing = sorted(method.needs - source.provides)
    if missing:
        raise DataError(
            f"method {settings.method['name']} needs {', '.join(missing)} of every image, and {settings.source} "
            f"gives {', '.join(sorted(source.provides)) or 'images only'}: use another source or method"
        )


def _trainer(
    fabric: Fabric,
    method: Method,
    plan: Plan,
    settings: RunConfig,
    asked: RunConfig,
    source: Source,
    folder: Path,
    resolved: Mapping[str, Any],
) -> Trainer:
    module: nn.Module = method  # type: ignore[assignment]
    module.train()
    if settings.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module.to(fabric.device)
    if settings.sync_batch_norm and fabric.world_size > 1:
        convert_sync_batchnorm(module)
    if asked.compile:
        for part in module.modules():
            if isinstance(part, type(method.backbone)):
                part.compile_features()
    if sharded(asked, fabric):
        fsdp.check(settings, asked.compile)
        fsdp.shard(module, fabric.strategy.device_mesh["data_parallel"])  # type: ignore[attr-defined]
    optimizer = optim.build_optimizer(module, settings.optim, plan.learning_rate(0))
    measured = (
        monitors.build(
            source,
            images=asked.monitor.images,
            image_size=settings.image_size,
            knn_source=asked.monitor.knn,
            knn_test=asked.monitor.knn_test,
            knn_images=asked.monitor.knn_images,
            folder=folder / "regions",
            precision="bf16" if settings.precision == "bf16" else "fp32",
        )
        if asked.monitor.every and fabric.is_global_zero and not sharded(asked, fabric)
        else {}
    )
    return Trainer(
        fabric=fabric,
        method=method,
        optimizer=optimizer,
        photometric=Photometric(settings.mean or method.mean, settings.std or method.std),
        plan=plan,
        folder=folder,
        config=resolved,
        monitors=measured,
        on_measured=_report_verdicts,
    )


def _report_verdicts(step: int, values: dict[str, float]) -> None:
    for sentence in collapse.verdicts(values) if step else ():  # an untrained network has nothing to collapse
        say(f"step {step}: {sentence}")


def sharded(config: RunConfig, fabric: Fabric) -> bool:
    """Whether every rank has a part of the network only; nothing is then measured during training."""
    return config.strategy == "fsdp" and fabric.world_size > 1


def _write_head(folder: Path, resolved: Mapping[str, Any], plan: Plan, settings: RunConfig, *, fresh: bool) -> None:
    make_folder(folder)
    if fresh:
        text = yaml.safe_dump(dict(resolved), sort_keys=False)
        files.write_atomic(folder / "config.yaml", text.encode())
    env = json.dumps(environment.describe(), indent=2)
    files.write_atomic(folder / "environment.json", env.encode())
    say(
        f"{settings.method['name']} on {settings.backbone.name}, {settings.image_size} px -> {folder}\n"
        f"{many(plan.total_steps, 'step')} of {many(plan.batch_size, 'image')}"
        f"{f' ({plan.steps_per_epoch:,} an epoch)' if plan.steps_per_epoch else ''}, "
        f"peak learning rate {plan.peak:.4g} after {many(plan.warmup_steps, 'step')} of warm-up (derived)"
    )
    epochs = settings.optim.warmup_epochs
    usual = "ten epochs" if epochs is None else f"the recipe's {epochs:g}"
    if plan.warmup_steps < round((10 if epochs is None else epochs) * (plan.steps_per_epoch or plan.total_steps)):
        steps = f"{many(plan.warmup_steps, 'step')} of warm-up, at most a fifth of the run,"
        say(f"{steps} instead of {usual} (--optim.warmup-epochs sets it)")


def _finish(
    folder: Path, method: Method, settings: RunConfig, source: Source, steps: int, finished: bool
) -> dict[str, Any]:
    told = {"finished": finished, "steps": steps, "source_images": None if source.streaming else len(source)}
    files.write_atomic(folder / "status.json", json.dumps(told).encode())
    info = load.card(method, settings, steps=steps, commit=environment.commit())
    files.write_backbone(folder / "backbone.safetensors", method.backbone.model.state_dict(), info)
    if getattr(method, "heatmaps", None) is not None and getattr(method, "has_regions", True):
        write_png(folder / "regions.png", region_grid(method, source, count=8))  # type: ignore[arg-type]
    headline = write_report(folder)
    for sentence in [*(headline["collapse"] or []), *headline["notes"]]:
        say(sentence)
    say(f"report: {folder / 'report.html'}")
    return headline
