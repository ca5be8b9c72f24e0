"""Plans of one recipe for several numbers of GPUs, as JSON, and as the table of docs/scaling.md.

Command: `python benchmarks/scaling.py [--gpu-images-per-second 8:400,64:1200,256:1500] [--out FILE] [--write]`.
Nothing is run: it is the arithmetic of `facessl plan`. Without measured rates the hours are those of GPUs that make
1,000 images/s at 256 images each; the latency of a message is an assumption, which an option changes.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from facessl.core import environment
from facessl.tools import plan

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- plans: begin -->", "<!-- plans: end -->"
#: GPUs and batch: the same batch on more GPUs, then one that keeps 512 of them busy.
CASES = ((8, 4096), (64, 4096), (512, 4096), (512, 16384))
ROWS: tuple[tuple[str, str, str, float], ...] = (
    ("batch", "batch", ",d", 1),
    ("images per GPU and step", "batch_per_gpu", ".0f", 1),
    ("steps", "steps", ",d", 1),
    ("peak learning rate", "learning_rate", ".1f", 1),
    ("compute, ms", "compute_seconds_per_step", ".1f", 1e3),
    ("messages of batch norms, ms", "norm_seconds_per_step", ".1f", 1e3),
    ("hours", "hours", ".2f", 1),
    ("hours, all-reduce hidden", "hours_with_overlap", ".2f", 1),
    ("GPU hours", "gpu_hours", ".0f", 1),
    ("all-reduce at the link's rate, ms", "all_reduce_seconds", ".1f", 1e3),
    ("images/s in total", "images_per_second", ",.0f", 1),
    ("all-reduce per step and GPU, MB", "all_reduce_bytes", ".0f", 1e-6),
    ("cores that decode, in total", "decoding_cores", ".0f", 1),
    ("reading, MB/s in total", "read_megabytes_per_second", ",.0f", 1),
    ("checkpoint, MB", "checkpoint_bytes", ".0f", 1e-6),
)


def table(plans: list[dict[str, Any]]) -> str:
    """Markdown, a column for each plan."""
    lines = ["| GPUs | " + " | ".join(str(p["gpus"]) for p in plans) + " |", "| --- |" + " ---: |" * len(plans)]
    for label, key, form, scale in ROWS:
        cells = [format(p[key] if scale == 1 else p[key] * scale, form) for p in plans]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    warned: dict[str, list[str]] = {}
    for p in plans:
        for text in p["warnings"]:
            warned.setdefault(text, []).append(str(p["gpus"]))
    return "\n".join([*lines, "", *(f"- {' and '.join(gpus)} GPUs: {text}." for text, gpus in warned.items())])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="fra/vggface2-r50")
    parser.add_argument("--images", type=int, default=20_000_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument(
        "--warmup-epochs", type=float, default=1, help="as MCF has on this set; FRA's ten would be most"
    )
    parser.add_argument("--gpu-images-per-second", default="1000", help="as of facessl plan")
    parser.add_argument("--norm-microseconds", type=float, default=40.0)
    parser.add_argument("--link-gbit", type=float, default=200.0)
    parser.add_argument("--out", type=Path, help="file that the JSON is also written to")
    parser.add_argument("--write", action="store_true", help="fill the table of docs/scaling.md")
    given = parser.parse_args()
    names = "images epochs warmup_epochs gpu_images_per_second link_gbit norm_microseconds"
    settings = {k: getattr(given, k) for k in names.split()}
    plans = [plan.plan(plan.Options(given.recipe, gpus=gpus, batch_size=batch, **settings)) for gpus, batch in CASES]
    found = {
        "benchmark": "scaling",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": given.recipe,
        **settings,
        "results": plans,
        "environment": environment.describe(),
    }
    text = json.dumps(found, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")
    if given.write:
        page = PAGE.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{table(plans)}\n{END}{after}")


if __name__ == "__main__":
    main()
