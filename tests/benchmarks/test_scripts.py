"""The benchmarks' scripts run, and what they say is true. They measure how fast things are; no test judges that."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from facessl.models.backbone import Backbone
from facessl.report.folder import read_run_folder
from tests.helpers import script


def test_parts_of_a_step_are_found_and_cover_it() -> None:
    step, args = script("step"), Namespace(backbone="resnet10t", batch_size=4, device="cpu")
    shares = step.RealStep(step.Configuration(args, "fra", 64, "bf16")).shares(steps=1)
    for part in ("backbone", "target backbone", "heads", "decoder", "Sinkhorn", "EMA", "optimizer", "data wait"):
        assert shares.get(part, 0) > 0, part
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)


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
    assert report["methods"][0]["utilization"] > 0
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


def test_study_takes_a_fraction_of_the_labels_once(tmp_path: Path) -> None:
    study = script("study")
    score = study.by_protocol("synthetic:?n=60&size=32&label=expression", study.linear, labels="50%", cache=False)
    assert score(Backbone("test_resnet", image_size=32), tmp_path)["training_images"] in range(20, 28)
