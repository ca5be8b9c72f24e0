"""Measured scores beside the published ones of the same data set, protocol and metric.

The published scores are data (`paper.yaml`); the settings that they belong to are those of the row's recipe.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from facessl.config.finetune import FinetuneConfig
from facessl.config.recipes import read_recipe
from facessl.config.run import flatten, merge, plain
from facessl.core import plugins
from facessl.core.errors import CheckpointError, FaceSSLError
from facessl.data.source import parse
from facessl.report import parts
from facessl.report.folder import RunFolder
from facessl.report.results import protocol

#: Settings that do not change what a score may be compared with.
_FREE = (
    *("run", "out", "resume", "device", "workers", "seed", "precision", "max_minutes", "max_bad", "checkpoint_every"),
    *("log_every", "channels_last", "sync_batch_norm", "source", "val", "val_fraction"),
)
#: So many differing settings are named.
_NAMED = 8


@dataclass(frozen=True)
class Row:
    """A published backbone on a data set.

    Attributes:
        where: paper and table.
        method, arch, pretraining: of the backbone; None where the paper does not say.
        dataset: name of the source.
        task, protocol: by their names here; `linear` is a frozen backbone.
        scores: score -> value in the paper's unit; `SUBSET/score` for a published subset.
        recipe: name of the recipe that mirrors the row; None: there is none.
        note: what is known of how the number was made.
    """

    where: str
    method: str
    arch: str
    pretraining: str | None
    dataset: str
    task: str
    protocol: str
    scores: dict[str, float]
    recipe: str | None
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What a run or a probe measured.

    Attributes:
        name: what it is called in the table.
        source: as it was written.
        protocol: by its name here.
        scores: score -> (value, interval or None), shares as in `results.json`; subsets as in `Row.scores`.
        settings: `config.yaml`; None for a probe.
    """

    name: str
    source: str
    protocol: str
    scores: dict[str, tuple[float, list[float] | None]]
    settings: dict[str, Any] | None

    @property
    def dataset(self) -> str:
        """Name of the source; empty where it cannot be read."""
        try:
            return parse(self.source)[0]
        except FaceSSLError:
            return ""


@functools.cache
def published() -> tuple[tuple[Row, ...], dict[str, float]]:
    """Every published row, and score -> the factor from a share to the paper's unit."""
    text = (Path(str(resources.files("facessl"))) / "report" / "paper.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    return tuple(Row(**row) for row in values["rows"]), values["scale"]


def compare(measured: Sequence[Measured]) -> dict[str, Any]:
    """Runs beside the published scores.

    Returns:
        `rows`: dicts of run, dataset, protocol, score, measured, interval, method, where, published, difference (in
        the paper's unit), recipe and comparable (no setting differs from the recipe's). `notes`: sentences on what
        is not comparable, or not published.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for run in measured:
        found = [row for row in published()[0] if row.dataset == run.dataset and row.protocol == run.protocol]
        names = dict.fromkeys(name for row in found for name in row.scores if name in run.scores)
        if not names:
            notes.append(_unknown(run))
            continue
        differing = [(row, _differences(run, row)) for row in found]
        rows += [_line(run, row, n, comparable=not by) for n in names for row, by in differing if n in row.scores]
        notes += _differ(run, differing)
    return {"rows": rows, "notes": notes}


def table(found: Mapping[str, Any]) -> str:
    """What `compare` found as Markdown, with its notes below."""
    return "\n".join([*(parts.pipes(*_cells(found)) if found["rows"] else []), "", *found["notes"]]).strip()


def section(runs: Sequence[RunFolder]) -> str:
    """The part of a page; nothing where no score of the runs' data sets and protocols is published."""
    found = compare([own for own in map(of_run, runs) if own])
    if not found["rows"]:
        return ""
    head, rows = _cells(found)
    notes = "".join(f"<p>{escape(note)}</p>" for note in found["notes"])
    return parts.section(
        "Published scores", parts.table(head, [[escape(cell) for cell in row] for row in rows]) + notes
    )


def of_run(run: RunFolder) -> Measured | None:
    """What a fine-tuning run measured; None before it has scores."""
    test, named = run.results.get("test"), protocol(run)
    if not isinstance(test, Mapping) or named is None:
        return None
    tested_on = run.setting("test") or run.setting("source") or run.results.get("source")
    return Measured(run.name, str(tested_on), named, _scores(test), run.config)


def of_file(path: Path) -> Measured:
    """What `facessl probe --out FILE` wrote.

    Raises:
        CheckpointError: the file is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Measured(path.stem, found["source"], found["protocol"], _scores(found), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds no scores: give a run folder, or what `facessl probe --out` wrote ({type(error).__name__})"
        ) from None


# ---- parts -----------------------------------------------------------------------------------------------------


def _scores(test: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[float, list[float] | None]]:
    out: dict[str, tuple[float, list[float] | None]] = {}
    for name, value in test.items():
        if isinstance(value, float):
            near = test.get(f"{name}_interval")
            out[prefix + name] = (value, near if near and None not in near else None)
    for subset, values in (test.get("subsets") or {}).items():
        out |= _scores(values, f"{subset}/")
    return out


def _line(run: Measured, row: Row, name: str, *, comparable: bool) -> dict[str, Any]:
    factor = published()[1][name.rpartition("/")[2]]
    value, near = run.scores[name]
    theirs = row.scores[name]
    return {
        "run": run.name,
        "dataset": run.dataset,
        "protocol": run.protocol,
        "score": name,
        "measured": value * factor,
        "interval": near and [bound * factor for bound in near],
        "method": row.method,
        "where": row.where,
        "published": theirs,
        "difference": value * factor - theirs,
        "recipe": row.recipe,
        "comparable": comparable,
    }


def _cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["run", "data set", "protocol", "score", "measured", "95 % interval", "published", "by", "difference"]
    rows = []
    for line in found["rows"]:
        digits = 3 if published()[1][line["score"].rpartition("/")[2]] == 1 or abs(line["published"]) < 1 else 2
        near = line["interval"]
        rows.append(
            [
                *(line["run"], line["dataset"], line["protocol"], line["score"], f"{line['measured']:.{digits}f}"),
                f"{near[0]:.{digits}f} to {near[1]:.{digits}f}" if near else "-",
                *(f"{line['published']:.{digits}f}", f"{line['method']} ({line['where']})"),
                f"{line['difference']:+.{digits}f}" + ("" if line["comparable"] else " (not comparable)"),
            ]
        )
    return head, rows


def _unknown(run: Measured) -> str:
    """Why there is nothing to compare a run with."""
    rows = published()[0]
    here = sorted({row.protocol for row in rows if row.dataset == run.dataset})
    if here:
        there = f"there are some with {', '.join(here)}"
        return f"{run.name}: no published score of {run.dataset} with the protocol {run.protocol}; {there}."
    known = ", ".join(sorted({row.dataset for row in rows}))
    return f"{run.name}: no published score of {run.dataset or run.source}; there are some of {known}."


def _differ(run: Measured, differing: Sequence[tuple[Row, Sequence[str]]]) -> list[str]:
    """One sentence for all methods from whose settings the run differs in the same way."""
    same: dict[tuple[str, ...], dict[str, None]] = {}
    for row, found in differing:
        if found:
            same.setdefault(tuple(found), {})[row.method] = None
    out = []
    for ways, methods in same.items():
        more = f" and {len(ways) - _NAMED} more" if len(ways) > _NAMED else ""
        out.append(f"{run.name}: not comparable with {', '.join(methods)}: {'; '.join(ways[:_NAMED])}{more}.")
    return out


def _differences(run: Measured, row: Row) -> list[str]:
    """Settings in which a run differs from a row's recipe, as `key is ours, published: theirs`."""
    if row.recipe is None:
        return ["no recipe mirrors it"]
    wanted = _resolved(row.recipe)
    out = [_said(f"source option {k}", a, b) for k, a, b in _unequal(_options(run.source), _options(wanted["source"]))]
    if run.settings is None:
        why = "the probe trains on features of unchanged images"
        return [*out, f"{why}; `facessl finetune --config {row.recipe}` is the published protocol"]
    ours = plain({**run.settings, "backbone": _network(run.settings.get("backbone") or {})})
    theirs = {**wanted, "backbone": _network(wanted["backbone"])}
    known = {key: value for key, value in theirs.items() if key in ours}  # an older run lacks newer settings
    out += [_said(k, a, b) for k, a, b in _unequal(flatten(ours), flatten(known)) if not k.startswith(_FREE)]
    return out


def _unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = dict.fromkeys([*theirs, *ours])
    return [(k, ours.get(k), theirs.get(k)) for k in keys if ours.get(k) != theirs.get(k)]


def _said(key: str, ours: Any, theirs: Any) -> str:
    return f"{key} is {'not set' if ours is None else ours}, published: {'not set' if theirs is None else theirs}"


def _options(source: str) -> Mapping[str, str]:
    try:
        return parse(source)[2]
    except FaceSSLError:
        return {}


def _network(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Name without the tag of its weights, and options."""
    return {"name": str(backbone.get("name")).partition(".")[0], "options": dict(backbone.get("options") or {})}


@functools.cache
def _resolved(recipe: str) -> dict[str, Any]:
    """Every setting of a fine-tuning recipe, as a run's `config.yaml` would have it."""
    values = read_recipe(recipe)
    task = plugins.find("tasks", values["task"]["name"])
    named = values.get("protocol", FinetuneConfig.protocol)
    below = {"task": plain(dataclasses.asdict(task.Args()))}
    found = merge(merge(merge(FinetuneConfig().to_dict(), below), plain(task.defaults[named])), values)
    published_augment = plain(dataclasses.asdict(task.augments[named]))
    return {**found, "augment": merge(published_augment, found.get("augment") or {})}
