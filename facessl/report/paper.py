"""Measured scores beside the published ones of the same data set, protocol and metric.

The published scores are data: `recipes/tables.yaml`, and `paper.yaml` for those that no recipe mirrors. The settings
that they belong to are those of the row's recipe.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from facessl.config.finetune import FinetuneConfig
from facessl.config.recipes import read_recipe, table_rows
from facessl.config.run import flatten, merge, plain
from facessl.core import plugins
from facessl.core.errors import CheckpointError, FaceSSLError
from facessl.data.source import parse
from facessl.report.folder import RunFolder
from facessl.report.results import protocol
from facessl.report.text import pipes

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
        method: of the backbone.
        dataset: name of the source.
        protocol: by its name here; `linear` is a frozen backbone.
        scores: score -> value in the paper's unit; `SUBSET/score` for a published subset.
        recipe: name of the recipe that mirrors the row; None: there is none.
    """

    where: str
    method: str
    dataset: str
    protocol: str
    scores: dict[str, float]
    recipe: str | None


@dataclass(frozen=True)
class Measured:
    """What a run or a probe measured.

    Attributes:
        scores: score -> (value, interval or None), fractions as in `results.json`; `SUBSET/score` for a subset.
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
        return _parsed(self.source)[0]


@functools.cache
def published() -> tuple[tuple[Row, ...], dict[str, float]]:
    """Every published row, and score -> the factor from a fraction to the paper's unit."""
    values = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))
    mirrored, based = [], functools.cache(read_recipe)
    for name, row in table_rows().items():
        if "backbone" in row:
            base = based(row["base"])
            named = "linear" if base.get("frozen") else base.get("protocol", FinetuneConfig.protocol)
            mirrored.append(Row(row["where"], row["backbone"], parse(base["source"])[0], named, row["scores"], name))
    return (*mirrored, *(Row(**row) for row in values["rows"])), values["scale"]


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
    return "\n".join([*(pipes(*_cells(found)) if found["rows"] else []), "", *found["notes"]]).strip()


def section(runs: Sequence[RunFolder]) -> dict[str, Any] | None:
    """Head, rows and notes for a page; None where no score of the runs' data sets and protocols is published."""
    found = compare([own for own in map(of_run, runs) if own])
    head, rows = _cells(found)
    return {"head": head, "rows": rows, "notes": found["notes"]} if rows else None


def of_run(run: RunFolder) -> Measured | None:
    """What a fine-tuning run measured; None before it has scores."""
    named = protocol(run)
    if not run.test or named is None:
        return None
    tested_on = run.setting("test") or run.setting("source") or run.results.get("source")
    return Measured(run.name, str(tested_on), named, _scores(run.test), run.config)


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
    (value, near), theirs = run.scores[name], row.scores[name]
    return {
        **{"run": run.name, "dataset": run.dataset, "protocol": run.protocol, "score": name},
        "measured": value * factor,
        "interval": near and [bound * factor for bound in near],
        **{"method": row.method, "where": row.where, "published": theirs},
        "difference": value * factor - theirs,
        **{"recipe": row.recipe, "comparable": comparable},
    }


def _cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["run", "data set", "protocol", "score", "measured", "95 % interval", "published", "by", "difference"]
    rows = []
    for line in found["rows"]:
        digits = 3 if published()[1][line["score"].rpartition("/")[2]] == 1 or abs(line["published"]) < 1 else 2
        measured, theirs, *near = (
            f"{value:.{digits}f}" for value in (line["measured"], line["published"], *(line["interval"] or ()))
        )
        row = [line["run"], line["dataset"], line["protocol"], line["score"], measured, " to ".join(near) or "-"]
        difference = f"{line['difference']:+.{digits}f}" + ("" if line["comparable"] else " (not comparable)")
        rows.append([*row, theirs, f"{line['method']} ({line['where']})", difference])
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
    """Settings in which a run differs from a row's recipe, in words."""
    if row.recipe is None:
        return ["no recipe mirrors it"]
    wanted = _resolved(row.recipe)
    out = [
        _said(f"source option {k}", a, b) for k, a, b in _unequal(_parsed(run.source)[2], _parsed(wanted["source"])[2])
    ]
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


def _parsed(source: str) -> tuple[str, str, dict[str, str]]:
    """Name, path and options of a source; empty where it cannot be read."""
    try:
        return parse(source)
    except FaceSSLError:
        return "", "", {}


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
