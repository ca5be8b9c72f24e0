"""Print the tables of docs/results.md and docs/experiments.md from run folders and benchmark outputs.

    python benchmarks/results.py docs/experiments.md --runs runs/byol runs/fra --symmetry symmetry.json

A block is what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; NAME is runs, symmetry, smoke, mcf,
encoder or, in docs/results.md, downstream (of `--finetuned` and `--probes`: a row is one protocol on one source, a
column what it started from; each cell is the headline with its 95 % interval).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from cells import fill, table

from facessl.report.folder import RunFolder, read_run_folder
from facessl.report.results import baselines
from facessl.report.write import headline

#: A third of an even spread over the sphere, 1 in the unit of the monitor `embedding_std`: 0.3 / sqrt(C) per channel.
STD_FLOOR = 0.3
WATCHED = ("embedding_std", "knn_accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--runs", nargs="*", type=Path, default=[])
    parser.add_argument("--symmetry", type=Path)
    parser.add_argument("--smoke", nargs="*", type=Path, default=[], help="run folders of the smoke recipes")
    parser.add_argument("--mcf", type=Path, help="run folder of mcf/small")
    parser.add_argument("--encoder", type=Path, help="output of benchmarks/mcf_encoder.py")
    parser.add_argument("--finetuned", nargs="*", type=Path, default=[], help="run folders of `facessl finetune`")
    parser.add_argument("--probes", nargs="*", type=Path, default=[], help="files that `facessl probe --out` wrote")
    args = parser.parse_args()
    text = args.page.read_text()
    if args.runs:
        text = fill(text, "runs", runs_table([read_run_folder(path) for path in args.runs]))
    if args.symmetry:
        text = fill(text, "symmetry", symmetry_table(json.loads(args.symmetry.read_text())))
    if args.smoke:
        text = fill(text, "smoke", smoke_table([read_run_folder(path) for path in args.smoke]))
    if args.mcf:
        text = fill(text, "mcf", runs_table([read_run_folder(args.mcf)]))
    if args.encoder:
        text = fill(text, "encoder", encoder_table(json.loads(args.encoder.read_text())))
    if args.finetuned or args.probes:
        found = [finetuned(folder) for folder in args.finetuned if (folder / "results.json").is_file()]
        found += [probed(json.loads(path.read_text())) for path in args.probes]
        text = fill(text, "downstream", downstream_table(found))
    args.page.write_text(text)


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


def symmetry_table(found: dict[str, Any]) -> str:
    """Difference of the regions before training and the agreement of two passes on it."""
    s, results = found["settings"], found["results"]
    names = list(results[0])
    setting = (
        f"{s['backbone']}, {s['image_size']} px, output stride {s['output_stride']}, {s['source']}, seed {s['seed']}"
    )
    rows = [[n.replace("_", " ") for n in names], *([str(r[n]) for n in names] for r in results)]
    return f"{setting}; {_where(found)}.\n\n{table(rows)}"


def smoke_table(runs: list[RunFolder]) -> str:
    """Whether each method learned: loss, spread of the embeddings, k-NN accuracy, first to last, and three verdicts."""
    rows = [["method", "backbone", "steps", "seconds", "loss", "embedding_std", "k-NN accuracy"]]
    rows[0] += ["loss down", f"std above {STD_FLOOR}", "k-NN above its start"]
    for run in sorted(runs, key=lambda run: str(run.setting("method.name"))):
        head = headline(run)
        loss, std, knn = ((run.first(c), run.last(c)) for c in ("loss", *(f"monitor/{n}" for n in WATCHED)))
        low, high = (run.last(f"monitor/knn_accuracy_{side}") for side in ("low", "high"))
        met = (_rises(loss[1], loss[0]), _rises(STD_FLOOR, std[1]), _rises(*knn))
        rows.append(
            [
                str(head["method"]),
                str(head["backbone"]),
                str(head["steps"]),
                "-" if head["seconds"] is None else f"{head['seconds']:.0f}",
                *(_arrow(pair) for pair in (loss, std)),
                _arrow(knn) + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"),
                *("-" if m is None else "pass" if m else "FAIL" for m in met),
            ]
        )
    commits = ", ".join(sorted({str(run.environment.get("commit", "")) for run in runs}))
    return f"First to last line of metrics.csv, brackets: 95 % interval of the last; commit {commits}.\n\n{table(rows)}"


def _rises(first: float | None, last: float | None) -> bool | None:
    """Whether `last` is above `first`; None where one of them was not measured."""
    return None if first is None or last is None else last > first


def _arrow(pair: tuple[float | None, float | None]) -> str:
    return " -> ".join("-" if value is None else f"{value:.3f}" for value in pair)


def _where(found: dict[str, Any]) -> str:
    env = found["environment"]
    return f"{found['date']}, {env['processor']}, {env['cores']} cores, GPU {env['gpu']}, commit {env['commit']}"


def encoder_table(found: dict[str, Any]) -> str:
    """Masked over whole encoder, of one precision and kind of pass per row."""
    s = found["settings"]
    rows = [["precision", "passes", "whole, s", "masked, s", "masked / whole", "range"]]
    for r in found["results"]:
        low, high = r["ratio_range"]
        cells = (r["precision"], r["passes"], r["whole_seconds"], r["masked_seconds"], r["ratio"], f"{low}-{high}")
        rows.append([str(cell) for cell in cells])
    return (
        f"{s['backbone']}, {s['image_size']} px, {s['mask_ratio']:.0%} hidden, batch {s['batch_size']}, {s['threads']} "
        f"thread(s), {s['rounds']} rounds; {_where(found)}.\n\n{table(rows)}"
    )


def finetuned(folder: Path) -> dict[str, Any]:
    """One fine-tuned run as a cell."""
    results = json.loads((folder / "results.json").read_text())
    test = results["test"]
    labels = "" if results["labels"] == "all" else f", {results['labels']} of the labels"
    pixels = yaml.safe_load((folder / "config.yaml").read_text())["image_size"]
    protocol = f"{results['protocol']}, {pixels} px{labels}"
    return {
        "row": (short(results["source"]), results["task"], protocol, test["headline"]["name"]),
        "column": started_from(results["run"]),
        "cell": cell(test["headline"]),
        "floors": baselines(test),
        "images": test["images"],
    }


def probed(found: dict[str, Any]) -> dict[str, Any]:
    """One probe as a cell."""
    head = found.get("headline") or {
        "name": "accuracy",
        "value": found["accuracy"],
        "interval": found["accuracy_interval"],
    }
    labels = "" if found.get("labels", "all") == "all" else f", {found['labels']} of the labels"
    return {
        "row": (short(found["source"]), found.get("task", "expression"), f"{found['protocol']}{labels}", head["name"]),
        "column": started_from(found["run"]),
        "cell": cell(head),
        "floors": baselines(found),
        "images": found["n_test"],
    }


def short(source: str) -> str:
    """The last part of a source's path: what people call the set."""
    path = Path(source.partition(":")[2].partition("?")[0])
    return path.parent.name if path.suffix else path.name


def started_from(run: str) -> str:
    """Name of a run, for the head of its column."""
    return "random weights" if run == "none" or Path(run).name == "random" else Path(run).name


def cell(head: dict[str, Any]) -> str:
    """0.123 [0.120, 0.126]."""
    low, high = head["interval"]
    return f"{head['value']:.4f} [{low:.4f}, {high:.4f}]"


def downstream_table(found: list[dict[str, Any]]) -> str:
    """Markdown: one row per source, task and protocol; one column per start; the floor of the row beside them."""
    columns = sorted({one["column"] for one in found}, key=lambda name: (name != "random weights", name))
    rows = [["set", "task", "protocol", "score", "test images", "floor", *columns]]
    for row in dict.fromkeys(one["row"] for one in sorted(found, key=lambda one: one["row"])):
        here = [one for one in found if one["row"] == row]
        # A floor belongs to the test images, whichever protocol told it.
        floors: dict[str, float] = {}
        for one in found:
            if one["row"][0] == row[0] and one["row"][3] == row[3]:
                floors |= one["floors"]
        cells = {one["column"]: one["cell"] for one in here}
        floor = ", ".join(f"{name} {value:.4f}" for name, value in floors.items()) or "-"
        rows.append([*row, str(here[0]["images"]), floor, *(cells.get(name, "-") for name in columns)])
    return table(rows)


if __name__ == "__main__":
    main()
