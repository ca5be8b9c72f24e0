"""Ratios of a training step that must not grow: against the bare backbone, and against a straightforward one.

Ratios of CPU time within one process, with slack, at a size where a step takes a tenth of a second; the figures that
count are docs/performance.md's. What they guard: a pass too many, heads or losses that became slow, an optimiser or
momentum network that works parameter by parameter again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def step() -> Iterator[Any]:
    """The benchmark of the step as a module, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import step

        yield step
    finally:
        sys.path.remove(str(BENCHMARKS))
        torch.set_num_threads(threads)


def configuration(step: Any, method: str, backbone: str, size: int, batch: int) -> Any:
    args = argparse.Namespace(backbone=backbone, batch_size=batch, device="cpu")
    return step.Configuration(args, method, size, "bf16")


def seconds(step: Any, config: Any, *, rounds: int) -> dict[str, list[float]]:
    real = step.RealStep(config)
    sides = {
        "floor": config.floor(),
        "step": lambda: real(config.batch_in_memory()),
        "naive": step.naive.step(config.name, config.backbone, config.size, config.views, config.autocast, 1e-4),
    }
    found: dict[str, list[float]] = step.alternate(sides, rounds=rounds, seconds=30, device=torch.device("cpu"))
    return found


def test_fra_stays_near_its_floor_and_ahead_of_the_straightforward_step(step: Any) -> None:
    spent = seconds(step, configuration(step, "fra", "resnet18", 112, 8), rounds=3)
    assert step.ratio(spent["step"], spent["floor"])["median"] < 2.2
    assert step.ratio(spent["naive"], spent["step"])["median"] > 1.1


def test_parts_of_a_step_are_found_and_cover_it(step: Any) -> None:
    config = configuration(step, "fra", "resnet10t", 64, 4)
    shares = step.RealStep(config).shares(steps=1)
    for part in ("backbone", "target backbone", "heads", "decoder", "Sinkhorn", "EMA", "optimiser", "data wait"):
        assert shares.get(part, 0) > 0, part
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert shares.get("rest", 0) < 0.25
    assert shares["backbone"] > shares["target backbone"]  # backward passes are attributed


def test_straightforward_networks_are_as_large_as_ours(step: Any) -> None:
    """The comparison is between two writings of one method, not between two methods."""
    for method, backbone in (("byol", "resnet10t"), ("fra", "resnet10t"), ("mcf", "vit_tiny_patch16_224")):
        config = configuration(step, method, backbone, 64, 2)
        ours = step.RealStep(config).method
        theirs = step.naive.METHODS[method](backbone, 64)
        count = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
        if method == "mcf":  # the teacher is not a module of ours, its positions are a buffer
            count[1] -= sum(p.numel() for p in theirs.teacher.parameters()) + theirs.positions.numel()
        assert count[0] == count[1], method


def test_gpu_benchmark_runs_on_a_cpu(step: Any, tmp_path: Path) -> None:
    """Every part but the compiled one; the script itself is `benchmarks/gpu.sh --device cpu --tiny`."""
    import gpu

    args = argparse.Namespace(
        device="cpu", tiny=True, batch_size=2, workers=1, images=16, seconds=99, parts=gpu.PARTS, out=tmp_path
    )
    run = gpu.Run(args)
    run.guarded("ceiling", run.ceiling)
    run.guarded("methods", lambda: [run.method("byol", 64)])
    for part in (run.profile, run.data, run.embed):
        run.guarded(part.__name__, part)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert not [name for name, value in report.items() if "error" in value], report
    assert 0 < report["methods"][0]["utilisation"] < 2
    assert report["data"]["images_per_second_from_shards"] > 0
