"""Reading a run folder, which somebody else may have made."""

import csv
import errno
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from facessl.config.paths import without_secrets
from facessl.config.run import flatten
from facessl.core.errors import CheckpointError, no_run
from facessl.core.files import read_regular
from facessl.core.schema import finite, misfit
from facessl.core.yaml_file import parse_yaml
from facessl.report.examples import FOLDER, LIST, Listed
from facessl.tasks.base import Results

#: Columns of metrics.csv that are neither a loss term nor a monitor.
BOOKKEEPING = frozenset(
    {"step", "epoch", "images", "seconds", "loss", "lr", "momentum", "images_per_second", "data_wait", "grad_norm"}
)
#: Bytes of the largest file of each kind that is read.
_MOST_BYTES = {".yaml": 1 << 18, ".json": 16 << 20, ".csv": 64 << 20, ".png": 64 << 20, ".jpg": 4 << 20}
#: Of a picture that is shown; decoded it takes four bytes a pixel.
_MAX_PIXELS = 40_000_000
#: Columns of metrics.csv that are drawn, and levels of JSON.
_MOST_COLUMNS, _DEEPEST = 200, 40
#: Numbers of this size and more are not measurements, and break sums and axes.
_HUGE = 1e100


class _Part(TypedDict, total=False):
    name: str | None
    options: dict[str, Any] | None  # of a backbone
    num_regions: int | None  # of a method


class Settings(TypedDict, total=False):
    """Fields of `config.yaml` that the report uses."""

    source: str | None
    test: str | None
    run: str | None
    protocol: str | None
    backbone: _Part | None
    method: _Part | None
    task: _Part | None


class Status(TypedDict, total=False):
    """Fields of `status.json` that the report uses."""

    finished: bool | None
    steps: int | None
    source_images: int | None


@dataclass(frozen=True)
class RunFolder:
    """One run as its files tell it (`config.yaml`, `environment.json`, ...); what is missing is empty here."""

    path: Path
    config: dict[str, Any]
    table: dict[str, np.ndarray]  # columns of `metrics.csv`, each (rows,) float64; nan for an empty cell
    skipped: list[tuple[str, str]]  # (key, reason) of unreadable images, from `skipped.csv`
    environment: dict[str, Any]
    status: dict[str, Any]
    problems: dict[str, str]  # file name -> why it could not be used
    results: dict[str, Any]
    examples: dict[str, Any]  # the `worst` and the `typical` answers of a fine-tuned model (`facessl.report.examples`)

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
    def has_regions(self) -> bool:
        """Whether there is a picture of the last regions."""
        return (self.path / "regions.png").is_file()

    @property
    def terms(self) -> list[str]:
        """Names of the loss terms, in the order of the table."""
        return [c for c in self.table if c not in BOOKKEEPING and not c.startswith("monitor/")]

    @property
    def regions(self) -> int | None:
        """N, the number of regions of the method; None if it has none."""
        count = self.setting("method.num_regions")
        return count if isinstance(count, int) and count > 0 else None

    def setting(self, dotted: str) -> Any:
        """A value of the configuration by its dotted name; None if it is not there."""
        return flatten(self.config).get(dotted)

    def series(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, both (n,), of the rows in which `column` is finite; empty if there are none."""
        if column not in self.table or "step" not in self.table:
            return np.zeros(0), np.zeros(0)
        keep = np.isfinite(self.table[column]) & np.isfinite(self.table["step"])
        return self.table["step"][keep], self.table[column][keep]

    def first(self, column: str) -> float | None:
        """First value of a column; None if there is none."""
        values = self.series(column)[1]
        return float(values[0]) if len(values) else None

    def last(self, column: str) -> float | None:
        """Last value of a column; None if there is none."""
        values = self.series(column)[1]
        return float(values[-1]) if len(values) else None

    def pictures(self) -> list[tuple[int, str]]:
        """Region pictures taken while training, as (step, name of the file), in the order of the steps."""
        steps = [(p.stem.removeprefix("step-"), p.name) for p in self.path.glob("regions/step-*.png")]
        return sorted((int(step), f"regions/{name}") for step, name in steps if step.isdecimal())

    def content(self, name: str) -> bytes:
        """A file of the folder. OSError: it is missing, a link, not a regular file, or too large to be a run's."""
        return _content(self.path, name)

    def picture(self, name: str) -> Image.Image | str:
        """A picture of the folder as RGB; a sentence if it is too large or damaged."""
        kind = "JPEG" if name.endswith(".jpg") else "PNG"
        try:
            with Image.open(io.BytesIO(self.content(name)), formats=(kind,)) as image:
                if image.width * image.height > _MAX_PIXELS:
                    return f"{name} is not shown: it has more than {_MAX_PIXELS:,} pixels."
                return image.convert("RGB")
        except Exception as error:  # foreign bytes make Pillow raise almost anything
            reason = getattr(error, "strerror", None) or f"it is damaged, or not a {kind} file"
            return f"{name} cannot be read: {reason}."


def read_run_folder(path: str | Path) -> RunFolder:
    """Read what a run folder holds. CheckpointError: not a folder, or without config.yaml and metrics.csv."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(no_run(path, "a folder that `facessl pretrain` or `facessl finetune` wrote"))
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a run folder: give a folder that `facessl pretrain` or `facessl finetune` wrote"
        )
    if not (path / "config.yaml").is_file() and not (path / "metrics.csv").is_file():
        raise CheckpointError(f"{path} is not a run folder: it holds neither config.yaml nor metrics.csv")
    problems: dict[str, str] = {}
    config = without_secrets(_mapping(path, "config.yaml", Settings, problems))
    tuned = "task" in config or (path / "results.json").is_file()
    return RunFolder(
        path=path,
        config=config,
        table=_table(path, problems),
        skipped=[(row[0], "".join(row[1:2])) for row in _rows(path, "skipped.csv", problems)[1:] if row],
        environment=_mapping(path, "environment.json", dict[str, Any], problems),
        status=_mapping(path, "status.json", Status, problems),
        results=_mapping(path, "results.json", Results, problems) if tuned else {},
        examples=_mapping(path, f"{FOLDER}/{LIST}", Listed, problems) if tuned else {},
        problems=problems,
    )


def by_task(runs: Sequence[RunFolder]) -> list[list[int]]:
    """Positions of runs that can be compared: those of pre-training, then those of each task."""
    groups: dict[str, list[int]] = {}
    for i, run in sorted(enumerate(runs), key=lambda pair: pair[1].tuned):
        groups.setdefault(run.kind if run.tuned else "", []).append(i)
    return list(groups.values())


def _content(folder: Path, name: str) -> bytes:
    """A file of a run folder. A link could show any file of the reader's machine, so that none is followed."""
    path = folder / name
    if Path(os.path.realpath(path)) != Path(os.path.realpath(folder), name):
        raise OSError(errno.ELOOP, "a link, which is not followed")
    return read_regular(path, most=_MOST_BYTES[path.suffix])


def _mapping(folder: Path, name: str, kind: Any, problems: dict[str, str]) -> dict[str, Any]:
    """Content of a YAML or JSON file with values of the type `kind`; numbers that are not finite are None."""
    try:
        text = _content(folder, name).decode()
        value = _plain(json.loads(text) if name.endswith(".json") else parse_yaml(text, name))
    except Exception as error:  # foreign text makes the parsers raise almost anything
        problems[name] = _reason(error)
        return {}
    if not isinstance(value, dict):
        problems[name] = "holds no settings"
        return {}
    if wrong := misfit(value, kind):
        problems[name] = f"not what facessl writes: {wrong}"
        return {}
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "not there"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"unreadable ({' '.join(text.split())[:120]})"


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON can hold it: dates and other types of YAML are text, numbers beyond 64 bits are None."""
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, int) and abs(value) >= 2**63:
        return None
    return finite(value) if value is None or isinstance(value, str | int | float) else str(value)


def _rows(folder: Path, name: str, problems: dict[str, str]) -> list[list[str]]:
    try:
        text = _content(folder, name).decode("utf-8", "replace")
        return list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, csv.Error) as error:
        problems[name] = _reason(error)
        return []


def _table(folder: Path, problems: dict[str, str]) -> dict[str, np.ndarray]:
    header, *rows = _rows(folder, "metrics.csv", problems) or [[]]
    # A run that was killed can leave half a last line.
    rows = [row for row in rows if len(row) == len(header)]
    if "step" not in header or not rows:
        problems.setdefault("metrics.csv", "holds no rows yet")
        return {}
    return {name: np.array([_number(row[i]) for row in rows]) for i, name in enumerate(header[:_MOST_COLUMNS])}


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        return np.nan
    return value if abs(value) < _HUGE else np.nan
