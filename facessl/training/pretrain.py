"""Pre-training: source, method, monitors, exports, report."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from facessl.config.parse import from_dict
from facessl.config.pretrain import PretrainConfig
from facessl.core import checkpoint, environment, files, plugins
from facessl.core.errors import ConfigError, DataError, many
from facessl.core.escape import printable
from facessl.core.launch import one_after_another
from facessl.data.location import redacted
from facessl.data.source import Source, open_source
from facessl.inference.region_pictures import write_regions
from facessl.methods.base import Method, has_regions
from facessl.metrics import collapse
from facessl.pretrained import load
from facessl.report.write import write_report
from facessl.training import fsdp, monitors, optimizers
from facessl.training.derived import Plan, fitting_batch, shorter_warmup
from facessl.training.run import TrainingSetup, run_job, say
from facessl.views.geometric import Geometric
from facessl.views.photometric import Photometric


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        folder: the run folder.
        steps: optimizer steps done.
        finished: False if it was stopped and can be resumed.
        headline: the report's headline numbers.
    """

    folder: Path
    steps: int
    finished: bool
    headline: dict[str, Any]


def pretrain(source: str | os.PathLike[str] | None = None, **settings: Any) -> Result:
    """Pre-train a face backbone on unlabeled images.

    Args:
        source: a folder of crops (of photos: `facessl.crop`), `NAME:PATH?option=value`, or None for the embedded
            synthetic faces.
        settings: fields of `facessl.config.pretrain.PretrainConfig`; `method` and `backbone` may be plain names or
            dicts (`method={"name": "fra", "num_regions": 16}`), `optim` and `monitor` dicts.

    Returns:
        The run folder and its headline numbers.

    Raises:
        FaceSSLError: a setting, image or checkpoint that cannot work; the message says which and what to do.
    """
    if source is not None:
        settings["source"] = source
    return run_job(Pretraining(from_dict(settings)))


class Pretraining:
    """A pre-training `facessl.training.run.Job`."""

    source: Source
    method: Any
    note: str  # on a batch size that was reduced

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config

    def name(self) -> str:
        return f"{self.config.method['name']}-{self.config.backbone.name}"

    def resolve_config(self, fabric: Fabric) -> dict[str, Any]:
        config = self.config
        kind = plugins.find("methods", config.method["name"])
        source = self.source = one_after_another(fabric, lambda: open_source(config.source))
        images = None if source.streaming else len(source)
        batch, self.note = fitting_batch(config, images, fabric.world_size, fabric.device.type)
        mean, std = load.normalization(config)
        self.config = dataclasses.replace(
            config,
            mean=mean,
            std=std,
            views=list(config.views or kind.views),
            batch_size=batch,
        )
        return self.config.to_dict()

    def sources(self) -> dict[str, Source]:
        return {"source": self.source}

    def build(self, fabric: Fabric, folder: Path, *, fresh: bool) -> TrainingSetup:
        config = self.config
        method = self.method = load.build_method(config, fresh=fresh)
        _check_needs(method, self.source, config)
        check_views(type(method), config)
        check_accumulation(method, config, fabric.world_size)
        check_compile(method, config)
        if hasattr(method, "prepare"):
            method.prepare(load.load_frozen)
        sharded = self._is_sharded(fabric)

        def optimizer(plan: Plan) -> torch.optim.Optimizer:
            if config.compile:
                for part in self.method.modules():
                    if isinstance(part, type(method.backbone)):
                        part.compile_features()
            if sharded:
                fsdp.check(config, config.compile)
                fsdp.shard(self.method, fabric.strategy.device_mesh["data_parallel"])  # type: ignore[attr-defined]
            return optimizers.build_optimizer(self.method, config.optim, plan.learning_rate(0))

        monitor = config.monitor.every and fabric.is_global_zero and not sharded
        return TrainingSetup(
            module=method,
            optimizer=optimizer,
            source=self.source,
            transform=Geometric(config.views, config.image_size),  # type: ignore[arg-type]
            photometric=Photometric(config.mean, config.std),  # type: ignore[arg-type]
            monitors=monitors.build(self.source, config, folder / "regions") if monitor else {},
            on_measured=_report_verdicts,
        )

    def begin(self, plan: Plan, folder: Path, *, fresh: bool) -> list[str]:
        config = self.config
        head = (
            f"{config.method['name']} on {config.backbone.name}, {config.image_size} px, {self._images()} -> {folder}\n"
            f"{many(plan.total_steps, 'step')} of {many(plan.batch_size, 'image')}"
            f"{f' ({plan.steps_per_epoch:,} an epoch)' if plan.steps_per_epoch else ''}, "
            f"peak learning rate {plan.peak:.4g}, warm-up: {many(plan.warmup_steps, 'step')}"
            f"{shorter_warmup(config, plan)}"
        )
        if hasattr(self.method, "schedule"):
            head += f"\n{self.method.schedule(plan.progress(0))}"
        if fresh and config.backbone.pretrained:
            head += f"\npre-trained weights of timm; images are normalized by mean {config.mean} and std {config.std}"
        return [head, self.note] if self.note else [head]

    def finish(self, fabric: Fabric, folder: Path, step: int, *, finished: bool) -> Result:
        method: Any = self.method
        source = self.source
        sharded = self._is_sharded(fabric)
        state = fsdp.whole(method.state_dict()) if sharded else {}
        if not fabric.is_global_zero:
            return Result(folder, step, finished, {})
        if sharded:  # one rank exports the whole network
            method = load.build_method(self.config, fresh=False)
            method.load_state_dict(state)
        status = {"finished": finished, "steps": step, "source_images": None if source.streaming else len(source)}
        files.write_atomic(folder / "status.json", json.dumps(status).encode())
        card = load.card(method, self.config, steps=step, commit=environment.commit())
        checkpoint.write_backbone(folder / "backbone.safetensors", method.backbone.model.state_dict(), card)
        if has_regions(method):
            write_regions(folder / "regions.png", method, source)
        headline = write_report(folder)
        for sentence in [*(headline["collapse"] or []), *headline["notes"]]:
            say(sentence)
        say(f"report: {folder / 'report.html'}")
        return Result(folder, step, finished, headline)

    def _images(self) -> str:
        """The training images in words."""
        config = self.config
        if config.source == PretrainConfig.source and "source" not in config.explicit:
            return f"{many(len(self.source), 'synthetic face')} as no SOURCE is given"
        source = printable(redacted(config.source))
        return f"the stream {source}" if self.source.streaming else f"{many(len(self.source), 'image')} of {source}"

    def _is_sharded(self, fabric: Fabric) -> bool:
        """Whether every rank has only a part of the network; monitors do not run then."""
        return self.config.strategy == "fsdp" and fabric.world_size > 1


def _check_needs(method: Method, source: Source, config: PretrainConfig) -> None:
    method.backbone.check_size()
    missing = sorted(method.needs - source.provides)
    if missing:
        raise DataError(
            f"method {config.method['name']} needs {', '.join(missing)} of every image, and {config.source} "
            f"gives {', '.join(sorted(source.provides)) or 'images only'}: use another source or method"
        )


def check_views(kind: type[Method], config: PretrainConfig) -> None:
    """Raise ConfigError for a number of views that the method cannot use."""
    default = len(kind.views)
    fewest, most = getattr(kind, "view_count", (default, default))
    count = len(config.views or ())
    if count < fewest or (most is not None and count > most):
        valid = many(fewest, "view") if fewest == most else f"{fewest} views or more"
        raise ConfigError(
            f"method {config.method['name']} takes {valid}, but --views has {count}: leave --views out, or give {valid}"
        )


def check_accumulation(method: Method, config: PretrainConfig, world_size: int) -> None:
    """Raise ConfigError for micro-batches that would change the loss, or that do not divide the batch."""
    parts = config.accumulate
    if parts == 1:
        return
    batch = config.batch_size or 0
    if batch % (parts * world_size):
        fitting = max(1, batch // (parts * world_size)) * parts * world_size
        raise ConfigError(
            f"a batch of {batch} images on {world_size} ranks cannot be cut in {parts} equal micro-batches: use "
            f"{fitting}"
        )
    batch_wide = getattr(method, "batch_wide", "")
    if batch_wide and not config.accumulate_approximate:
        raise ConfigError(
            f"accumulate = {parts} would change the loss of {config.method['name']}: {batch_wide} would span "
            f"{batch // parts} images instead of {batch}; use more GPUs or a smaller batch, or accept it with "
            "--accumulate-approximate"
        )


def check_compile(method: Method, config: PretrainConfig) -> None:
    """Raise ConfigError where the compiled feature extractor would not be called, or would break off in each block."""
    if not config.compile:
        return
    if getattr(method, "patches_only", False):
        name = config.method["name"]
        raise ConfigError(f"--compile has no effect on {name}, which calls a ViT's blocks by itself: leave it out")
    if config.backbone.checkpointing:
        raise ConfigError("--compile has no effect with --backbone.checkpointing: leave one of them out")


def _report_verdicts(step: int, values: dict[str, float]) -> None:
    for sentence in collapse.verdicts(values) if step else ():  # an untrained network has nothing to collapse
        say(f"step {step}: {sentence}")
