"""Print the tables of docs/results.md from run folders and benchmark outputs, into the blocks marked for them.

    python benchmarks/results.py docs/results.md --runs runs/byol runs/fra --step step.json --views views.json

A block is what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; NAME is runs, step, views,
symmetry or linear.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from facessl.report import headline
from facessl.report.folder import RunFolder, read_run_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--runs", nargs="*", type=Path, default=[])
    parser.add_argument("--step", type=Path)
    parser.add_argument("--views", type=Path)
    parser.add_argument("--symmetry", type=Path)
    parser.add_argument("--linear", type=Path)
    args = parser.parse_args()
    text = args.page.read_text()
    if args.runs:
        text = fill(text, "runs", runs_table([read_run_folder(path) for path in args.runs]))
    if args.step:
        text = fill(text, "step", step_table(json.loads(args.step.read_text())))
    if args.views:
        text = fill(text, "views", views_table(json.loads(args.views.read_text())))
    if args.symmetry:
        text = fill(text, "symmetry", symmetry_table(json.loads(args.symmetry.read_text())))
    if args.linear:
        text = fill(text, "linear", linear_table(json.loads(args.linear.read_text())))
    args.page.write_text(text)


def fill(text: str, name: str, block: str) -> str:
    """Replace the content of a marked block."""
    pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
    if not re.search(pattern, text, re.S):
        raise SystemExit(
            f"the page has no block {name!r}: write <!-- {name}: begin --> and <!-- {name}: end --> into it"
        )
    return re.sub(pattern, lambda m: m.group(1) + block + "\n" + m.group(2), text, flags=re.S)


def table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def runs_table(runs: list[RunFolder]) -> str:
    """One column per run: what was set, k-NN and monitors from the first to the last measurement, loss terms, speed."""
    heads = [headline(run) for run in runs]
    rows = [["", *(run.name for run in runs)]]
    for label, key in (
        ("method", "method"),
        ("backbone", "backbone"),
        ("pixels", "image_size"),
        ("batch", "batch_size"),
    ):
        rows.append([label, *(str(head[key]) for head in heads)])
    for label, key in (("steps", "steps"), ("images seen", "images"), ("epochs", "epochs"), ("minutes", "seconds")):
        scale = 60 if label == "minutes" else 1
        rows.append([label, *(f"{head[key] / scale:,.4g}" for head in heads)])
    rows.append(["images/s (median)", *(f"{head['images_per_second']:.1f}" for head in heads)])
    rows.append(["waiting for data", *(f"{100 * head['data_wait']:.1f} %" for head in heads)])
    columns = [name for run in runs for name in run.table if not _is_bookkeeping(name)]
    for name in dict.fromkeys(columns):
        rows.append([name.removeprefix("monitor/"), *(_first_last(run, name) for run in runs)])
    env = runs[0].environment
    rows.append(["commit", *(str(run.environment.get("commit", "")) for run in runs)])
    machine = (
        f"{env.get('processor')}, {env.get('cores')} cores, GPU {env.get('gpu')}, torch {env['versions']['torch']}"
    )
    return f"Machine: {machine}. Arrows: first to last line of metrics.csv.\n\n" + table(rows)


def _is_bookkeeping(name: str) -> bool:
    return name in {"step", "seconds", "epoch", "images", "lr", "momentum", "images_per_second", "data_wait"}


def _first_last(run: RunFolder, name: str) -> str:
    _, values = run.series(name)
    return f"{values[0]:.4g} -> {values[-1]:.4g}" if len(values) else "-"


def step_table(found: dict[str, Any]) -> str:
    """Cost of a step relative to its floor."""
    s = found["settings"]
    rows = [["method", "precision", "floor, s", "step, s", "ratio", "range"]]
    for r in found["results"]:
        low, high = r["ratio_range"]
        cells = [r["method"], r["precision"], r["floor_seconds"], r["step_seconds"], r["ratio"], f"{low}-{high}"]
        rows.append([str(c) for c in cells])
    return (
        f"{s['backbone']}, {s['image_size']} px, batch {s['batch_size']}, {s['threads']} thread(s), "
        f"{s['rounds']} rounds, {_where(found)}.\n\n{table(rows)}"
    )


def views_table(found: dict[str, Any]) -> str:
    """Speed of decoding, cropping and the photometric part."""
    results = found["results"]
    names = list(results[0])
    rows = [names, *([f"{r[n]:,.4g}" if isinstance(r[n], float) else str(r[n]) for n in names] for r in results)]
    return f"{_where(found)}.\n\n{table(rows)}"


def symmetry_table(found: dict[str, Any]) -> str:
    """Difference of the regions before training and the agreement of two passes on it."""
    s, results = found["settings"], found["results"]
    names = list(results[0])
    setting = (
        f"{s['backbone']}, {s['image_size']} px, output stride {s['output_stride']}, {s['source']}, seed {s['seed']}"
    )
    rows = [[n.replace("_", " ") for n in names], *([str(r[n]) for n in names] for r in results)]
    return f"{setting}; {_where(found)}.\n\n{table(rows)}"


def linear_table(found: dict[str, Any]) -> str:
    """Seconds of a whole path of penalties, by solver."""
    s = found["settings"]
    rows = [["solver", "penalties", "seconds", "CPU seconds"]]
    for name, r in found["results"].items():
        if "penalties" in r:
            rows.append([name, str(r["penalties"]), str(r["seconds"]), str(r["cpu_seconds"])])
    return f"{s['images']:,} x {s['dimensions']}, {s['threads']} thread(s), {_where(found)}.\n\n{table(rows)}"


def _where(found: dict[str, Any]) -> str:
    env = found["environment"]
    return f"{found['date']}, {env['processor']}, {env['cores']} cores, GPU {env['gpu']}, commit {env['commit']}"


if __name__ == "__main__":
    main()
