"""The benchmarks' scripts run, and what they say is true. They measure how fast things are; no test judges that."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from facessl.core import plugins
from facessl.data import prefetch
from facessl.report.folder import read_run_folder
from tests.helpers import script

STEP = 4  # seconds of a clock that only moves where something takes time


class Clock:
    """A loader that makes a batch in `seconds` and has `ready` of them at the start, in its own time."""

    def __init__(self, seconds: float, ready: int) -> None:
        self.now, self.seconds = 0.0, seconds
        self.made, self.taken = [0.0] * ready, 0

    def perf_counter(self) -> float:
        return self.now

    def step(self, batch: Any) -> None:
        self.now += STEP

    def __next__(self) -> Any:
        self.now = max(self.now, self.made[self.taken])
        self.made.append(max(self.made[-1], self.now) + self.seconds)  # in the place that is free now
        self.taken += 1
        return SimpleNamespace(to=lambda device: None)


@pytest.mark.parametrize(("seconds", "waited"), [(2, 0.0), (8, 0.5)])
def test_what_a_loader_had_ready_hides_no_wait(seconds: float, waited: float, monkeypatch: pytest.MonkeyPatch) -> None:
    feeding, clock = script("feeding"), Clock(seconds, ready=12)
    monkeypatch.setattr(feeding, "time", clock)
    monkeypatch.setattr(prefetch, "time", clock)
    assert feeding.drained(clock, 12, count=12) == 1 / seconds, "what was ready is not the loader's rate"
    ready = prefetch.Prefetcher(clock, torch.device("cpu"), lambda batch: batch)  # type: ignore[arg-type]
    found = feeding.timed(ready, clock.step, 40, lambda: None)
    assert found == (1 / max(seconds, STEP), waited)


def test_parts_of_a_step_are_found_and_cover_it() -> None:
    shares = script("step").RealStep(configuration("fra", "resnet10t", 64, 4)).shares(steps=1)
    for part in ("backbone", "target backbone", "heads", "decoder", "Sinkhorn", "EMA", "optimiser", "data wait"):
        assert shares.get(part, 0) > 0, part
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)


def configuration(method: str, backbone: str, size: int, batch: int) -> Any:
    args = Namespace(backbone=backbone, batch_size=batch, device="cpu")
    return script("step").Configuration(args, method, size, "bf16")


@pytest.mark.parametrize(
    ("method", "backbone"), [("byol", "resnet10t"), ("fra", "resnet10t"), ("mcf", "vit_tiny_patch16_224")]
)
def test_the_straightforward_step_is_of_the_same_method(method: str, backbone: str) -> None:
    step = script("step")
    ours = step.RealStep(configuration(method, backbone, 64, 2)).method
    theirs = step.naive.METHODS[method](backbone, 64)
    count = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    if method == "mcf":  # the teacher is not a module of ours, its positions are a buffer
        count[1] -= sum(p.numel() for p in theirs.teacher.parameters()) + theirs.positions.numel()
    assert count[0] == count[1]


def test_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    """Every part but the compiled one; the script itself is `benchmarks/gpu.sh --device cpu --tiny`."""
    gpu = script("gpu")
    args = Namespace(
        device="cpu", tiny=True, batch_size=2, workers=1, images=16, seconds=99, parts=gpu.PARTS, out=tmp_path
    )
    run = gpu.Run(args)
    run.guarded("ceiling", run.ceiling)
    run.guarded("methods", lambda: [run.method("byol", 64)])
    for part in (run.profile, run.data, run.embed):
        run.guarded(part.__name__, part)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert not [name for name, value in report.items() if "error" in value], report
    assert report["methods"][0]["utilisation"] > 0
    assert report["data"]["images_per_second_from_shards"] > 0


@pytest.mark.parametrize(
    ("rows", "verdicts"),
    [
        (["0,,0.1,0.20", "10,3.0,,", "20,2.0,0.7,0.25"], ["pass", "pass", "pass"]),
        (["0,,0.1,0.20", "10,2.0,,", "20,2.0,0.2,0.20"], ["FAIL", "FAIL", "FAIL"]),
        (["0,,0.1,", "10,3.0,,"], ["FAIL", "FAIL", "-"]),
    ],
)
def test_smoke_table_passes_only_what_rose(rows: list[str], verdicts: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: {name: byol}\nbackbone: {name: resnet10t}\n")
    head = "step,loss,monitor/embedding_std,monitor/knn_accuracy"
    (tmp_path / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    last = script("results").smoke_table([read_run_folder(tmp_path)]).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")][-3:] == verdicts


def test_methods_are_compared_on_the_backbone_they_are_made_for() -> None:
    methods = script("methods")
    every = Namespace(methods=plugins.names("methods"), backbone=["resnet50", "vit_base_patch16_224"])
    assert {"fra", "pcl", "swav", "lewel"} <= set(methods.chosen(every, "resnet50"))
    assert set(methods.chosen(every, "vit_base_patch16_224")) == {"byol", "simclr", "mae", "mcf", "farl"}
    vit = Namespace(methods=["fra", "mae"], backbone=["vit_base_patch16_224"])
    assert methods.chosen(vit, "vit_base_patch16_224") == ["byol", "fra", "mae"], "BYOL is what the rest is divided by"
    assert methods.views_of("swav", 224) == "2 x 224 + 6 x 96"
