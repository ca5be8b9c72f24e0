"""Table of fine-tuned runs and probes, into the block `downstream` of docs/results.md.

    python benchmarks/downstream.py docs/results.md --finetuned runs/ft/*/ --probes runs/probe/*.json

A row is one protocol on one source, a column what it started from; each cell is the headline with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from results import fill, table

#: Floors that a result knows, and what they are called in the table.
FLOORS = {"majority_class": "majority class", "majority": "majority answers", "mean_shape_nme": "mean shape"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--finetuned", nargs="*", type=Path, default=[])
    parser.add_argument("--probes", nargs="*", type=Path, default=[])
    args = parser.parse_args()
    found = [finetuned(folder) for folder in args.finetuned if (folder / "results.json").is_file()]
    found += [probed(json.loads(path.read_text())) for path in args.probes]
    args.page.write_text(fill(args.page.read_text(), "downstream", downstream_table(found)))


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
        "floors": {FLOORS[k]: v for k, v in test.items() if k in FLOORS},
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
        "floors": {FLOORS[k]: v for k, v in found.items() if k in FLOORS},
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
