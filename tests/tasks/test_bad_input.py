"""Wrong words to `facessl finetune`: one sentence that names the value, exit status 2, and nothing left behind."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facessl.cli import main
from facessl.data.sources.synthetic import Synthetic
from tests.helpers import refused

SOURCE = "synthetic:?n=30&size=40"
REST = [
    "--backbone", "test_resnet", "--image-size", "32", "--batch-size", "4", "--max-steps", "2", "--workers", "0",
    "--device", "cpu", "--optim.warmup-epochs", "0",
]  # fmt: skip
ALIGNMENT = ["finetune", "none", "landmarks-csv:points.csv", "--task", "alignment"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic faces as files, with 68 points each, and folders of two kinds of classes."""
    root = tmp_path_factory.mktemp("tables")
    source = Synthetic(n=12, size=40)
    rows = ["image," + ",".join(f"x{i},y{i}" for i in range(68))]
    for i in range(12):
        sample = source[i]
        for folder in (root, root / "kinds" / f"kind {i % 2}", root / "others" / f"other {i % 2}"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(sample.image)).save(folder / f"{i}.png")
        rows.append(f"{i}.png," + ",".join(f"{v:.2f}" for v in sample.landmarks.ravel()))
        (root / f"{i}.cls").write_text(str(i % 2))
    (root / "points.csv").write_text("\n".join(rows) + "\n")
    (root / "hole.csv").write_text("\n".join(rows).replace("x5,", "x_5,", 1) + "\n")
    for i in range(12):
        for name in ("many", "many-others"):
            folder = root / name / f"{'kind' if name == 'many' else 'other'} {i % 6}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes((root / f"{i}.png").read_bytes())
    with tarfile.open(root / "kinds.tar", "w") as tar:
        for i in range(12):
            tar.add(root / f"{i}.png", f"{i}.png")
            tar.add(root / f"{i}.cls", f"{i}.cls")
    return root


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["finetune", "none", SOURCE, "--task", "expresion"], "'expression'"),
        (["finetune", "none", SOURCE, "--protocol", "finetun"], "'finetune'"),
        (["finetune", "none", SOURCE, "--task", "parsing", "--protocol", "eac"], "protocol eac does not train parsing"),
        (["finetune", "none", SOURCE, "--protocol", "linear"], "probe --protocol linear"),
        (["finetune", "none", SOURCE, "--task.consistensy", "5"], "--task.consistency"),
        (["finetune", "none", SOURCE, "--augment", "{flipp: 0.5}"], "'flip'"),
        (["finetune", "none", SOURCE, "--augment", "{flip: 2}"], "flip is 2"),
        (["finetune", "none", SOURCE, "--augment", "{flip: often}"], "often"),
        (["finetune", "none", SOURCE, "--augment", "{jitter: 3}"], "jitter"),
        (["finetune", "none", SOURCE, "--optim.lrs", "{headd: 0.1}"], "'head'"),
        (["finetune", "none", SOURCE, "--optim.lrs", "{head: fast}"], "fast"),
        (["finetune", "none", SOURCE, "--optim.lr", "0"], "backbone: 0"),
        (["finetune", "none", SOURCE, "--optim.layer-decay", "2"], "layer_decay"),
        (["finetune", "none", SOURCE, "--select", "best"], "best"),
        (["finetune", "none", SOURCE, *REST, "--batch-size", "64"], "64"),
        (["finetune", "none", SOURCE, "--labels", "110%"], "110%"),
        (["finetune", "none", SOURCE, "--labels", "some"], "some"),
        (["finetune", "none", SOURCE, "--labels", "500-per-class"], "500-per-class"),
        (["finetune", "none", SOURCE, "--val-fraction", "0"], "validation fraction of 0.0"),
        (["finetune", "none", SOURCE, "--resume"], "--out"),
        (["finetune", "no/such/run", SOURCE], "no/such/run"),
        (["finetune", "none", "kinds", "--task", "attributes"], "attributes"),
        (["finetune", "none", "points.csv", "--task", "parsing"], "mask"),
        (["finetune", "none", "kinds", "--test", "others"], "kind 0"),
        (["finetune", "none", "kinds", "--task", "expression", "--test", "points.csv"], "kind 0"),
        (["finetune", "none", SOURCE, "--task", "alignment", "--test", "kinds", "--task.width", "8"], "landmarks"),
        (["finetune", "none", SOURCE, "--task", "attributes", "--test", "kinds"], "attributes"),
        (["finetune", "none", SOURCE, "--task", "parsing", "--task.width", "8", "--test", "kinds"], "classes"),
        (["finetune", "none", SOURCE, "--task", "verification"], "pairs"),
        (["finetune", "none", SOURCE, "--task", "verification", "--select", "val"], "pairs"),
        ([*ALIGNMENT, "--task.width", "8"], "layout=ibug68"),
        ([*ALIGNMENT, "--protocol", "star", "--task.width", "8"], "layout="),
        ([*ALIGNMENT, "--task.width", "8", "--task.unit", "box", "--augment", "{flip: 0.5}"], "flip"),
        ([*ALIGNMENT, "--task.width", "8", "--task.unit", "eyes"], "eyes"),
        ([*ALIGNMENT, "--task.width", "0"], "width"),
        (["finetune", "none", "landmarks-csv:points.csv?layout=wflw98", "--task", "alignment"], "98"),
        (["finetune", "none", "kinds", "--balanced", "--task", "parsing"], "mask"),
        (["finetune", "none", "pipe:cat kinds.tar", "--test", "kinds", "--select", "last"], "stream"),
        (["finetune", "none", SOURCE, "--precision", "fp16"], "fp16"),
        (["finetune", "none", SOURCE, "--protocol", "eac", "--augment", "{pairs: false}"], "augment.pairs true"),
        (["finetune", "none", SOURCE, "--task.consistency", "5"], "augment.pairs true"),
        (["finetune", "none", SOURCE, "--optim.betas", "0.9"], "a list of 2, such as '[0.1, 0.1]'"),
        (["finetune", "none", SOURCE, "--optim.lrs", "0.9"], "such as '{name: 0.1}'"),
        (["finetune", "none", SOURCE, "--optim.warmup-epochs", "9"], "is 45 steps, but the run has 2"),
        (["finetune", "none", SOURCE, "--print-config", "--augment", "{flipp: 1}"], "'flip'"),
        (["finetune", "none", "masks-foldr:x"], "'masks-folder'"),
        (["finetune", "none", "labels-csv:points.csv"], "labels-csv:FILE?label=COLUMN"),
        (["finetune", "none", "landmarks-csv:hole.csv", "--task", "alignment"], "hole.csv has no column x5"),
        (["finetune", "none", "many", "--test", "many-others"], "kind 3, kind 4, ... 6 in all"),
    ],
)  # fmt: skip
def test_wrong_words(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tables)
    before = set(tables.rglob("*"))
    words = [*words[:3], *REST, *words[3:]]
    assert says in refused(capsys, *words)
    assert set(tables.rglob("*")) == before, "nothing is written before a run can start"


def test_landmarks_without_names_train_with_another_unit(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the refusals recommend works."""
    monkeypatch.chdir(tables)
    words = [*ALIGNMENT, *REST, "--task.width", "8", "--task.unit", "box", "--task.heatmap-size", "null"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["test"]["headline"]["name"] == "nme_box"


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["finetune", "none", SOURCE, *REST, "--out", str(run)]
    assert main(words) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "--resume" in refused(capsys, *words)
    said = refused(capsys, *words, "--resume", "--optim.lr", "0.5", "--seed", "3", "--augment", "{flip: 0.1}")
    assert all(key in said for key in ("optim.lr: ", "seed: 0 -> 3", "augment.flip: "))
    assert "batch_size" not in said
    assert "task" in refused(capsys, *words, "--resume", "--task", "attributes")
    last = run / "checkpoints" / "last.ckpt"
    assert "nothing-here" in refused(capsys, *words[:3], *REST, "--out", str(tmp_path / "nothing-here"), "--resume")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    last.unlink()
    last.write_bytes(b"half a checkpoint")
    assert "last.ckpt" in refused(capsys, *words, "--resume")
