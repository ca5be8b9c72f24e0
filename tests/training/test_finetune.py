"""What a fine-tuning run promises: which images it sees, and which weights it keeps."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from facessl.cli import main
from facessl.config import parse
from facessl.config.commands import FINETUNE
from facessl.core import checkpoint
from facessl.core.errors import CheckpointError, ConfigError
from facessl.core.types import Progress
from facessl.data.label_fractions import fewer_labels
from facessl.data.loader import TrainLoader
from facessl.data.order import Order
from facessl.data.sources.synthetic import Synthetic
from facessl.data.splits import parts
from facessl.evaluation import score
from facessl.inference import trained_task
from facessl.metrics.segmentation import ConfusionMatrix, parsing_scores
from facessl.models.backbone import Backbone
from facessl.pretrained import load
from facessl.report.write import write_report
from facessl.tasks.alignment import Alignment
from facessl.tasks.base import Labels, headline
from facessl.tasks.expression import Expression
from facessl.training import finetune as module
from facessl.training import run as runs
from facessl.training.derived import adapt_defaults, cheaper_hint, derive, fitting_batch, size_reason
from facessl.training.task_with_ema import TaskWithEma
from facessl.views.augment import Augment
from facessl.views.supervised import Supervised
from tests.finetune_runs import SOURCE
from tests.helpers import assert_same, read_table

#: The same through the library.
VALUES: dict[str, Any] = {
    **{"source": SOURCE, "backbone": "test_resnet", "image_size": 32, "batch_size": 8, "epochs": 3, "workers": 0},
    **{"device": "cpu", "log_every": 1, "optim": {"warmup_epochs": 0, "lr": 0.01}},
}


@pytest.fixture(autouse=True)
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a run takes longer than its steps."""
    monkeypatch.setattr(module, "write_report", lambda folder: {"notes": []})


def finetune(out: Path, **values: Any) -> dict[str, Any]:
    return module.finetune(**{**VALUES, "out": str(out), **values})


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


# ---- which images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["val", "last", "test"])
def test_the_test_part_is_read_at_the_end_only(select: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parts(SOURCE, need_val=False, needs=("label",))
    test = set(whole.test.positions.tolist())  # type: ignore[attr-defined]
    read: dict[str, set[int]] = {"before": set(), "after": set()}
    phase = ["before"]
    real, finish = Synthetic.__getitem__, module.Finetuning.finish

    def spied(self: Synthetic, index: int) -> Any:
        read[phase[0]].add(int(index))
        return real(self, index)

    def finishing(*values: Any, **named: Any) -> dict[str, Any]:
        phase[0] = "after"
        return finish(*values, **named)

    monkeypatch.setattr(
        runs, "_fingerprints", lambda sources: {}
    )  # fingerprints read a few images; nothing learns of them
    monkeypatch.setattr(Synthetic, "__getitem__", spied)
    monkeypatch.setattr(module.Finetuning, "finish", finishing)
    found = finetune(tmp_path / "run", select=select, epochs=2)
    assert found["selected"]["by"] == select
    assert read["after"] >= test  # and training images, whose faces are measured
    if select == "test":
        assert read["before"] == set(range(60))
    else:
        assert not read["before"] & test
    assert found["train_images"] == (len(whole.train) if select != "val" else 44)
    rows = read_table(tmp_path / "run" / "metrics.csv")
    steps = [r["step"] for r in rows if any(v for k, v in r.items() if k.startswith("monitor/"))]
    assert steps == {"val": ["0", "5", "10"], "last": [], "test": ["0", "6", "12"]}[select]


def test_only_the_labels_that_were_asked_for_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parts(SOURCE, need_val=False, needs=("label",))
    allowed = fewer_labels(whole.train, "50%", seed=0)
    used: set[str] = set()
    real = Expression.step

    def spied(self: Expression, batch: Any, progress: Any) -> Any:
        used.update(batch.keys)
        return real(self, batch, progress)

    monkeypatch.setattr(Expression, "step", spied)
    found = finetune(tmp_path / "run", labels="50%", select="last", epochs=4)
    assert used == {allowed.key(i) for i in range(len(allowed))}
    assert found["train_images"] == len(allowed) < len(whole.train)


def test_balanced_draws_every_class_equally_often_and_resumes_exactly() -> None:
    source = Synthetic(n=60, size=32)
    share = module._balance(source)
    labels = source.column("label")
    counts = np.bincount(labels)
    assert counts.max() > 2 * counts.min(), "the classes were meant to be uneven"
    order = Order(60, 6, 0, 0, 1, 0, share)
    steps = [indices for _, (_, indices) in zip(range(1000), order, strict=False)]
    drawn = np.bincount(labels[np.concatenate(steps)])
    expected = 6000 / len(counts)
    assert np.abs(drawn - expected).max() < 5 * np.sqrt(expected)
    later = iter(Order(60, 6, 0, 0, 1, 13, share))
    assert all(np.array_equal(next(later)[1], s) for s in steps[13:40])
    view = Supervised(Augment(rotation=20, erasing=0.5), 32)
    first = iter(TrainLoader(source, view, batch_size=6, seed=0, weights=share))
    batches = [next(first) for _ in range(13)]
    again = next(iter(TrainLoader(source, view, batch_size=6, seed=0, weights=share, start_step=12)))
    assert torch.equal(batches[12].views[0], again.views[0])


# ---- numbers that follow --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "world", "batch", "warmup"),
    [(12_000, 1, 256, 230), (300, 1, 75, 20), (100, 1, 25, 20), (100, 2, 24, 20), (12, 1, 8, 5), (5, 1, 5, 5)],
)
def test_defaults_shrink_with_the_training_part(images: int, world: int, batch: int, warmup: int) -> None:
    """Never what was asked for, and every change is told."""
    config = parse.parse(["none", SOURCE, "--epochs", "25"], command=FINETUNE)
    found, notes = adapt_defaults(config, images, world)
    plan = derive(found, images)
    assert (plan.batch_size, plan.warmup_steps) == (batch, warmup)
    assert plan.total_steps == 25 * (images // batch)
    assert len(notes) == (batch < 256) + (warmup == plan.total_steps // 5 < 5 * (images // batch))
    again = parse.from_dict({**found.to_dict(), "resume": True}, FINETUNE)
    assert adapt_defaults(again, images, world) == (again, []), "a resumed run has the same numbers"


@pytest.mark.parametrize(
    ("images", "ranks", "batch"), [(None, 1, 64), (64, 1, 64), (60, 1, 60), (61, 2, 60), (11, 4, 8), (1, 1, 1)]
)
def test_batch_of_a_recipe_shrinks_to_the_source(images: int | None, ranks: int, batch: int) -> None:
    words = ["faces/", "--config", "fra/regions"]
    found, note = fitting_batch(parse.parse(words), images, ranks, "cpu")
    assert (found, bool(note)) == (batch, batch < 64)
    if note:
        assert note.startswith(f"batch size {batch} instead of the recipe's 64, as there are {images} images to train")
        assert note.endswith("; optim.lr stays 0.002)")
    assert fitting_batch(parse.parse([*words, "--batch-size", "64"]), images, ranks, "cpu") == (64, "")


def test_what_was_asked_for_is_kept_or_refused() -> None:
    words = ["none", SOURCE, "--epochs", "6", "--batch-size", "90", "--optim.warmup-epochs", "5"]
    config = parse.parse(words, command=FINETUNE)
    assert adapt_defaults(config, 100) == (config, [])
    with pytest.raises(ConfigError, match="90 is larger"):
        derive(adapt_defaults(config, 80)[0], 80)
    short = parse.from_dict({"epochs": 4, "optim": {"warmup_epochs": 5}}, FINETUNE)
    with pytest.raises(ConfigError, match=r"warmup_epochs = 5 is 10 steps, but the run has 8"):
        derive(adapt_defaults(short, 19)[0], 19)


@pytest.mark.parametrize(
    ("words", "own", "says"),
    [
        ([], None, "the protocol's"),
        ([], 224, "the protocol's"),
        ([], 96, "trained at 96 px, and --image-size 96 keeps"),
        (["--image-size", "64"], 96, "asked for"),
        (["--image-size", "null"], 96, "the backbone's own"),
    ],
)
def test_the_size_is_told_with_its_reason(words: list[str], own: int | None, says: str) -> None:
    config = parse.parse(["none", SOURCE, *words], command=FINETUNE)
    assert says in size_reason(config, own)


def test_help_shows_the_values_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    for words, size, epochs in (([], 224, 100), (["--task", "alignment"], 448, 150), (["--protocol=eac"], 224, 60)):
        assert main(["finetune", *words, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert re.search(rf"--image-size.{{0,200}}default: {size}\)", text)
        assert re.search(rf"--epochs EPOCHS.{{0,80}}default: {epochs}\)", text)
        assert "depend on the task" in text


def test_a_cpu_is_told_of_cheaper_settings_for_small_views() -> None:
    task: Any = Alignment(Backbone("test_resnet", image_size=64), Labels(points=68, layout="ibug68"))
    said = cheaper_hint(task, "cpu")
    assert "--task.width 64 --task.heatmap-size 16" in said
    assert cheaper_hint(task, "cuda") is None
    small: Any = Alignment(Backbone("test_resnet", image_size=64), task.labels, width=64, heatmap_size=16)
    assert cheaper_hint(small, "cpu") is None


# ---- which weights ---------------------------------------------------------------------------------------------


NAN = float("nan")


@pytest.mark.parametrize(
    ("better", "scores", "best"),  # scores: before training, after epochs 1 to 3; a NaN is never the best
    [
        ("higher", [9.0, 0.2, 0.6, 0.4], 10),
        ("lower", [-9.0, 0.2, 0.6, 0.4], 5),
        ("higher", [NAN, NAN, 0.3, 0.2], 10),
        ("higher", [NAN, NAN, NAN, NAN], 15),
    ],
)
def test_the_best_measurement_after_the_first_step_is_kept(
    better: str,
    scores: list[float],
    best: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values, scored = iter(scores), module.find_mistakes
    seen: list[dict[str, torch.Tensor]] = []

    def rigged(task: Any, *_: Any, **options: Any) -> tuple[dict[str, Any], None]:
        seen.append({k: v.clone() for k, v in task.state_dict().items()})
        value = next(values)
        return {"headline": {"name": "rigged", "value": value, "interval": [value, value], "better": better}}, None

    def tested(trained: Any, *args: Any, **options: Any) -> Any:
        seen.append({k: v.clone() for k, v in trained.module.state_dict().items()})
        return scored(trained, *args, **options)

    monkeypatch.setattr(score, "score", rigged)
    monkeypatch.setattr(module, "find_mistakes", tested)
    found = finetune(tmp_path / "run", ema=0.5)
    assert found["selected"]["step"] == best
    assert found["selected"].get("value", NAN) == pytest.approx(scores[best // 5], nan_ok=True)
    assert found["selected"]["by"] == ("last" if best == 15 else "val")
    not_a_number = "step 5: rigged of the val part is not a number" in capsys.readouterr().err
    assert not_a_number == (scores[1] is NAN)
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert_same(kept, seen[best // 5])
    assert_same(seen[-1], kept)  # what was tested is what is kept
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["steps"] == best


def test_kept_task_and_backbone_can_be_used(tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = finetune(run, ema=0.9)
    trained = trained_task.load_trained(run)
    data = parts(SOURCE, needs=("label",))
    again, _ = score.score(trained.task, data.test, trained.augment, image_size=trained.image_size)
    assert json.loads(json.dumps(again)) == found["test"]
    backbone = load.load_backbone(run)
    own = {k.removeprefix("backbone.model."): v for k, v in load_file(run / "model.safetensors").items()}
    assert_same(dict(backbone.model.state_dict()), {k: own[k] for k in backbone.model.state_dict()})
    further = finetune(tmp_path / "further", run=str(run), task="attributes", image_size=40, max_steps=1)
    assert further["run"] == run.name, "no path of this machine in results that are passed on"
    assert yaml.safe_load((tmp_path / "further" / "config.yaml").read_text())["backbone"]["name"] == "test_resnet"


def test_what_is_no_trained_task_is_said_in_one_sentence(tmp_path: Path) -> None:
    exported = tmp_path / "backbone.safetensors"
    net = Backbone("test_resnet", image_size=32)
    checkpoint.write_backbone(exported, net.model.state_dict(), {"format": "facessl-backbone-1"})
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    for path, says in (
        (exported, "backbone"),
        (tmp_path / "text.safetensors", "damaged"),
        (tmp_path / "unfinished", "has ended"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        with pytest.raises(CheckpointError, match=says) as error:
            trained_task.load_trained(path)
        assert "\n" not in str(error.value)


def test_a_frozen_backbone_does_not_change_by_a_bit(tmp_path: Path) -> None:
    finetune(tmp_path / "run", frozen=True, ema=0.9, optim={"warmup_epochs": 0, "lr": 0.1, "weight_decay": 0.5})
    torch.manual_seed(0)
    fresh = Backbone("test_resnet", image_size=32).model.state_dict()
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert_same({k: kept[f"backbone.model.{k}"] for k in fresh}, dict(fresh))
    assert float(kept["head.bias"].abs().max()) > 1e-3, "the head was meant to learn"
    assert results(tmp_path / "run")["protocol"] == "linear (frozen)"


@pytest.mark.parametrize("ramp", [True, False])
def test_average_of_the_weights_against_a_loop(ramp: bool) -> None:
    torch.manual_seed(0)
    labels = Labels.of(Synthetic(n=4, size=32), Expression.needs)
    model = TaskWithEma(Expression(Backbone("test_resnet", image_size=32), labels), ema=0.6, ramp=ramp)
    twin = {n: p.detach().clone() for n, p in model.task.state_dict().items() if p.is_floating_point()}
    assert any("running_var" in name for name in twin)
    for step in range(6):
        with torch.no_grad():
            for tensor in (*model.task.parameters(), *model.task.buffers()):
                tensor.copy_(tensor + 1) if not tensor.is_floating_point() else tensor.add_(torch.randn_like(tensor))
        model.after_step(Progress(step=step, total_steps=6))
        momentum = min(0.6, (1 + step) / (10 + step)) if ramp else 0.6
        for name, value in model.task.state_dict().items():
            if name in twin:
                twin[name] = momentum * twin[name] + (1 - momentum) * value
    for name, value in model.average.state_dict().items():
        if name in twin:
            torch.testing.assert_close(value, twin[name])
        else:
            assert torch.equal(value, model.task.state_dict()[name])  # counters
    assert not any(p.requires_grad for p in model.average.parameters())
    assert model.eval_task is model.average
    model.train()
    assert not model.average.training


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", None)])
def test_precision_reaches_the_step_and_the_scores(
    precision: str, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: dict[str, set[Any]] = {"step": set(), "predict": set()}
    for name, seen in kinds.items():
        real = getattr(Expression, name)

        def spied(self: Expression, *values: Any, real: Any = real, seen: set[Any] = seen) -> Any:
            seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return real(self, *values)

        monkeypatch.setattr(Expression, name, spied)
    finetune(tmp_path / "run", precision=precision, max_steps=1)
    assert kinds == {"step": {dtype}, "predict": {dtype}}


@pytest.mark.fault(
    "E15", "masks of one class ended in a traceback, or wrote NaN into results.json, which is then not JSON"
)
def test_scores_of_masks_of_one_class_are_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8))
    found = parsing_scores(matrix, names=("background", "face"))
    head = headline("mean_f1", found["mean_f1"], found["mean_f1_interval"])
    scores, scored = {"headline": head, **found}, module.find_mistakes
    monkeypatch.setattr(score, "score", lambda *_, **__: (scores, None))
    monkeypatch.setattr(
        module, "find_mistakes", lambda *args, **options: replace(scored(*args, **options), scores=scores)
    )
    finetune(tmp_path / "run", max_steps=1, select="val")
    write_report(tmp_path / "run")
    test = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=pytest.fail)["test"]
    assert (test["mean_f1"], test["headline"]["interval"], test["mean_iou"]) == (None, [None, None], 1.0)
