"""Exported networks: they compute what torch does, load without facessl, and are complete or absent."""

import errno
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from facessl import export, load_backbone
from facessl.cli import main
from facessl.core import checkpoint, plugins
from facessl.core.errors import CheckpointError, ConfigError, DataError
from facessl.core.lock import only_writer
from facessl.inference import export as exporting
from facessl.inference import trained_task
from facessl.inference.embed import load_embedder
from facessl.inference.trained_task import Embedder, load_trained
from facessl.models.backbone import Backbone
from facessl.pretrained.load import backbone_card
from facessl.tasks.base import Labels
from facessl.views.augment import Augment
from tests.helpers import assert_same

SIZE = 32
LABELS = Labels(
    label_names=("sad", "happy"), attribute_names=("Young", "Male"), points=19, layout="aflw19",
    mask_names=("background", "skin"),
    identities=3,
)  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "alignment": {"head": "star", "width": 16}, "parsing": {"width": 16}, "expression": {}, "attributes": {},
    "verification": {"dim": 8},
}  # fmt: skip


def saved_backbone(folder: Path, name: str = "test_resnet", **options: Any) -> Backbone:
    backbone = Backbone(name, image_size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), **options).eval()
    card = backbone_card(backbone, method={"name": "fra"}, source="folder:faces", steps=7, commit="abc")
    checkpoint.write_backbone(folder / "backbone.safetensors", backbone.model.state_dict(), card)
    return backbone


def saved_task(folder: Path, name: str) -> Any:
    # One block where the task reads the embedding alone: exporting takes seconds, by the number of operations.
    dense = name in ("alignment", "parsing")
    backbone = Backbone("test_resnet", image_size=SIZE) if dense else Backbone("test_vit", image_size=SIZE, depth=1)
    task = plugins.find("tasks", name)(backbone, LABELS, **TASKS[name]).eval()
    settings = {
        **{"task": {"name": name, **TASKS[name]}, "protocol": "finetune"},
        **{"image_size": SIZE, "run": "none", "source": "labels-csv:faces.csv"},
    }
    card = trained_task.card(task, LABELS, settings, Augment(), steps=7, commit="abc")
    checkpoint.write_backbone(folder / "model.safetensors", task.state_dict(), card)
    return task


def run_onnx(folder: Path, x: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": x.numpy()}), strict=True))


#: One of each kind that is exported most: ResNet, ViT, ConvNeXt.
BACKBONES: dict[str, dict[str, Any]] = {
    "test_resnet": {}, "test_vit": {"depth": 2}, "convnext_atto": {"depths": [1] * 4, "dims": [8] * 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def by_onnx(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Backbone, Path]]:
    """A backbone of `BACKBONES` and the folder of its export, made once."""

    @functools.cache
    def made(name: str) -> tuple[Backbone, Path]:
        folder = tmp_path_factory.mktemp(name)
        backbone = saved_backbone(folder / "run", name, **BACKBONES[name])
        export(folder / "run", folder / "out")
        return backbone, folder / "out"

    return made


@pytest.mark.parametrize("name", BACKBONES)
def test_onnx_of_a_backbone_equals_torch(name: str, by_onnx: Callable[[str], tuple[Backbone, Path]]) -> None:
    backbone, out = by_onnx(name)
    x = torch.randn(5, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = dict(zip(("map", "features"), backbone.forward_both(x), strict=True))
    found = run_onnx(out, x)
    assert found.keys() == expected.keys()
    for output, value in expected.items():
        assert torch.allclose(torch.from_numpy(found[output]), value, rtol=1e-4, atol=1e-4)
    card = json.loads((out / "model.json").read_text())
    model = onnx.load(out / "model.onnx")
    assert json.loads(next(p.value for p in model.metadata_props if p.key == "facessl")) == card
    assert card["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert card["outputs"]["features"] == ["batch", backbone.num_features]
    assert str(Path(exporting.__file__).parent).encode() not in model.SerializeToString()


@pytest.mark.parametrize("name", TASKS)
def test_onnx_of_a_task_equals_what_predict_computes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = saved_task(tmp_path / "run", name)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    x = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = task.predict(x)
    found = run_onnx(tmp_path / "out", x)
    assert found.keys() == expected.keys() == told["difference"].keys()
    for output, value in expected.items():
        assert torch.allclose(torch.from_numpy(found[output]), value, rtol=1e-4, atol=1e-4)


#: Runs the code of the model card in each folder, where importing facessl is an error.
WITHOUT_FACESSL = """if True:
    import json, os, pathlib, sys
    import numpy
    class Absent:
        def find_spec(self, name, *_):
            assert name.partition(".")[0] != "facessl", "the card's code imports facessl"
    sys.meta_path.insert(0, Absent())
    import timm, torch
    for folder in sys.argv[1:]:
        os.chdir(folder)
        names = {}
        exec(pathlib.Path("README.md").read_text().partition("```python")[2].partition("```")[0], names)
        image = names["image"] if "image" in names else names["face"]
        if "processor" in names:
            x = names["processor"](image, return_tensors="pt")["pixel_values"]
        elif "transform" in names:
            x = names["transform"](image)[None]
            assert timm.create_model("local-dir:.", pretrained=True, num_classes=7)(x).shape == (1, 7)
        else:
            x = torch.from_numpy(names["x"].transpose(2, 0, 1)[None]).float()
        features = names["features"].detach() if "features" in names else names["outputs"][0]
        numpy.savez("found.npz", x=x, features=features)
    """


def test_the_code_of_a_model_card_gives_the_same_features_without_facessl(
    tmp_path: Path, by_onnx: Callable[[str], tuple[Backbone, Path]]
) -> None:
    resnet = saved_backbone(tmp_path / "run-timm", "test_resnet", output_stride=16)
    vit = saved_backbone(tmp_path / "run-hf", "test_vit", global_pool="avg")
    for format in ("timm", "hf"):
        export(tmp_path / f"run-{format}", tmp_path / format, format=format)
    exported, folder = by_onnx("test_vit")
    folders = {tmp_path / "timm": resnet, tmp_path / "hf": vit, folder: exported}
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    for folder in folders:
        face.save(folder / "face.jpg", quality=100)
    words = [sys.executable, "-I", "-c", WITHOUT_FACESSL, *map(str, folders)]
    subprocess.run(words, check=True, env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    for folder, backbone in folders.items():
        found = np.load(folder / "found.npz")
        seen = backbone.preprocess([folder / "face.jpg"]).numpy()
        assert np.abs(found["x"] - seen).max() <= 1.01 / 255 / min(backbone.std)
        with torch.no_grad():
            assert np.allclose(found["features"], backbone(torch.from_numpy(found["x"])).numpy(), atol=1e-5)


@pytest.mark.fault("C8", "`facessl embed` and `load_backbone` did not read what `facessl export` had written")
@pytest.mark.parametrize("format", ["timm", "hf"])
def test_an_export_stands_for_the_run(format: str, tmp_path: Path) -> None:
    backbone = saved_backbone(tmp_path / "run")
    export(tmp_path / "run" / "backbone.safetensors", tmp_path / "out", format=format)
    for read in (load_backbone, load_embedder):
        for path in (tmp_path / "out", tmp_path / "out" / "model.safetensors"):
            again: Any = read(path)
            assert (again.name, again.mean) == (backbone.name, backbone.mean)
            assert_same(again.model.state_dict(), backbone.model.state_dict())
    assert export(tmp_path / "out", tmp_path / "again", format=format)["difference"]["features"] == 0


@pytest.mark.fault("A12", "a task's file was known by its name alone")
def test_a_task_is_known_by_its_card(tmp_path: Path) -> None:
    saved_task(tmp_path / "run", "verification")
    file = (tmp_path / "run" / "model.safetensors").rename(tmp_path / "best.safetensors")
    assert load_trained(file).name == "verification"
    assert isinstance(load_embedder(file), Embedder)
    with pytest.raises(CheckpointError, match=r"best\.safetensors is a fine-tuned task: name its run folder"):
        load_backbone(file)


def test_a_folder_is_complete_or_absent_and_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_backbone(tmp_path / "run")
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "run"), "--format", "hf", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "TOLERANCE", -1.0)
        assert main(words) == 2
        assert "differs from torch" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert main(words) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(ConfigError, match="not overwritten"):
        export(tmp_path / "run", out, format="timm")
    (out / ".facessl-0123456789abcdef0123.tmp").mkdir()  # of a call that was killed
    (out / "config.json").unlink()
    assert main([*words, "--overwrite"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (out / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        export(tmp_path / "run", out, format="timm", overwrite=True)
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'facessl\[onnx\]'"):
        export(tmp_path / "run", tmp_path / "other")


@pytest.mark.fault("E6", "--overwrite deleted a folder called README.md, and took any folder with files of these names")
@pytest.mark.parametrize("name", ["README.md/thesis.txt", "config.json"])
def test_overwrite_deletes_nothing_of_somebody_else(name: str, tmp_path: Path) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    backbone = Backbone("test_resnet", image_size=32).eval()
    card = backbone_card(backbone, method={"name": "byol"}, source="faces", steps=1, commit="")
    checkpoint.write_backbone(tmp_path / "net.safetensors", backbone.model.state_dict(), card)
    with pytest.raises(ConfigError, match="--overwrite replaces only what `facessl export` wrote"):
        export(tmp_path / "net.safetensors", tmp_path / "out", format="timm", overwrite=True)
    assert file.read_text() == "{}"


@pytest.mark.fault("A1", "the earlier export was removed where the new one could not take its place")
def test_a_failed_overwrite_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, out = saved_backbone(tmp_path / "run"), tmp_path / "out"
    export(tmp_path / "run", out, format="timm")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    backbone.set_normalization(mean=(0.1, 0.1, 0.1), std=backbone.std)
    card = backbone_card(backbone, method={"name": "byol"}, source="folder:faces", steps=8, commit="abc")
    checkpoint.write_backbone(tmp_path / "run" / "backbone.safetensors", backbone.model.state_dict(), card)
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target == out / "config.json" and (out / "model.safetensors").exists():
            monkeypatch.undo()
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*: No space left on device"):
        export(tmp_path / "run", out, format="timm", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    tmp_path.chmod(0o500)  # as of a mounted folder, whose parent is another's
    try:
        with only_writer(out), pytest.raises(ConfigError, match="is being written by process"):
            export(tmp_path / "run", out, format="timm", overwrite=True)
        export(tmp_path / "run", out, format="timm", overwrite=True)
    finally:
        tmp_path.chmod(0o700)
    assert "byol" in (out / "README.md").read_text()


def test_the_model_card_has_scores_and_groups(tmp_path: Path) -> None:
    saved_backbone(tmp_path / "run")
    row = {"name": "over 60", "images": 30, "value": 0.5, "interval": [0.4, 0.6], "counted": True}
    few = {"name": "under 5", "images": 3, "value": 0.9, "interval": [0.1, 1.0], "counted": False}
    test = {
        "headline": {"name": "accuracy", "value": 0.75, "interval": [0.7, 0.8], "unit": "fraction"},
        **{"accuracy": 0.75, "accuracy_interval": [0.7, 0.8], "images": 99},
        "groups": {"accuracy": {"groups": [row, few], "gap": 0.1, "gap_by_chance": None, "note": "left out: under 5"}},
    }
    results = tmp_path / "run" / "results.json"
    results.write_text(json.dumps({"test": test}))
    export(tmp_path / "run", tmp_path / "out", format="timm")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| accuracy | 0.75 | 0.7 to 0.8 | fraction |" in page
    assert "| over 60 | 30 | 0.5 | 0.4 to 0.6 |  |" in page
    assert "| under 5 | 3 | 0.9 | 0.1 to 1 | too few images for the gap |" in page
    assert "\nLeft out: under 5.\n" in page
    assert "folder:faces" in page.partition("## License")[2]
    results.write_text("{}")
    with pytest.raises(CheckpointError, match=r"results\.json was not written by facessl"):
        export(tmp_path / "run", tmp_path / "other", format="timm")


def test_a_network_that_timm_does_not_have_is_refused(tmp_path: Path) -> None:
    name = next(n for n in timm.list_models() if not timm.model_entrypoint(n).__module__.startswith("timm."))
    saved_backbone(tmp_path / "run", name)
    with pytest.raises(ConfigError, match="use --format onnx"):
        export(tmp_path / "run", tmp_path / "out", format="hf")
