"""Reading a run folder: what it holds, and what it lacks."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

import numpy as np
import yaml

from facessl.config.paths import without_secrets
from facessl.config.run import flatten
from facessl.core.errors import CheckpointError
from facessl.core.schema import finite, misfit

#: Columns of metrics.csv that are neither a loss term nor a monitor.
BOOKKEEPING = frozenset(
    {"step", "epoch", "images", "seconds", "loss", "lr", "momentum", "images_per_second", "data_wait", "grad_norm"}
)
_Number = float | None
_Interval = list[_Number] | None


class _Headline(TypedDict, total=False):
    name: Required[str]
    value: _Number
    interval: _Interval
    unit: str | None


class _Selected(TypedDict, total=False):
    step: Required[int]
    name: Required[str]
    value: _Number
    by: str | None


class _Group(TypedDict, total=False):
    name: Required[str]
    images: _Number
    value: _Number
    interval: _Interval


class _Groups(TypedDict, total=False):
    groups: list[_Group] | None
    gap: _Number
    gap_by_chance: _Number
    gap_interval: _Interval
    note: str | None


class Scores(TypedDict, total=False):
    """What the report reads of the result of a meter (`facessl.tasks.base.Meter`)."""

    headline: _Headline | None
    images: _Number
    units: dict[str, str] | None
    confusion: list[list[int]] | None
    per_class: dict[str, _Number] | None
    accuracy: dict[str, _Number] | _Number
    f1: dict[str, _Number] | _Number
    subsets: dict[str, dict[str, float | list[Any] | None]] | None
    groups: dict[str, _Groups] | None


class Results(TypedDict, total=False):
    """What the report reads of `results.json`."""

    task: str | None
    protocol: str | None
    train_images: _Number
    selected: _Selected | None
    test: Scores | None


@dataclass(frozen=True)
class RunFolder:
    """One run as its files tell it (`config.yaml`, `environment.json`, ...); what is missing is empty here.

    Attributes:
        table: columns of `metrics.csv`, each (rows,) float64; nan where a cell is empty.
        skipped: (key, reason) of unreadable images, from `skipped.csv`.
        problems: file name -> why it could not be used.
        label_names: classes that a fine-tuned network knows, from its card `model.json`.
    """

    path: Path
    config: dict[str, Any]
    table: dict[str, np.ndarray]
    skipped: list[tuple[str, str]]
    environment: dict[str, Any]
    status: dict[str, Any]
    problems: dict[str, str]
    results: dict[str, Any]
    label_names: tuple[str, ...]

    @property
    def tuned(self) -> bool:
        """Whether `facessl finetune` made this run."""
        return "task" in self.config or bool(self.results)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def kind(self) -> str:
        """The task or the method; losses and scores of one kind can share an axis."""
        return str(self.results.get("task") or self.setting("task.name") or self.setting("method.name") or "run")

    @property
    def test(self) -> dict[str, Any]:
        """Scores on the test part; empty before a fine-tuning run has ended."""
        return self.results.get("test") or {}

    @property
    def ends(self) -> list[tuple[str, str, str]]:
        """First and last value of every loss term and monitor, as text."""
        columns = ["loss", *self.terms, *(c for c in self.table if c.startswith("monitor/"))]
        return [(c, f"{self.first(c):.4g}", f"{self.last(c):.4g}") for c in columns if self.last(c) is not None]

    @property
    def regions_picture(self) -> Path | None:
        """The picture of the last regions; None where there is none."""
        path = self.path / "regions.png"
        return path if path.is_file() else None

    @property
    def terms(self) -> list[str]:
        """Names of the loss terms, in the order of the table."""
        return [c for c in self.table if c not in BOOKKEEPING and not c.startswith("monitor/")]

    @property
    def regions(self) -> int | None:
        """N, the number of regions of the method; None where it has none."""
        count = self.setting("method.num_regions")
        return count if isinstance(count, int) else None

    def setting(self, dotted: str) -> Any:
        """A value of the configuration by its dotted name; None where it is not there."""
        return flatten(self.config).get(dotted)

    def series(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, both (n,), of the rows in which `column` is finite; empty where there are none."""
        if column not in self.table or "step" not in self.table:
            return np.zeros(0), np.zeros(0)
        keep = np.isfinite(self.table[column]) & np.isfinite(self.table["step"])
        return self.table["step"][keep], self.table[column][keep]

    def first(self, column: str, position: int = 0) -> float | None:
        """First value of a column; None where there is none."""
        values = self.series(column)[1]
        return float(values[position]) if len(values) else None

    def last(self, column: str) -> float | None:
        """Last value of a column; None where there is none."""
        return self.first(column, -1)

    def pictures(self) -> list[tuple[int, Path]]:
        """Region pictures taken while training, as (step, file), in the order of the steps."""
        found = [(p.stem.removeprefix("step-"), p) for p in self.path.glob("regions/step-*.png")]
        return sorted((int(step), p) for step, p in found if step.isdigit())


def read_run_folder(path: str | Path) -> RunFolder:
    """Read what a run folder holds.

    Raises:
        CheckpointError: `path` is not a folder, or holds neither config.yaml nor metrics.csv.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a run folder: give a folder that `facessl pretrain` or `facessl finetune` wrote"
        )
    if not (path / "config.yaml").is_file() and not (path / "metrics.csv").is_file():
        raise CheckpointError(f"{path} is not a run folder: it holds neither config.yaml nor metrics.csv")
    problems: dict[str, str] = {}
    config = without_secrets(_mapping(path / "config.yaml", problems))
    tuned = "task" in config or (path / "results.json").is_file()
    results = _mapping(path / "results.json", problems) if tuned else {}
    if wrong := misfit(results, Results):
        problems["results.json"] = f"not what `facessl finetune` writes: {wrong}"
        results = {}
    for place, keys in (("headline", ["unit"]), ("units", None)):
        units = (results.get("test") or {}).get(place) or {}
        units |= {key: "fraction" for key in keys or units if units.get(key) == "share"}  # as earlier versions wrote it
    labels = _mapping(path / "model.json", {}).get("labels") if tuned else None
    names = labels.get("label_names") if isinstance(labels, dict) else None
    return RunFolder(
        path=path,
        config=config,
        table=_table(path / "metrics.csv", problems),
        skipped=_pairs(path / "skipped.csv"),
        environment=_mapping(path / "environment.json", problems),
        status=_mapping(path / "status.json", problems),
        results=results,
        label_names=tuple(map(str, names)) if isinstance(names, list) else (),
        problems=problems,
    )


def _mapping(path: Path, problems: dict[str, str]) -> dict[str, Any]:
    """Content of a YAML or JSON file; numbers that are not finite are None."""
    if not path.is_file():
        problems[path.name] = "not there"
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = finite(json.loads(text) if path.suffix == ".json" else _plain(yaml.safe_load(text)))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems[path.name] = f"unreadable ({' '.join(str(error).split())[:120]})"
        return {}
    if not isinstance(value, dict):
        problems[path.name] = "holds no settings"
        return {}
    return value


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: dates and other types of YAML are text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _table(path: Path, problems: dict[str, str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        problems[path.name] = "not there"
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    # A run that was killed can leave half a last line.
    rows = [row for row in rows if len(row) == len(header)]
    if "step" not in header or not rows:
        problems[path.name] = "holds no rows yet"
        return {}
    return {name: np.array([_number(row[i]) for row in rows]) for i, name in enumerate(header)}


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _pairs(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.reader(file))
    return [(row[0], row[1] if len(row) > 1 else "") for row in rows[1:] if row]
