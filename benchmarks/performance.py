"""Fill docs/performance.md from the JSON of the benchmarks.

    python benchmarks/performance.py [runs/perf] [--page docs/performance.md]

Every `*.json` of the folder says which benchmark it is from; its table goes between `<!-- NAME: begin -->` and
`<!-- NAME: end -->`. Several files of one benchmark (two machines) follow one another. The block "goals" sets what was
asked beside what was measured. What has no file stays as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import fill, flat_table, listed, number, percent, spread, table, words
from goals import goals

Report = dict[str, Any]
Rows = list[list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/perf"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args()
    reports: dict[str, list[Report]] = {}
    for path in sorted(args.folder.glob("*.json")):
        report = json.loads(path.read_text())
        if report.get("settings", {}).get("tiny") or report.get("settings", {}).get("quick"):
            continue  # a trial of the script
        reports.setdefault(report.get("benchmark", path.stem), []).append(report)
    text = args.page.read_text()
    for name, make in TABLES.items():
        if name in reports:
            text = fill(text, name, "\n\n".join(origin(r) + "\n\n" + make(r) for r in reports[name]))
    unknown = sorted(reports.keys() - TABLES.keys())
    if unknown:
        print(f"no table for {', '.join(unknown)}: add one to TABLES")
    args.page.write_text(fill(text, "goals", goals(reports, text)))


def origin(report: Report) -> str:
    """Where and when a report was made."""
    env = report.get("environment", {})
    machine = env.get("gpu") or f"{env.get('processor')}, {env.get('cores')} cores"
    threads = report.get("settings", {}).get("threads")
    parts = [str(report.get("date", ""))[:10], machine, f"{threads} thread{'s' * (threads > 1)}" if threads else ""]
    parts += [f"torch {env.get('versions', {}).get('torch')}", f"commit {env.get('commit') or 'unknown'}"]
    return "; ".join(part for part in parts if part) + "."


# ---- tables ----------------------------------------------------------------------------------------------------------


PIPELINE_PARTS = {
    "reference": "reference, whole views",
    "reference_crops": "reference, decode and two crops",
    "worker": "decode and two crops",
    "photometric_part": "photometric part",
    "complete": "complete: whole views",
}
PIPELINE_RATIOS = {
    "worker_times_reference_crops": "decode and two crops over the reference's: equal work",
    "worker_times_reference": "decode and two crops over the reference's whole views: unequal work",
    "loader_times_reference": "loader over the reference's whole views: unequal work",
    "complete_times_reference": "whole views over the reference's: equal work",
}


def pipeline(report: Report) -> str:
    """Rates per core and ratios to the torchvision and Pillow pipeline."""
    rows: Rows = [["", *(f"{r['stored_pixels']} -> {r['view_pixels']} px" for r in report["results"])]]
    for name in report["results"][0]["images_per_second_per_core"]:
        label = PIPELINE_PARTS.get(name, name)
        rows.append([f"{label}, images/s", *(number(r["images_per_second_per_core"][name]) for r in report["results"])])
    for key in report["results"][0]:
        if key.endswith(("_reference", "_reference_crops", "_rate")):
            rows.append([PIPELINE_RATIOS.get(key, words(key)), *(number(r[key]) for r in report["results"])])
    text = table(rows)
    for entry in report.get("scaling") or []:
        counts = list(entry["images_per_second"])
        head = [f"loader processes, {entry['view_pixels']} px", *counts]
        more: Rows = [head, ["images/s", *(number(entry["images_per_second"][c]) for c in counts)]]
        text += "\n\n" + table([*more, ["times one", *(number(entry["times_one_worker"][c]) for c in counts)]])
    return text


def step(report: Report) -> str:
    """Ratios of the step, and its shares."""
    head = ["method", "backbone", "px", "batch", "precision", "images/s", "over floor", "straightforward over ours"]
    compiled = any("step_over_compiled" in r for r in report["results"])
    rows: Rows = [head + (["plain over compiled"] if compiled else [])]
    for r in report["results"]:
        floor = spread(r["step_over_floor"])
        if "step_over_floor_with_decoder" in r:
            floor += f"; {spread(r['step_over_floor_with_decoder'])} with the decoder in the floor"
        row = [*(str(r[k]) for k in ("method", "backbone", "image_size", "batch_size", "precision"))]
        row += [number(r["images_per_second"]), floor, spread(r.get("naive_over_step"))]
        rows.append(row + ([spread(r.get("step_over_compiled"))] if compiled else []))
    text = table(rows)
    shared = [r for r in report["results"] if "shares" in r]
    if shared:
        parts = list(dict.fromkeys(part for r in shared for part in r["shares"]))
        heads = [f"{r['method']}, {r['image_size']} px, {r['precision']}" for r in shared]
        body: Rows = [[part, *(percent(r["shares"].get(part, 0.0)) for r in shared)] for part in parts]
        text += "\n\nShares of the step's time, loading and photometric views included:\n\n"
        text += table([["part", *heads], *body])
    return text


def shards(report: Report) -> str:
    """Packing, reading, a large folder."""
    return flat_table(report["results"])


def embed(report: Report) -> str:
    """Rate against the bare forward pass, memory over time."""
    found = report["results"]
    kept = {k: v for k, v in found.items() if k != "memory"}
    text = flat_table({f"{report['settings'].get('backbone', '')}": kept})
    if found.get("memory"):
        names = list(found["memory"][0])
        text += "\n\n" + table([[words(n) for n in names], *([number(m[n]) for n in names] for m in found["memory"])])
    return text


def methods(report: Report) -> str:
    """Every method's step beside BYOL's."""
    rows: Rows = [["method", "backbone", "precision", "views", "images/s", "time to BYOL's", "memory to BYOL's"]]
    for r in report["results"]:
        names = [str(r[k]) for k in ("method", "backbone", "precision", "views")]
        low, high = r["time_range"]
        times = f"{number(r['time_to_byol'])} ({number(low)}-{number(high)})"
        rows.append([*names, number(r["images_per_second"]), times, number(r["memory_to_byol"])])
    return table(rows)


def gpu(report: Report) -> str:
    """All parts of the GPU benchmark that were measured."""
    top = report["ceiling"]
    text = f"Ceilings: {number(top['matrix_tflops'])} TFLOP/s (bf16 product), "
    text += f"{number(top['copy_gigabytes_per_second'])} GB/s (copy)."
    head = "method, px, batch, images/s, floor, straightforward, share of floor, over straightforward, GFLOP/image"
    rows: Rows = [[*head.split(", "), "MFU", "GiB"]]
    for r in listed(report.get("methods")):
        rates = r["images_per_second"]
        row = [r["method"], str(r["image_size"]), f"{r['batch_size']:,}"]
        row += [number(rates[k]) for k in ("step", "floor", "naive")]
        row += [percent(r["share_of_floor_rate"]), number(r["naive_over_step"]), number(r["gigaflop_per_image"])]
        rows.append([*row, percent(r["utilization"] or 0), number(r["peak_gibibytes"] or 0)])
    text += "\n\n" + table(rows)
    text += "".join(
        f"\n\nMCF's step takes {number(r['step_over_floor_with_decoder'])} of its floor with the bare decoder in it."
        for r in listed(report.get("methods"))
        if "step_over_floor_with_decoder" in r
    )
    fast = [r for r in listed(report.get("compiled")) if "gain" in r]
    if fast:
        columns = ["compiled", "images/s", "gain", "share of the bare floor", "share of the compiled floor"]
        rows = [[*columns, "compiling, s", "fp16, images/s", "gain of fp16"]]
        for r in fast:
            row = [r["method"], number(r["images_per_second"]["compiled"]), number(r["gain"])]
            row += [percent(r["share_of_floor_rate"]), percent(r["share_of_compiled_floor_rate"])]
            half = r["images_per_second"].get("fp16", ""), r.get("gain_of_fp16", "")
            rows.append([*row, *map(number, (r["compile_seconds"], *half))])
        text += "\n\n" + table(rows)
    if "largest" in (seen := report.get("profile", {})):
        rows = [["kernel of FRA's step", "calls", "ms", "share"]]
        for k in seen["largest"]:
            name = k["kernel"].removeprefix("void ").replace("at::native::", "").replace("|", " ")
            rows.append([f"`{name[:70]}`", str(k["calls"]), number(k["milliseconds"]), percent(k["share"])])
        text += f"\n\n{seen['kernels_per_step']:,} kernels a step; none runs for {percent(seen['idle'])} of it.\n\n"
        text += table(rows)
    for name in ("data", "embed", "batches"):
        if isinstance(report.get(name), dict):
            text += "\n\n" + flat_table({name: report[name]})
    return text


def linear(report: Report) -> str:
    """Seconds of a whole path of penalties, by solver."""
    rows = [["solver", "penalties", "seconds", "CPU seconds"]]
    for name, r in report["results"].items():
        if "penalties" in r:
            rows.append([name, str(r["penalties"]), str(r["seconds"]), str(r["cpu_seconds"])])
    return table(rows)


TABLES: dict[str, Callable[[Report], str]] = {
    "pipeline": pipeline,
    "step": step,
    "shards": shards,
    "embed": embed,
    "methods": methods,
    "gpu": gpu,
    "linear": linear,
}


if __name__ == "__main__":
    main()
