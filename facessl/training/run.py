"""A run of any kind: folder, resume, training. `pretrain.py` and `finetune.py` define its `Job`."""

import contextlib
import itertools
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
    """Differences between the kinds of run; the methods are called in this order.

    Attributes:
        config: a `RunConfig`, complete after `resolve_config`.
    """

    config: Any

    def name(self) -> str:
        """Read a trained network, if any. Return the default name of the run folder."""

    def resolve_config(self, fabric: Fabric) -> dict[str, Any]:
        """Open the images and complete `config`. Return its plain values, as in `config.yaml`."""

    def sources(self) -> dict[str, Source]:
        """Images that the run depends on, by the name of their part."""

    def build(self, fabric: Fabric, folder: Path, *, fresh: bool) -> TrainingSetup:
        """Build the model and its data, with the random state of the seed. `fresh`: not resumed."""

    def begin(self, plan: Plan, folder: Path, *, fresh: bool) -> list[str]:
        """Return messages about the run, on the first rank before the first step."""

    def finish(self, fabric: Fabric, folder: Path, step: int, *, finished: bool) -> Any:
        """Return the result of the run, on every rank after the last step."""


def run_job(job: Job) -> Any:
    """Run or resume a job on every rank. Return the result of `job.finish`."""
    with expected_errors(), warnings.catch_warnings(), contextlib.ExitStack() as lock:
        warnings.filterwarnings("ignore", module="lightning.*")
        config = job.config
        fabric = start_fabric(config.device, config.precision, getattr(config, "strategy", "auto"))
        hint = environment.use_threads(config.threads, config.device)
        if fabric.device.type == "cpu":
            environment.keep_memory()
        if hint and fabric.is_global_zero:
            say(hint)
        folder = _folder(config.out, config.resume, job.name(), fabric)
        _check_folder(folder, resume=config.resume)
        one_after_another(fabric, lambda: fabric.is_global_zero and lock.enter_context(_locked(folder)))
        _check_folder(folder, resume=config.resume)  # another process may have written it in between
        return _run_job(job, fabric, folder)


def _run_job(job: Job, fabric: Fabric, folder: Path) -> Any:
    last = folder / "checkpoints" / "last.ckpt"
    # Without a checkpoint a resumed run starts again.
    saved = checkpoint.read_run(last) if job.config.resume and last.is_file() else None
    resolved = located(job.resolve_config(fabric))
    config = job.config
    sources = job.sources()
    for source in () if config.resume else sources.values():
        refuse_inside(folder, source, "the run")
    fingerprints = fabric.broadcast(_fingerprints(sources) if fabric.is_global_zero else {})
    if saved:
        _refuse_changes(saved, resolved, fingerprints, folder)
    fabric.seed_everything(config.seed, workers=False, verbose=False)
    setup = job.build(fabric, folder, fresh=not saved)
    plan = derive(config, None if setup.source.streaming else len(setup.source))
    module = setup.module.train()
    if config.channels_last:
        module.to(memory_format=torch.channels_last)
    module.to(fabric.device)
    if config.sync_batch_norm and fabric.world_size > 1:
        convert_sync_batchnorm(module)
    trainer = Trainer(fabric, setup, plan, folder, {"config": published(resolved), "sources": fingerprints})
    if fabric.world_size > 1:  # dropout differs between the ranks, also after a resume on another number of them
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
            done = trainer.step >= plan.total_steps
            say(f"the run is already finished at {step}; rewriting its results" if done else f"going on from {step}")
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
        say(f"stopped at step {trainer.step} ({trainer.stopping.reason}); go on with --resume --out {folder}")
    fabric.barrier()
    return result


def _fingerprints(sources: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    return {
        part: {"images": None if source.streaming else len(source), "fingerprint": source.fingerprint()}
        for part, source in sources.items()
    }


def _refuse_changes(
    saved: Mapping[str, Any], resolved: dict[str, Any], fingerprints: Mapping[str, Any], folder: Path
) -> None:
    """Raise ConfigError if a run would be resumed with other images or settings; the images may have moved."""
    advice = "resume with the old ones, or start a new run with another --out"
    before, new = saved.get("sources", {}), published(resolved)
    parts = [_changed_part(part, before.get(part), fingerprints.get(part)) for part in {**before, **fingerprints}]
    if changed := "; ".join(filter(None, parts)):
        raise ConfigError(f"{folder} was started with other images ({changed}): {advice}")
    if changes := differences(saved["config"] | {name: new[name] for name in SOURCES if name in new}, new):
        raise ConfigError(f"{folder} was started with other settings ({'; '.join(changes)}): {advice}")


def _changed_part(part: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Change in a part of the images; "" if there is none."""
    if before == now:
        return ""
    old, new = (fingerprint["images"] if fingerprint else 0 for fingerprint in (before, now))
    if old != new:
        return f"{part}: {old} images -> {new}"
    return f"{part}: names, sizes, order, labels or contents of its {old} images changed"


def _write_config(folder: Path, resolved: Mapping[str, Any], *, fresh: bool) -> None:
    """Write `config.yaml`: the settings that the run began with, and the present places of its images."""
    path = folder / "config.yaml"
    if not fresh and path.is_file():
        before = read_yaml(path)
        resolved = before | {name: resolved[name] for name in SOURCES if name in resolved}
        if resolved == before:
            return
    text = yaml.safe_dump({**resolved, "resume": False}, sort_keys=False).encode()
    files.write_atomic(path, text, private=without_secrets(resolved) != resolved)


def say(text: str) -> None:
    """Print a line to standard error, as scripts read standard output."""
    print(text, file=sys.stderr, flush=True)


def _folder(out: str | None, resume: bool, name: str, fabric: Fabric) -> Path:
    """`out`, or `runs/<name>`, numbered if taken; the same on every rank."""
    if out is not None:
        return Path(out)
    if resume:
        raise ConfigError("--resume needs --out RUN: the folder of the run to go on with")
    folders = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return Path(fabric.broadcast(str(next(folder for folder in folders if not folder.exists()))))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder, and remove temporary files of processes that were killed."""
    with only_writer(folder):
        files.remove_temporaries(folder, folder / "checkpoints", folder / "regions")
        yield


def _check_folder(folder: Path, *, resume: bool) -> None:
    """Raise ConfigError if a run cannot be resumed from a folder or started there; none is ever overwritten.

    DataError: a link in it leads elsewhere.
    """
    for name in ("checkpoints", "regions", "tb"):  # links that would change the files of another run
        files.inside(folder, f"{name}/file")
    last = folder / "checkpoints" / "last.ckpt"
    if resume:
        if not last.is_file() and not (folder / "config.yaml").is_file():
            what = "it has no checkpoints/last.ckpt" if folder.exists() else "there is no such folder"
            raise ConfigError(
                f"nothing to resume in {folder.absolute()}: {what}; check --out, or leave out --resume to start a run"
            )
        return
    if last.exists() or (folder / "metrics.csv").exists():
        raise ConfigError(f"{folder} already holds a run: add --resume to go on with it, or choose another --out")
    files.check_output(folder, folder=True)
