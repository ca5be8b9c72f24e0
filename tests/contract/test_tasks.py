"""What every task of `facessl list tasks` must do under each of its protocols; a new file in tasks/ is tested too."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facessl.config import parse
from facessl.config.commands import FINETUNE
from facessl.config.run import flatten, to_plain
from facessl.core import checkpoint, plugins
from facessl.core.types import FIELDS, Batch, Progress, Step
from facessl.data.face_square import Frame, whole
from facessl.data.loader import EvalLoader, TrainLoader
from facessl.evaluation import score
from facessl.inference import trained_task
from facessl.models.backbone import Backbone
from facessl.models.forward import autocast
from facessl.tasks.base import Labels, Task
from facessl.training.optimizers import build_finetune_optimizer
from facessl.views.photometric import Photometric
from facessl.views.supervised import Supervised
from tests.helpers import CpuGenerator, lacking, on_one_device
from tests.tasks.faces import Faces

TASKS = plugins.names("tasks")
EVERY = [(task, protocol) for task in TASKS for protocol in plugins.find("tasks", task).defaults]
NETS = ["test_resnet", "test_vit"]  # of timm: 0.4 million weights each
SIZE = 64
SOURCE = Faces(n=12, size=48, identities=4)


def config(task: str, protocol: str, *words: str) -> Any:
    return parse.parse(["none", "--task", task, "--protocol", protocol, *words], command=FINETUNE)


def arguments(task: str, protocol: str) -> dict[str, Any]:
    """The protocol's values with a small head."""
    values = dict(config(task, protocol).task)
    small = {"width": 16, "heatmap_size": None}
    return values | {k: v for k, v in small.items() if k in values}


def build(task: str, protocol: str, net: str = NETS[0]) -> Any:
    kind = plugins.find("tasks", task)
    values = {k: v for k, v in arguments(task, protocol).items() if k != "name"}
    torch.manual_seed(0)
    return kind(Backbone(net, image_size=SIZE), Labels.of(SOURCE, kind.needs), **values)


def training_batch(task: Any, protocol: str) -> Batch:
    labels = Labels.of(SOURCE, task.needs)
    view = Supervised(
        type(task).augments[protocol], SIZE, layout=labels.order, mask_flip=labels.mask_flip, needs=task.needs
    )
    batch = next(iter(TrainLoader(SOURCE, view, batch_size=4, seed=0)))
    return Photometric(task.backbone.mean, task.backbone.std)(batch)


def predictions(task: Any, precision: str = "fp32") -> dict[str, torch.Tensor]:
    x = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), autocast(torch.device("cpu"), precision):
        found: dict[str, torch.Tensor] = task.eval().predict(x)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_declares_itself(task: str) -> None:
    kind = plugins.find("tasks", task)
    assert kind.Args.__dataclass_params__.frozen
    assert kind.needs <= FIELDS
    assert kind.defaults.keys() == kind.augments.keys()
    assert not lacking(build(task, next(iter(kind.defaults))), Task)
    undocumented = [f.name for f in dataclasses.fields(kind.Args) if f.name not in (kind.Args.__doc__ or "")]
    assert not undocumented


@pytest.mark.parametrize(("task", "protocol"), EVERY)
def test_published_settings_arrive_and_a_flag_beats_them(task: str, protocol: str) -> None:
    published = flatten(plugins.find("tasks", task).defaults[protocol])
    found = flatten(config(task, protocol).to_dict())
    assert {k: found[k] for k in published} == to_plain(published)
    assert config(task, protocol, "--epochs", "3", "--optim.lr", "0.5").optim.lr == 0.5
    assert config(task, protocol, "--epochs", "3").epochs == 3


@pytest.mark.parametrize(("net", "precision"), [(NETS[0], "fp32"), (NETS[0], "bf16"), (NETS[1], "fp32")])
@pytest.mark.parametrize(("task", "protocol"), EVERY)
def test_two_steps_are_finite_and_move_every_part(task: str, protocol: str, net: str, precision: str) -> None:
    module = build(task, protocol, net).train()
    batch = training_batch(module, protocol)
    optimizer = build_finetune_optimizer(module, config(task, protocol).optim)
    for step in range(2):
        optimizer.zero_grad()
        with autocast(torch.device("cpu"), precision):
            result = module.step(batch, Progress(step=step, total_steps=2))
        assert isinstance(result, Step)
        assert result.loss.ndim == 0
        assert result.loss.dtype == torch.float32
        assert torch.isfinite(torch.stack([result.loss, *result.logs.values()])).all(), result
        assert result.logs
        assert not any(v.requires_grad for v in result.logs.values())
        result.loss.backward()
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        without = [n for n, p in trained.items() if p.grad is None]
        assert not without, f"DDP would wait for them: {without[:5]}"
        for part, _ in module.named_children():
            own = [p.grad for n, p in trained.items() if n.startswith(part + ".") and p.grad is not None]
            assert all(torch.isfinite(g).all() for g in own), part
            assert sum(float(g.abs().sum()) for g in own) > 0, f"nothing reaches {part}"
        optimizer.step()


@pytest.mark.parametrize(("task", "protocol"), EVERY)
def test_steps_and_predictions_stay_on_their_device(task: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors: what fails here fails on a GPU, or leaves it idle while the host waits."""
    monkeypatch.setattr(torch, "Generator", CpuGenerator)
    module = build(task, protocol).train()
    batch = training_batch(module, protocol).to("meta")
    module.to("meta")
    optimizer = build_finetune_optimizer(module, config(task, protocol).optim)

    def step(number: int) -> None:
        module.train().step(batch, Progress(number, 10)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        module.eval().predict(batch.views[0])

    step(0)  # constants are made in the first
    with on_one_device():
        step(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("task", "protocol"), EVERY)
def test_predictions_have_their_shape_and_range(task: str, protocol: str, precision: str) -> None:
    module = build(task, protocol)
    labels = Labels.of(SOURCE, module.needs)
    shapes = {
        "probabilities": (len(labels.label_names) or len(labels.attribute_names),),
        "landmarks": (68, 2),
        "scores": (len(labels.mask_names), SIZE // 4, SIZE // 4),
    }
    found = predictions(module, precision)
    for name, values in found.items():
        assert len(values) == 3
        assert values.dtype == torch.float32, f"{name} is rounded"
        assert torch.isfinite(values).all()
        assert tuple(values.shape[1:]) == shapes.get(name, tuple(values.shape[1:]))
        low, high = {"probabilities": (0, 1), "landmarks": (-0.5, SIZE - 0.5)}.get(name, (-torch.inf, torch.inf))
        assert low <= float(values.min())
        assert float(values.max()) <= high


@pytest.mark.parametrize(("task", "protocol"), EVERY)
def test_description_is_json_in_the_pixels_of_the_image(task: str, protocol: str) -> None:
    module = build(task, protocol)
    found = {k: v.numpy() for k, v in predictions(module).items()}
    told = module.describe(found, 1, whole(96, 32, SIZE), 32, 96)
    arrays = {k: v for k, v in told.items() if isinstance(v, np.ndarray)}
    json.dumps({k: v for k, v in told.items() if k not in arrays}, allow_nan=False)
    assert all(a.shape == (32, 96) and a.dtype == np.uint8 for a in arrays.values())
    if "landmarks" in told:
        expected = (found["landmarks"][1] + 0.5) * (96 / SIZE, 32 / SIZE) - 0.5
        np.testing.assert_allclose(told["landmarks"], expected, atol=0.006)


@pytest.mark.parametrize(("task", "protocol"), EVERY)
def test_scores_on_a_source_with_subsets_groups_and_pairs(task: str, protocol: str) -> None:
    module = build(task, protocol).train()
    source = Faces(n=12, size=48, identities=4, group="glasses")
    crop = type(module).augments[protocol]
    found, _ = score.score(module, source, crop, image_size=SIZE, batch_size=5)
    assert module.training
    json.dumps(found)
    low, high = found["headline"]["interval"]
    assert low <= found["headline"]["value"] <= high
    assert found["headline"]["value"] == found[found["headline"]["name"]]
    assert found["headline"]["better"] in ("higher", "lower")
    assert found["skipped"] == 0
    if task != "verification":  # pairs have no group
        assert found["subsets"]["first"]["images"] == 5
        (groups,) = found["groups"].values()
        assert {row["name"] for row in groups["groups"]} == {"glasses", "not glasses"}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("task", "protocol"), EVERY)
def test_a_written_task_predicts_the_same_bits(task: str, protocol: str, net: str, tmp_path: Path) -> None:
    module = build(task, protocol, net).train()
    module.step(training_batch(module, protocol), Progress(step=0, total_steps=1))  # moves the batch-norm statistics
    settings = {"task": to_plain(arguments(task, protocol)), "protocol": protocol, "image_size": SIZE}
    settings |= {"run": "none", "source": "synthetic:"}
    augment = type(module).augments[protocol]
    info = trained_task.card(module, Labels.of(SOURCE, module.needs), settings, augment, steps=1, commit="")
    checkpoint.write_backbone(tmp_path / "model.safetensors", module.state_dict(), info)
    loaded = trained_task.load_trained(tmp_path)
    assert loaded.augment == augment
    assert loaded.image_size == SIZE
    before, after = predictions(module), predictions(loaded.task)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    sample = SOURCE[0]
    frame: Frame = loaded.augment.frame(sample, sample.image.shape, loaded.image_size)
    view = Supervised(augment, SIZE, train=False)
    x = next(iter(EvalLoader(SOURCE, view, batch_size=1))).views[0]
    wanted = module.eval().predict(Photometric(module.backbone.mean, module.backbone.std)(_alone(x)).views[0])
    for name, values in loaded.predict([sample.image], [frame]).items():
        np.testing.assert_array_equal(values, wanted[name].detach().numpy())


def _alone(view: torch.Tensor) -> Batch:
    return Batch(views=[view], params=[], index=torch.arange(len(view)))
