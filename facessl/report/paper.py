"""Measured scores beside the published ones of the same data set, protocol and metric.

The published scores are data: `recipes/tables.yaml`, and `paper.yaml` for those that no recipe mirrors. The settings
that they belong to are those of the row's recipe.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required

import yaml

from facessl.config.finetune import FinetuneConfig
from facessl.config.recipes import read_recipe, table_rows
from facessl.config.run import flatten, merge, to_plain
from facessl.core import plugins
from facessl.core.errors import FaceSSLError
from facessl.core.markdown import markdown_table
from facessl.core.schema import misfit, read_json
from facessl.data.source import parse
from facessl.report import text
from facessl.report.folder import RunFolder
from facessl.report.results import protocol
from facessl.tasks.base import Scores

#: Settings that do not change what a score may be compared with.
_FREE = (
    *("run", "out", "resume", "device", "workers", "seed", "precision", "max_minutes", "max_bad", "checkpoint_every"),
    *("log_every", "channels_last", "sync_batch_norm", "source", "val", "val_fraction"),
)
#: So many differing settings are named.
_NAMED = 8


@dataclass(frozen=True)
class Row:
    """A published backbone on a data set: scores in the paper's unit (`SUBSET/score` of a published subset)."""

    where: str  # paper and table
    method: str
    dataset: str
    protocol: str  # `linear` is a frozen backbone
    scores: dict[str, float]
    recipe: str | None  # name of the recipe that mirrors the row


@dataclass(frozen=True)
class Measured:
    """Scores of a run or a probe: name -> (value, interval or None), fractions as in `results.json`."""

    name: str
    source: str
    protocol: str
    scores: dict[str, tuple[float, list[float] | None]]
    settings: dict[str, Any] | None  # `config.yaml`; None for a probe

    @property
    def dataset(self) -> str:
        """Name of the source; empty if it cannot be read."""
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
        candidates = [row for row in published()[0] if (row.dataset, row.protocol) == (run.dataset, run.protocol)]
        scores = dict.fromkeys(name for row in candidates for name in row.scores if name in run.scores)
        if not scores:
            notes.append(_unknown(run))
            continue
        differences = [(row, tuple(_differences(run, row))) for row in candidates]
        rows += [
            _line(run, row, n, comparable=not ways) for n in scores for row, ways in differences if n in row.scores
        ]
        for ways in dict.fromkeys(ways for _, ways in differences if ways):  # one sentence for all methods of these
            methods = ", ".join(dict.fromkeys(row.method for row, others in differences if others == ways))
            more = f" and {len(ways) - _NAMED} more" if len(ways) > _NAMED else ""
            notes.append(f"{run.name}: not comparable with {methods}: {'; '.join(ways[:_NAMED])}{more}.")
    return {"rows": rows, "notes": notes}


def table(comparison: Mapping[str, Any]) -> str:
    """The result of `compare` as Markdown, with its notes below."""
    rows = [_cells(line) for line in comparison["rows"]]
    return "\n".join([*markdown_table(rows), "", *comparison["notes"]]).strip()


def section(runs: Sequence[RunFolder]) -> dict[str, Any] | None:
    """Head, rows and notes for a page; None if no score of the runs' data sets and protocols is published."""
    comparison = compare([measured for measured in map(of_run, runs) if measured])
    rows = [_cells(line) for line in comparison["rows"]]
    return {**text.table(rows), "notes": comparison["notes"]} if rows else None


def of_run(run: RunFolder) -> Measured | None:
    """Read the scores of a fine-tuning run; None before it has any."""
    name = protocol(run)
    if not run.test or name is None:
        return None
    source = run.setting("test") or run.setting("source") or run.results.get("source")
    return Measured(run.name, str(source), name, _scores(run.test), run.config)


def of_file(path: Path) -> Measured:
    """Read the scores of a file of `facessl probe --out`, else raise CheckpointError."""
    scores = read_json(path, Probed)
    return Measured(path.stem, scores["source"], scores["protocol"], _scores(scores), None)


class Probed(Scores, total=False):
    """Fields of a file of `facessl probe --out`."""

    source: Required[str]
    protocol: Required[str]


def _scores(test: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[float, list[float] | None]]:
    out: dict[str, tuple[float, list[float] | None]] = {}
    for name, value in test.items():
        if isinstance(value, float):
            near = test.get(f"{name}_interval")
            out[prefix + name] = (value, near if misfit(near, tuple[float, float]) is None else None)
    for subset, values in (test.get("subsets") or {}).items():
        out |= _scores(values, f"{subset}/")
    return out


def _line(run: Measured, row: Row, name: str, *, comparable: bool) -> dict[str, Any]:
    factor = published()[1][name.rpartition("/")[2]]
    value, interval = run.scores[name]
    return {
        "run": run.name,
        "dataset": run.dataset,
        "protocol": run.protocol,
        "score": name,
        "measured": value * factor,
        "interval": interval and [bound * factor for bound in interval],
        "method": row.method,
        "where": row.where,
        "published": row.scores[name],
        "difference": value * factor - row.scores[name],
        "recipe": row.recipe,
        "comparable": comparable,
    }


def _cells(line: Mapping[str, Any]) -> dict[str, str]:
    digits = 3 if published()[1][line["score"].rpartition("/")[2]] == 1 or abs(line["published"]) < 1 else 2
    return {
        "run": line["run"],
        "data set": line["dataset"],
        "protocol": line["protocol"],
        "score": line["score"],
        "measured": f"{line['measured']:.{digits}f}",
        "95 % interval": " to ".join(f"{bound:.{digits}f}" for bound in line["interval"] or ()) or "-",
        "published": f"{line['published']:.{digits}f}",
        "by": f"{line['method']} ({line['where']})",
        "difference": f"{line['difference']:+.{digits}f}" + ("" if line["comparable"] else " (not comparable)"),
    }


def _unknown(run: Measured) -> str:
    """Why there is nothing to compare a run with."""
    rows = published()[0]
    protocols = ", ".join(sorted({row.protocol for row in rows if row.dataset == run.dataset}))
    if protocols:
        known = f"there are some with {protocols}"
        return f"{run.name}: no published score for {run.dataset} with the protocol {run.protocol}; {known}."
    known = ", ".join(sorted({row.dataset for row in rows}))
    return f"{run.name}: no published score for {run.dataset or run.source}; there are some of {known}."


def _differences(run: Measured, row: Row) -> list[str]:
    """Settings in which a run differs from a row's recipe, in words."""
    if row.recipe is None:
        return ["no recipe mirrors it"]
    recipe = _resolved(row.recipe)
    ways = _unequal(_parsed(run.source)[2], _parsed(recipe["source"])[2], "source option ")
    if run.settings is None:
        why = "the probe trains on features of unchanged images"
        return [*ways, f"{why}; `facessl finetune --config {row.recipe}` is the published protocol"]
    ours = to_plain({**run.settings, "backbone": _network(run.settings.get("backbone") or {})})
    theirs = {**recipe, "backbone": _network(recipe["backbone"])}
    return ways + _unequal(flatten(ours), flatten({key: theirs[key] for key in theirs if key in ours}))


def _unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """In words; settings that change no score are left out."""
    keys = [key for key in dict.fromkeys([*theirs, *ours]) if prefix or not key.startswith(_FREE)]
    pairs = [(key, *("not set" if side.get(key) is None else side[key] for side in (ours, theirs))) for key in keys]
    return [f"{prefix}{key} is {own}, published: {other}" for key, own, other in pairs if own != other]


def _parsed(source: str) -> tuple[str, str, dict[str, str]]:
    """Name, path and options of a source; empty if it cannot be read."""
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
    name = values.get("protocol", FinetuneConfig.protocol)
    task_settings = {"task": to_plain(dataclasses.asdict(task.Args()))}
    settings = merge(merge(merge(FinetuneConfig().to_dict(), task_settings), to_plain(task.defaults[name])), values)
    augment = to_plain(dataclasses.asdict(task.augments[name]))
    return {**settings, "augment": merge(augment, settings.get("augment") or {})}
