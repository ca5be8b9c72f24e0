"""What was asked beside what the benchmarks measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cells import listed, number, percent, table

Report = dict[str, Any]
Rows = list[list[str]]


def packed(report: Report) -> str:
    """Ratios of `pack`, of usual and of small images."""
    sides = {"pack": report["settings"]["side"], "pack_small": report["settings"]["small_side"]}
    told = ((report["results"].get(part), side) for part, side in sides.items())
    return "; ".join(f"{r['cpu_ratio']} of CPU time, {r['wall_ratio']} of wall time ({s} px)" for r, s in told if r)


def goals(reports: dict[str, list[Report]], page: str) -> str:
    """What was asked beside what was measured: of these reports, else what `page` says already, else "not run"."""
    rows: Rows = [["number", "asked", "measured"]]
    for label, asked, name, read in GOALS:
        found = []
        for report in reports.get(name, []):
            try:
                found.append(read(report))
            except (KeyError, TypeError, IndexError, ValueError):  # a report without this part
                continue
        before = re.search(rf"^\| {re.escape(label)} \|[^|]*\| (.*) \|$", page, re.M)
        kept = before[1] if before else ""
        rows.append([label, asked, "; ".join(filter(None, found)) or kept or "not run"])
    return table(rows)


def by_size(key: str) -> Callable[[Report], str]:
    def read(report: Report) -> str:
        sizes = ((r, f"{r['stored_pixels']} -> {r['view_pixels']} px") for r in report["results"])
        return ", ".join(f"{number(r[key])} ({size})" for r, size in sizes)

    return read


def by_method(key: str, precision: str, size: int | None = None) -> Callable[[Report], str]:
    def read(report: Report) -> str:
        rows = [r for r in report["results"] if r["precision"] == precision and size in (None, r["image_size"])]
        return ", ".join(
            f"{number(r[key]['median'])} ({r['method']}{'' if size else ', ' + str(r['image_size']) + ' px'})"
            for r in rows
            if key in r
        )

    return read


def by_gpu_method(value: Callable[[Report], str]) -> Callable[[Report], str]:
    def read(report: Report) -> str:
        return ", ".join(f"{value(m)} ({m['method']}, {m['image_size']} px)" for m in listed(report["methods"]))

    return read


def million(report: Report) -> str:
    found = report["results"]["folder"]
    fresh, known = found["first_open"], found["with_index"]
    return (
        f"{found['files']:,} files: {number(fresh['open_seconds'] + fresh['first_batch_seconds'])} s at first, "
        f"{number(known['open_seconds'] + known['first_batch_seconds'])} s with the index; "
        f"{fresh['worker_private_megabytes']} MB private per worker"
    )


GOALS: list[tuple[str, str, str, Callable[[Report], str]]] = [
    (
        "decode and two crops over the reference's whole views, per core (unequal work)",
        "at least 20",
        "pipeline",
        by_size("worker_times_reference"),
    ),
    ("decode and two crops over the same (equal work)", "printed", "pipeline", by_size("worker_times_reference_crops")),
    ("complete views on a CPU (equal work)", "at least 4", "pipeline", by_size("complete_times_reference")),
    ("share of the pure decode rate", "printed", "pipeline", by_size("worker_share_of_decode_rate")),
    (
        "loader processes over one",
        "printed",
        "pipeline",
        lambda r: ", ".join(
            f"{number(rate)} with {count} ({e['stored_pixels']} -> {e['view_pixels']} px)"
            for e in r["scaling"]
            for count, rate in list(e["times_one_worker"].items())[-1:]
        ),
    ),
    ("straightforward step over ours, bf16, CPU", "at least 2.5", "step", by_method("naive_over_step", "bf16")),
    (
        "step over the bare-backbone floor at 224 px, bf16",
        "at most 1.2",
        "step",
        by_method("step_over_floor", "bf16", 224),
    ),
    (
        "step over the bare-backbone floor at 224 px, fp32",
        "at most 1.2",
        "step",
        by_method("step_over_floor", "fp32", 224),
    ),
    (
        "GPU: share of the bare-backbone rate",
        "80 % (fra), 90 % (byol)",
        "gpu",
        by_gpu_method(lambda m: percent(m["share_of_floor_rate"])),
    ),
    (
        "GPU: straightforward step over ours",
        "at least 2",
        "gpu",
        by_gpu_method(lambda m: number(m["naive_over_step"])),
    ),
    (
        "GPU: step over the floor with the decoder, mcf",
        "at most 1.1",
        "gpu",
        lambda r: ", ".join(
            number(m["step_over_floor_with_decoder"]) for m in listed(r["methods"]) if m["method"] == "mcf"
        ),
    ),
    (
        "GPU: FRA's images/s, ResNet-50, 224 px",
        "at least 1,500",
        "gpu",
        lambda r: ", ".join(
            f"{number(m['images_per_second'][side])} ({side})"
            for part, side in (("methods", "step"), ("compiled", "compiled"))
            for m in listed(r[part])[:1]
        ),
    ),
    ("GPU: FLOP utilization", "printed", "gpu", by_gpu_method(lambda m: percent(m["utilization"]))),
    (
        "GPU: data wait from JPEG shards, 16 cores",
        "below 5 %",
        "gpu",
        lambda r: f"{percent(r['data']['data_wait'])} waited, {percent(r['data']['rate_lost'])} of the rate lost",
    ),
    (
        "pack over decode + encode of the cores",
        "at least 0.7",
        "shards",
        packed,
    ),
    (
        "reading shards over reading the folder",
        "at least 1",
        "shards",
        lambda r: (
            f"{r['results']['read']['loader']['shards_to_files']} through the loader, "
            f"{r['results']['read']['bytes_only']['shards_to_files']} bytes only"
        ),
    ),
    ("a folder of a million files: time to the first batch", "printed", "shards", million),
    (
        "embed over the bare forward rate",
        "at least 0.85",
        "embed",
        lambda r: (
            f"{r['results']['ratio']} ({r['settings'].get('backbone')}, {r['settings'].get('image_size')} px, "
            f"{r['settings'].get('precision')})"
        ),
    ),
    (
        "embed: memory from a quarter to the end",
        "flat",
        "embed",
        lambda r: f"x {r['results']['memory_growth_quarter_to_end']}",
    ),
]
