"""Fine-tuning: parts of the source, task, selection of weights, scores, files."""

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from lightning_fabric import Fabric

from facessl.config import parse
from facessl.config.commands import FINETUNE, resolved
from facessl.config.finetune import FinetuneConfig
from facessl.config.paths import located, published
from facessl.config.run import to_plain
from facessl.core import checkpoint, environment, files, plugins
from facessl.core.errors import ConfigError, DataError, many
from facessl.core.launch import loader_workers, one_after_another
from facessl.core.schema import read_json, to_json
from facessl.core.types import Progress
from facessl.data.decode import EXTENSIONS, read_file, stored_size
from facessl.data.overlap import warn_of_overlap
from facessl.data.skipped import ImageError
from facessl.data.source import Source
from facessl.data.splits import Splits, parts
from facessl.evaluation import score
from facessl.evaluation.mistakes import find_mistakes
from facessl.inference import framing, trained_task
from facessl.models import weights
from facessl.models.backbone import Backbone
from facessl.pretrained import load
from facessl.report.examples import SHOWN, write_examples
from facessl.report.write import write_report
from facessl.tasks.base import Labels, Results, Selected
from facessl.training.derived import Plan, adapt_defaults, cheaper_hint, size_reason
from facessl.training.optimizers import build_finetune_optimizer
from facessl.training.run import TrainingSetup, run_job, say
from facessl.training.task_with_ema import TaskWithEma
from facessl.views.augment import Augment, augment_from_dict
from facessl.views.photometric import Photometric
from facessl.views.supervised import Supervised

#: Number of files of a part of which one must be an image.
_CHECKED = 200


def finetune(
    run: str | os.PathLike[str] = "none", source: str | os.PathLike[str] = "", **settings: Any
) -> dict[str, Any]:
    """Fine-tune a backbone for a downstream task, and score it.

    `facessl.finetune("runs/mine", "labeled/", task="expression", out="runs/expression")`

    Args:
        run: run folder, checkpoint, exported backbone or `timm:NAME`; `none` for random weights.
        source: labeled images, `NAME:PATH?option=value` or a path; needed.
        settings: fields of `facessl.config.finetune.FinetuneConfig`; `task` may be a plain name or a dict.

    Returns:
        Values of `results.json` (`test`: the scores on the test part) with `out`, the run folder, and `finished`.
        A run that was stopped has no scores.

    Raises:
        FaceSSLError: a setting, image or checkpoint that cannot work; the message says which and what to do.
    """
    if not os.fspath(source):
        raise ConfigError(
            f"finetune has the run {os.fspath(run)} and no labeled images: call facessl.finetune(RUN, SOURCE), with "
            "'none' as RUN for random weights"
        )
    config = parse.from_dict({**settings, "run": run, "source": source}, FINETUNE)
    return run_job(Finetuning(config))


class Finetuning:
    """A fine-tuning `facessl.training.run.Job`."""

    backbone: Backbone
    own_size: int | None
    data: Splits
    resolved: dict[str, Any]
    published: dict[str, Any]
    augment: Augment
    labels: Labels
    model: TaskWithEma

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config
        self.notes: list[str] = []

    def name(self) -> str:
        self.backbone, self.own_size = _backbone(self.config)
        if self.config.backbone.checkpointing:
            self.backbone.checkpoint_activations()
        return f"{self.config.task['name']}-{self.backbone.name}"

    def resolve_config(self, fabric: Fabric) -> dict[str, Any]:
        self.data = one_after_another(fabric, lambda: _parts(self.config))
        if fabric.is_global_zero:
            warn_of_overlap(self.data.train, self.data.test)
        self.config, self.notes = adapt_defaults(self.config, len(self.data.train), fabric.world_size)
        backbone = self.backbone
        self.resolved = resolved(self.config) | {
            "image_size": backbone.image_size,
            "backbone": {"name": backbone.name, "pretrained": False, "options": to_plain(backbone.timm_options)},
        }
        self.published = published(located(self.resolved))
        return self.resolved

    def sources(self) -> dict[str, Source]:
        parts = {"training part": self.data.train, "validation part": self.data.val, "test part": self.data.test}
        return {name: part for name, part in parts.items() if part is not None}

    def build(self, fabric: Fabric, folder: Path, *, fresh: bool) -> TrainingSetup:
        config, data = self.config, self.data
        augment = self.augment = augment_from_dict(self.resolved["augment"])
        arguments = dict(config.task)
        kind = plugins.find("tasks", arguments.pop("name"))
        labels = self.labels = Labels.of(data.train, kind.needs)
        task = kind(self.backbone, labels, **arguments)
        self.model = TaskWithEma(task, ema=config.ema, ramp=config.ema_ramp, frozen=config.frozen)
        if hasattr(task, "check"):
            task.check(augment)
        selection = {"val": data.val, "test": data.test, "last": None}[config.select]
        for part in (data.test, selection or data.test):
            task.meter(part, augment)  # raises now, not after hours of training
            _check_readable(part, "test" if part is data.test else "validation")
        return TrainingSetup(
            module=self.model,
            optimizer=lambda plan: build_finetune_optimizer(task, config.optim),
            source=data.train,
            transform=training_view(task, labels, augment),
            photometric=Photometric(self.backbone.mean, self.backbone.std),  # type: ignore[arg-type]
            monitors={} if selection is None else {"selection": partial(_select, folder, selection, augment, config)},
            weights=_balance(data.train) if config.balanced else None,
        )

    def begin(self, plan: Plan, folder: Path, *, fresh: bool) -> list[str]:
        if fresh:
            for name in ("best.json", "best.safetensors"):  # of a run that was stopped before its first checkpoint
                (folder / name).unlink(missing_ok=True)
        config, data, backbone = self.config, self.data, self.backbone
        val = "none set apart" if data.val is None else f"{len(data.val)}{' of the training images' * data.carved}"
        head = (
            f"{config.task['name']} ({config.protocol}) on {backbone.name}, {backbone.image_size} px "
            f"({size_reason(config, self.own_size)}) -> {folder}\n"
            f"{many(len(data.train), 'image')} to train on, validation {val}, test {len(data.test)}; "
            f"{many(plan.total_steps, 'step')} of {many(plan.batch_size, 'image')}, {plan.steps_per_epoch} an epoch"
        )
        device = next(self.model.parameters()).device
        hint = cheaper_hint(self.model.task, device.type) if fresh else None
        return [head, *self.notes, *filter(None, [hint])]

    def finish(self, fabric: Fabric, folder: Path, step: int, *, finished: bool) -> dict[str, Any]:
        """Score the selected weights on the test part, and write every file of the run."""
        if not fabric.is_global_zero:
            return {}
        config, task = self.config, self.model.eval_task
        status = json.dumps({"finished": finished, "steps": step}).encode()
        identity = {
            "task": config.task["name"],
            "protocol": "linear (frozen)" if config.frozen else config.protocol,
            "run": self.published["run"],
            "source": self.published["source"],
            "labels": config.labels,
        }
        ended = {"out": str(folder), "steps": step, "finished": finished}
        if not finished:
            files.write_atomic(folder / "status.json", status)
            return identity | ended
        selected: Selected = {"step": step, "by": "last"}
        if (folder / "best.json").is_file():
            file = folder / "best.safetensors"
            weights.load_exactly(task, checkpoint.read_safetensors(file)[0], file)
            selected = read_json(folder / "best.json", _Best) | {"by": config.select}
        elif config.select != "last":
            say(f"no score of the {config.select} part was a number: the last weights are kept")
        steps, commit = selected["step"], environment.commit()
        frame = framing.measure(self.data.train) if self.augment.crop == "whole" else None
        if frame:
            say(framing.sentence(frame))
        card = trained_task.card(
            task, self.labels, self.published, self.augment, steps=steps, commit=commit, framing=frame
        )
        checkpoint.write_backbone(folder / "model.safetensors", task.state_dict(), card)
        backbone_card = {k: v for k, v in card.items() if k not in ("labels", "augment", "framing", "format")}
        backbone_card |= {"format": "facessl-backbone-1", "num_features": task.backbone.num_features}
        checkpoint.write_backbone(folder / "backbone.safetensors", task.backbone.model.state_dict(), backbone_card)
        trained = trained_task.Trained(task, task.backbone.image_size, self.augment, card)
        mistakes = find_mistakes(trained, self.data.test, count=SHOWN, train=self.data.train, **_scoring(config))
        results: Results = {
            **identity,  # type: ignore[typeddict-item]
            "selected": selected,
            "train_images": len(self.data.train),
            "test": mistakes.scores,
        }
        files.write_atomic(folder / "results.json", to_json(results, indent=2).encode() + b"\n")
        files.write_atomic(folder / "status.json", status)
        write_examples(folder, mistakes)
        for sentence in write_report(folder)["notes"]:
            say(sentence)
        say(f"report: {folder / 'report.html'}")
        return results | ended


def _backbone(config: FinetuneConfig) -> tuple[Backbone, int | None]:
    """The trainable backbone at the size of the run; and the size that it was trained at, if any."""
    size, settings = config.image_size, config.backbone
    if config.run == "none":
        torch.manual_seed(config.seed)
        backbone = Backbone(settings.name, image_size=size or 224, pretrained=settings.pretrained, **settings.options)
        backbone.check_size()
        if settings.pretrained:
            say(f"pre-trained weights of timm; images are normalized by mean {backbone.mean} and std {backbone.std}")
        return backbone, None
    backbone = load.load_backbone(config.run)
    if settings.options:
        backbone = weights.with_options(backbone, settings.options)
    own = backbone.image_size
    if size is not None:
        weights.set_image_size(backbone, size)
        backbone.check_size()
    return backbone, own


def training_view(task: Any, labels: Labels, augment: Augment) -> Supervised:
    """Stored image -> augmented view with the labels that `task` needs."""
    backbone = task.backbone
    return Supervised(
        augment,
        backbone.image_size,
        layout=labels.order,
        mask_flip=labels.mask_flip,
        needs=task.needs,
        mask_outside=getattr(task, "mask_outside", 255),
        mean=backbone.mean,
        std=backbone.std,
    )


def _parts(config: FinetuneConfig) -> Splits:
    if not config.source:
        raise ConfigError("fine-tuning needs labeled images: facessl finetune RUN SOURCE (`synthetic:` for a trial)")
    splits = parts(
        config.source,
        test=config.test,
        val=config.val,
        val_fraction=config.val_fraction,
        need_val=config.select == "val",
        labels=config.labels,
        seed=config.seed,
        needs=plugins.find("tasks", config.task["name"]).needs,
    )
    if any(part is not None and part.streaming for part in (splits.train, splits.val, splits.test)):
        raise ConfigError(
            f"fine-tuning needs images by position, and a part of {config.source} is a stream: use a folder, a list or "
            "shards on a disk"
        )
    return splits


def _check_readable(source: Source, part: str) -> None:
    """Raise DataError if no file of a small part is an image, by the headers.

    Keys that name no image file (synthetic images, members of shards) are not checked.
    """
    first_error: ImageError | None = None
    for path in (Path(source.key(index)) for index in range(min(len(source), _CHECKED))):
        if path.suffix.lower() not in EXTENSIONS or not path.parent.is_dir():
            return
        try:
            stored_size(read_file(path), key=str(path))
            return
        except ImageError as error:
            first_error = first_error or error
    if first_error is not None and len(source) <= _CHECKED:
        which = f"the first of {len(source)}" if len(source) > 1 else "its only one"
        raise DataError(
            f"no image of the {part} part can be read ({which}: {first_error.key}: {first_error.reason}): correct the "
            f"paths, or name other images with --{'test' if part == 'test' else 'val'}"
        )


class _Best(TypedDict):
    """`best.json`, on the weights in `best.safetensors`."""

    step: int
    name: str
    value: float


def _select(
    folder: Path, source: Source, augment: Augment, config: FinetuneConfig, model: TaskWithEma, progress: Progress
) -> dict[str, float]:
    """Monitor that scores the selection part and saves the best weights as `best.safetensors`."""
    task = model.eval_task
    scores, _ = score.score(task, source, augment, image_size=task.backbone.image_size, **_scoring(config))
    name, better = scores["headline"]["name"], scores["headline"]["better"]
    value = math.nan if scores["headline"]["value"] is None else float(scores["headline"]["value"])
    note = folder / "best.json"
    best = read_json(note, _Best) if note.is_file() else {"step": math.inf}
    sign = 1 if better == "higher" else -1
    if not math.isfinite(value):
        say(f"step {progress.step}: {name} of the {config.select} part is not a number: not kept")
    # The score before training selects nothing; a resumed run repeats later measurements.
    elif progress.step and (best["step"] >= progress.step or sign * value > sign * best["value"]):
        selected: _Best = {"step": progress.step, "name": name, "value": value}
        checkpoint.write_backbone(note.with_suffix(".safetensors"), task.state_dict(), selected)  # and the note
    return {f"{config.select}_{name}": value}


def _scoring(config: FinetuneConfig) -> dict[str, Any]:
    return {
        "batch_size": max(config.batch_size, 32),
        "workers": loader_workers(config.workers),
        "precision": config.precision,
        "max_bad": config.max_bad,
    }


def _balance(source: Source) -> np.ndarray:
    """(N,) probabilities of the images that make all classes equally frequent."""
    labels = source.column("label")
    counts = np.bincount(labels[labels >= 0])
    weights = np.where(labels >= 0, 1 / counts[labels.clip(0)], 0)
    return weights / weights.sum()
