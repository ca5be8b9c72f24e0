"""A run of any kind: folder, resume, training.

`pretrain.py` and `finetune.py` give what differs between them, as `Job` says.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from lightning_fabric import Fabric

from facessl.config.paths import SOURCES, located, published, without_secrets
from facessl.config.run import differences
from facessl.core import checkpoint, environment, files
from facessl.core.errors import ConfigError
from facessl.core.launch import expected_errors, loader_workers, one_after_another, start_fabric
from facessl.core.lock import only_writer
from facessl.core.yaml_file import read_yaml
from facessl.data.loader import TrainLoader
from facessl.data.location import refuse_inside
from facessl.data.source import Source
from facessl.models.layers.sync_batch_norm import convert_sync_batchnorm
from facessl.training.derived import Plan, derive
from facessl.training.trainer import Trainer, TrainingSetup


class Job(Protocol):
    """What differs between the kinds of run; the methods are called in this order.

    Attributes:
        config: a `RunConfig` as it was asked for; after `settle` without open settings.
    """

    config: Any

    def name(self) -> str:
        """Reads the network, where it is a trained one. Returns the run folder's name, where nobody chose one."""

    def settle(self, fabric: Fabric) -> dict[str, Any]:
        """Opens the images and settles `config`. Returns its plain values, as `config.yaml` holds them."""

    def sources(self) -> dict[str, Source]:
        """The images that the run depends on, by the name of their part."""

    def build(self, fabric: Fabric, folder: Path, *, fresh: bool) -> TrainingSetup:
        """What is trained. The random state is that of the seed. `fresh`: not resumed."""

    def begin(self, plan: Plan, folder: Path, *, fresh: bool) -> list[str]:
        """On the first rank before the first step. Returns what is said about the run."""

    def finish(self, fabric: Fabric, folder: Path, step: int, *, finished: bool) -> Any:
        """On every rank after the last step. Returns the result of the run."""


def run_job(job: Job) -> Any:
    """Run a job, a new or a resumed one, on every rank of a distributed job. Returns what `job.finish` does."""
    with expected_errors(), warnings.catch_warnings(), contextlib.ExitStack() as lock:
        warnings.filterwarnings("ignore", module="lightning.*")
        asked = job.config
        fabric = start_fabric(asked.device, asked.precision, getattr(asked, "strategy", "auto"))
        hint = environment.use_threads(asked.threads, asked.device)
        if hint and fabric.is_global_zero:
            say(hint)
        folder = _folder(asked.out, asked.resume, job.name(), fabric)
        _check_folder(folder, resume=asked.resume)
        one_after_another(fabric, lambda: fabric.is_global_zero and lock.enter_context(_claimed(folder)))
        _check_folder(folder, resume=asked.resume)  # another process may have written it in between
        return _run_job(job, fabric, folder)


def _run_job(job: Job, fabric: Fabric, folder: Path) -> Any:
    last = folder / "checkpoints" / "last.ckpt"
    # Without a checkpoint a resumed run begins again.
    saved = checkpoint.read_run(last) if job.config.resume and last.is_file() else None
    resolved = located(job.settle(fabric))
    config = job.config
    sources = job.sources()
    for source in () if config.resume else sources.values():
        refuse_inside(folder, source, "the run")
    marks = fabric.broadcast(_marks(sources) if fabric.is_global_zero else {})
    if saved:
        _refuse_changes(saved, resolved, marks, folder)
    fabric.seed_everything(config.seed, workers=False, verbose=False)
    setup = job.build(fabric, folder, fresh=not saved)
    plan = derive(config, None if setup.source.streaming else len(setup.source))
    module = setup.module.train()
    if config.channels_last:
        module.to(memory_format=torch.channels_last)
    module.to(fabric.device)
    if config.sync_batch_norm and fabric.world_size > 1:
        convert_sync_batchnorm(module)
    trainer = Trainer(fabric, setup, plan, folder, {"config": published(resolved), "sources": marks})
    if fabric.world_size > 1:  # dropout differs between the ranks, also where other ranks go on than began
        torch.manual_seed(config.seed + fabric.global_rank + (saved["step"] * fabric.world_size if saved else 0))
    if saved:
        trainer.load_state(saved)
    if fabric.is_global_zero:
        _write_config(folder, resolved, fresh=not saved)
        files.write_atomic(folder / "environment.json", json.dumps(environment.describe(), indent=2).encode())
        for line in job.begin(plan, folder, fresh=not saved):
            say(line)
        if saved:
            step = f"step {trainer.step:,} of {plan.total_steps:,}"
            more = trainer.step < plan.total_steps
            say(f"going on from {step}" if more else f"the run is already finished at {step}; rewriting its results")
    batches = TrainLoader(
        setup.source,
        setup.transform,
        batch_size=plan.batch_size,
        seed=config.seed,
        workers=loader_workers(config.workers),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        start_step=trainer.step,
        pin_memory=fabric.device.type == "cuda",
        weights=setup.weights,
    )
    finished = trainer.fit(iter(batches))
    result = job.finish(fabric, folder, trainer.step, finished=finished)
    if fabric.is_global_zero and not finished:
        say(f"stopped at step {trainer.step} ({trainer.stop_reason}); go on with --resume --out {folder}")
    fabric.barrier()
    return result


def _marks(sources: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    return {
        part: {"images": None if source.streaming else len(source), "fingerprint": source.fingerprint()}
        for part, source in sources.items()
    }


def _refuse_changes(saved: Mapping[str, Any], resolved: dict[str, Any], marks: Mapping[str, Any], folder: Path) -> None:
    """ConfigError where a run would go on with other images or settings; the images may have moved."""
    rest = "resume with the old ones, or start a new run with another --out"
    before, new = saved.get("sources", {}), published(resolved)
    parts = [_changed_part(part, before.get(part), marks.get(part)) for part in {**before, **marks}]
    if changed := "; ".join(filter(None, parts)):
        raise ConfigError(f"{folder} was started with other images ({changed}): {rest}")
    if found := differences(saved["config"] | {name: new[name] for name in SOURCES if name in new}, new):
        raise ConfigError(f"{folder} was started with other settings ({'; '.join(found)}): {rest}")


def _changed_part(part: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """What changed in a part of the images; "" where nothing did."""
    if before == now:
        return ""
    counts = [mark["images"] if mark else 0 for mark in (before, now)]
    if counts[0] != counts[1]:
        return f"{part}: {counts[0]} images -> {counts[1]}"
    return f"{part}: names, sizes, order, labels or contents of its {counts[0]} images changed"


def _write_config(folder: Path, resolved: Mapping[str, Any], *, fresh: bool) -> None:
    """`config.yaml`: the settings that the run began with, and where its images now are."""
    path = folder / "config.yaml"
    if not fresh and path.is_file():
        known = read_yaml(path)
        moved = known | {name: resolved[name] for name in SOURCES if name in resolved}
        if moved == known:
            return
        resolved = moved
    text = yaml.safe_dump({**resolved, "resume": False}, sort_keys=False).encode()
    files.write_atomic(path, text, private=without_secrets(resolved) != resolved)


def say(text: str) -> None:
    """A line for people, on standard error so that standard output stays readable by scripts."""
    print(text, file=sys.stderr, flush=True)


def _folder(out: str | None, resume: bool, name: str, fabric: Fabric) -> Path:
    """`out`, or `runs/<name>`, numbered where taken; the same on every rank."""
    if out is not None:
        return Path(out)
    if resume:
        raise ConfigError("--resume needs --out RUN: the folder of the run to go on with")
    base = Path("runs") / name
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return Path(fabric.broadcast(str(folder)))


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """The folder with this process as its only writer, without what processes that were killed left unfinished."""
    with only_writer(folder):
        files.remove_temporaries(folder, folder / "checkpoints", folder / "regions")
        yield


def _check_folder(folder: Path, *, resume: bool) -> None:
    """ConfigError where a run cannot be resumed from a folder, or begun there: none is ever overwritten.

    DataError where a link in it leads elsewhere.
    """
    for name in ("checkpoints", "regions", "tb"):  # a link there would have the files of another run changed
        files.inside(folder, f"{name}/file")
    last = folder / "checkpoints" / "last.ckpt"
    if resume:
        if not last.is_file() and not (folder / "config.yaml").is_file():
            what = "it has no checkpoints/last.ckpt" if folder.exists() else "there is no such folder"
            raise ConfigError(f"nothing to resume in {folder}: {what}; leave out --resume, or name the run with --out")
        return
    if last.exists() or (folder / "metrics.csv").exists():
        raise ConfigError(f"{folder} already holds a run: add --resume to go on with it, or choose another --out")
    files.check_output(folder, folder=True)
