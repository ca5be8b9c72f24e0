"""A run folder as one page to look at, one table to paste and one JSON to read by scripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facessl.config.run import flatten
from facessl.core.errors import ConfigError, UnknownName
from facessl.core.files import check_ending, write_atomic
from facessl.core.schema import to_json
from facessl.metrics import collapse
from facessl.report import paper
from facessl.report.folder import RunFolder, by_task, read_run_folder
from facessl.report.page import comparison_html, markdown, run_html
from facessl.report.results import task_headline

#: Sharpness below this many times 1/N is called uniform.
_UNIFORM = 1.05


def report(runs: Sequence[str | Path], *, out: str | Path | None = None, compare: str | None = None) -> dict[str, Any]:
    """`facessl report`: the report of one run, or the reports of several and a page that compares them.

    Args:
        runs: run folders; with `compare` also files that `facessl probe --out` wrote.
        out: the page, ending in .html; default `report.html` in the run, `comparison.html` in the first of several.
        compare: "paper": put published scores beside the measured ones.

    Returns:
        Headline numbers, ready for JSON: of the run, or `{"runs": [...], "page": ...}`; with `compare` also `paper`,
        as `facessl.report.paper.compare` gives it (`paper.table` prints that).

    Raises:
        CheckpointError: a folder that is not a run, or a file without scores.
        ConfigError: no run, the same one twice, or a page that does not end in .html.
        UnknownName: `compare` is something else.
    """
    if compare not in (None, "paper"):
        raise UnknownName("comparison", str(compare), ("paper",))
    probes = [Path(run) for run in runs if compare and Path(run).is_file()]
    folders = [run for run in runs if Path(run) not in probes]
    if not runs:
        raise ConfigError("report needs at least one run folder")
    result: dict[str, Any] = {"runs": []}
    if folders:
        result = write_report(folders[0], out=out) if len(folders) == 1 else write_comparison(folders, out=out)
    if compare is None:
        return result
    measured = [(run, paper.of_run(run)) for run in map(read_run_folder, folders)]
    comparison = paper.compare([m for _, m in measured if m] + [paper.of_file(path) for path in probes])
    comparison["notes"] += [f"{run.name}: no scores on a test part to compare." for run, m in measured if m is None]
    return {**result, "paper": comparison}


def write_report(run: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Write `report.html`, `report.md` and `report.json` of a run, finished or not; arguments and errors as `report`.

    The page is self-contained (nothing fetched, no script); what the folder lacks is named in its section. Returns
    the headline numbers of report.json.
    """
    folder = read_run_folder(run)
    page = _page_path(out, folder.path / "report.html")
    numbers = headline(folder)
    _write(page, run_html(folder, numbers, paper.section([folder])), markdown([folder], [numbers]), numbers)
    return numbers


def write_comparison(runs: Sequence[str | Path], out: str | Path | None = None) -> dict[str, Any]:
    """Write the report of each run, and one page, table and JSON that compare them; arguments and errors as `report`.

    Returns `{"runs": [headline of each], "page": path}`.
    """
    folders = [read_run_folder(run) for run in runs]
    places = [folder.path.resolve() for folder in folders]
    if twice := [place for i, place in enumerate(places) if place in places[:i]]:
        raise ConfigError(f"{twice[0]} is named twice: name each run once")
    page = _page_path(out, folders[0].path / "comparison.html")
    numbers = [write_report(folder.path) for folder in folders]
    groups = [group for group in by_task(folders) if len(group) > 1]
    differing = [(group, differing_settings([folders[i] for i in group])) for group in groups]
    html = comparison_html(folders, numbers, differing, paper.section(folders))
    result = {"runs": numbers, "page": str(page)}
    _write(page, html, markdown(folders, numbers), result)
    return result


def headline(run: RunFolder) -> dict[str, Any]:
    """Return the numbers that a reader wants first; None if the run does not have it.

    Keys: run, backbone, source, image_size, batch_size, steps, epochs, images, images_per_second (median over the log
    lines), data_wait (fraction of the time, median), seconds, loss_first, loss, collapse (sentences; empty if there is
    none; None if nothing was measured), notes (sentences on what is odd but no collapse), skipped (images),
    finished, commit; of a fine-tuning run also those of `facessl.report.results.task_headline`; of a pre-training run
    also method, knn_first and knn (`accuracy`, `mean_class_accuracy`, `interval` of the accuracy), monitors_first and
    monitors (the other monitors by name).
    """
    if run.tuned:
        return {"run": run.name, **task_headline(run), **_common(run), "collapse": None}
    plain = [c.removeprefix("monitor/") for c in run.table if c.startswith("monitor/") and "/knn_" not in c]
    first = {name: run.first(f"monitor/{name}") for name in plain}
    last = {name: run.last(f"monitor/{name}") for name in plain}
    known = {name: value for name, value in last.items() if value is not None}
    # An untrained network has nothing to collapse.
    trained = any(run.series(f"monitor/{name}")[0][-1] > 0 for name in known)
    return {
        "run": run.name,
        "method": run.setting("method.name"),
        **_common(run),
        "knn_first": _knn(run, 0),
        "knn": _knn(run, -1),
        "monitors_first": first,
        "monitors": last,
        "collapse": collapse.verdicts(known) if trained else None,
        "notes": _notes(run, known) if trained else [],
    }


def _common(run: RunFolder) -> dict[str, Any]:
    logged, steps = run.last("step"), run.status.get("steps")  # it may have been stopped between two log lines
    steps = logged if steps is None else steps
    ratio = steps / logged if steps and logged and logged >= 1 else 1
    return {
        **{name: run.setting(name) for name in ("source", "image_size", "batch_size")},
        "backbone": run.setting("backbone.name"),
        "steps": None if steps is None else int(steps),
        "epochs": None if (epochs := run.last("epoch")) is None else epochs * ratio,
        "images": None if (images := run.last("images")) is None else round(images * ratio),
        **{name: run.last(name) for name in ("seconds", "loss")},
        **{name: _median(run, name) for name in ("images_per_second", "data_wait")},
        "loss_first": run.first("loss"),
        "skipped": len(run.skipped),
        "finished": run.status.get("finished"),
        "commit": run.environment.get("commit") or None,
    }


def differing_settings(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Settings in which runs differ: dotted name -> value in each run (None if it has none)."""
    settings = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for values in settings for name in values if name not in ("out", "resume"))
    rows = {name: [values.get(name) for values in settings] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _knn(run: RunFolder, position: int) -> dict[str, Any] | None:
    """k-NN numbers at one end of the run: position 0 is the first measurement, -1 the last."""
    steps, accuracy = run.series("monitor/knn_accuracy")
    if not len(accuracy):
        return None
    names = ("mean_class_accuracy", "accuracy_low", "accuracy_high")
    columns = [run.series(f"monitor/knn_{name}")[1] for name in names]
    per_class, low, high = (float(values[position]) if len(values) else None for values in columns)
    return {
        "step": int(steps[position]),
        "accuracy": float(accuracy[position]),
        "mean_class_accuracy": per_class,
        "interval": None if low is None or high is None else [low, high],
    }


def _notes(run: RunFolder, watched: dict[str, float]) -> list[str]:
    sharp = watched.get("sharpness")
    if run.regions and sharp is not None and sharp < _UNIFORM / run.regions:
        return [
            f"the regions are uniform: the largest of {run.regions} takes {sharp:.3f} of a pixel on average, and "
            f"{1 / run.regions:.3f} is what regions take that tell nothing apart (--config fra/regions has "
            "settings for sharp ones)"
        ]
    return []


def _median(run: RunFolder, column: str) -> float | None:
    values = run.series(column)[1]
    # The first window of a run pays for start-up, compilation and cold caches.
    values = values[1:] if len(values) > 2 else values
    return float(np.median(values)) if len(values) else None


def _page_path(out: str | Path | None, default: Path) -> Path:
    page = default if out is None else Path(out)
    check_ending(page, "report", [".html"])
    return page


def _write(page: Path, html: str, markdown: str, numbers: Mapping[str, Any]) -> None:
    """The page, with the table and the JSON beside it; what is not UTF-8 in file names stays legible."""
    write_atomic(page, html.encode("utf-8", "backslashreplace"))
    write_atomic(page.with_suffix(".md"), markdown.encode("utf-8", "backslashreplace"))
    write_atomic(page.with_suffix(".json"), to_json(numbers, indent=2).encode() + b"\n")
