"""Code of README and docs works as it is printed; what a task's file lacks is one sentence."""

import importlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import facessl
from facessl.cli import main
from facessl.config.commands import FINETUNE
from facessl.config.parse import parse
from facessl.core import plugins
from facessl.core.errors import CheckpointError, PluginError
from facessl.tasks.base import Task, check_result, headline
from tests.data.layouts_labels import build_rafdb
from tests.data.test_detect import photo
from tests.helpers import environment

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
WORDS = [
    "finetune", "none", "synthetic:?n=40&size=48", "--task", "pose", "--backbone", "test_resnet", "--image-size", "32",
    "--max-steps", "2", "--workers", "0", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for files of plug-ins, which are forgotten afterwards."""
    monkeypatch.setattr(plugins, "_outside", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("toy", "npz", "pose", "head_pose"):
        sys.modules.pop(name, None)
    plugins.find.cache_clear()


def install(name: str, place: Path) -> Path:
    """The page's file of the class `name`."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = [block for block in blocks if re.search(rf"^class {name}\b", block, re.MULTILINE)]
    file = place / f"{name.lower()}.py"
    file.write_text(text)
    return file


@pytest.fixture
def printed(place: Path) -> Path:
    return install("Pose", place)


def test_the_method_and_the_source_of_the_page_train(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(place / "faces.npz", images=np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), np.uint8))
    words = [
        "--plugin", str(install("Npz", place)), f"--plugin={install('Toy', place)}",
        "pretrain", f"npz:{place}/faces.npz", "--method", "toy", "--method.dim", "8", "--backbone", "test_resnet",
        "--image-size", "32", "--batch-size", "4", "--max-steps", "2", "--workers", "2", "--device", "cpu",
        "--monitor.every", "0", "--out", str(place / "run"),
    ]  # fmt: skip
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["finished"] is True
    assert isinstance(facessl.load_method(place / "run"), plugins.find("methods", "toy"))
    assert main(["list", "methods", "toy"]) == 0
    said = "An example. Differences: none, there is no paper. Default: resnet50, lars, lr 0.45 per 256 images."
    assert capsys.readouterr().out == f"toy            {said}\n"
    plugins._outside.clear()
    plugins.find.cache_clear()
    with pytest.raises(CheckpointError, match=r"run cannot be opened: unknown method 'toy'.*--plugin FILE\.py"):
        facessl.load_method(place / "run")
    assert main(["pretrain", "--resume", "--out", str(place / "run")]) == 2
    assert "unknown method 'toy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("toy.py", "import nothing_like_it", "cannot be imported: ModuleNotFoundError: No module named"),
        ("toy.py", "class Joy:\n    pass\n", "defines no method, source or task 'toy'"),
        ("toy.py", "class Toy:\n    pass\n", "defines no method, source or task 'toy'"),
        ("npz.py", "class Npz:\n    image = __len__ = __getitem__ = 1\n",
         "the class Npz has no provides, columns, key, fingerprint: a source inherits facessl.data.source.Source"),
        ("byol.py", "class BYOL:\n    after_step = 1\n", "the name 'byol' is taken by facessl/methods/byol.py: rename"),
        ("time.py", "", "the name 'time' is taken by Python"),
        ("yaml.py", "", f"the name 'yaml' is taken by {yaml.__file__}"),
        ("my-toy.py", "", "whose name is an identifier"),
        ("toy.yaml", "", "is not a Python file"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_plug_in(
    name: str, text: str, says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / name).write_text(text)
    assert main(["--plugin", str(place / name), "list", "methods"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.fault(
    "E4", "a file called --plugin=evil.py, met by `predict run *`, was run; so was a folder named like a plug-in"
)
def test_only_the_file_that_was_typed_is_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, evil = install("Toy", place), "import pathlib; pathlib.Path('ran').touch()"
    (place / "evil.py").write_text(evil)
    assert main(["report", "--plugin=evil.py"]) == main(["report", "--", "--plugin=evil.py"]) == 2
    assert "--plugin stands before the command" in capsys.readouterr().err
    (place / "toy").mkdir()
    (place / "toy" / "__init__.py").write_text(evil)
    assert main(["--plugin", str(good), "list", "methods", "toy"]) == 0
    assert not Path("ran").exists()


def test_a_recipe_names_no_plug_in(printed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe := printed.with_name("mine.yaml")).write_text(f"plugin: {printed}\ntask: pose\n")
    assert main(["finetune", "none", "synthetic:?n=4", "--config", str(recipe)]) == 2
    assert "unknown task 'pose'" in capsys.readouterr().err
    recipe.write_text(f"plugin: {printed}\n")
    assert main(["finetune", "none", "synthetic:?n=4", "--config", str(recipe)]) == 2
    assert "unknown setting 'plugin'" in capsys.readouterr().err
    assert "pose" not in sys.modules


def test_the_task_of_the_page_trains_reports_and_predicts(
    printed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["--plugin", str(printed), *WORDS, "--task.scale", "20", "--out", str(run)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["headline"]["unit"] == "degrees"
    assert told["finished"] is True
    page = (run / "report.html").read_text()
    assert re.search(r"mean error.{0,400}\d degrees", page, re.DOTALL)
    assert main(["predict", str(run), str(Path(__file__).parents[2] / "docs" / "synthetic.png"), "--no-crop",
                 "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    (face,) = json.loads((tmp_path / "out" / "synthetic.json").read_text())["faces"]
    assert {"yaw", "pitch", "roll"} <= face.keys()
    assert isinstance(plugins.find("tasks", "pose"), type)
    assert all(hasattr(plugins.find("tasks", "pose"), name) for name in Task.__annotations__ if name != "backbone")


def test_the_python_of_readme_and_product_guide_runs_and_so_do_the_commands_of_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    facessl.pretrain(
        "synthetic:?n=16&size=40", backbone="test_resnet", image_size=32, batch_size=8, max_steps=2, workers=0,
        device="cpu", monitor={"every": 0}, out="runs/mine",
    )  # fmt: skip
    Path("runs/regions").symlink_to("mine")
    for number in range(24):
        face = Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8))
        place = Path("labeled", "happy" if number % 2 else "sad")
        place.mkdir(parents=True, exist_ok=True)
        face.save(place / f"{number}.jpg")
    for number, name in enumerate(("a.jpg", "b.png")):
        Image.fromarray(photo((60, 30, 200), index=number)[0]).save(name)
    names: dict[str, Any] = {}
    (block,) = _python(root / "README.md")
    exec(block, names)
    assert names["vectors"].shape[0] == names["maps"].shape[0] == 2
    assert names["faces"][0].shape == (256, 256, 3)
    Image.fromarray(names["faces"][0]).save("face.jpg", quality=100, subsampling=0)
    assert torch.allclose(names["regions"].sum(1), torch.ones(()), atol=1e-5)
    assert 0 <= names["scores"]["accuracy"] <= 1
    product = root / "docs" / "guides" / "product.md"
    for line in re.findall(r"^facessl (export runs/mine .*)$", product.read_text(encoding="utf-8"), re.MULTILINE):
        assert main(shlex.split(line)) == 0
    (as_jpegs,) = _python(root / "docs" / "usage.md")
    _, by_onnx, by_timm, _ = _python(product)
    exec(as_jpegs, {})
    assert len(list(tmp_path.glob("0*.jpg"))) == 100
    for block in (by_onnx, by_timm):
        assert "facessl" not in block
        found: dict[str, Any] = {}
        exec(block, found)
        vectors = torch.as_tensor(found["features"] if block is by_onnx else found["vectors"])
        assert torch.nn.functional.cosine_similarity(vectors, names["vectors"][:1]).item() > 0.999
    shutil.copytree("labeled", "faces")
    Image.fromarray(photo((60, 30, 200))[0]).save("photo.jpg")
    words = [shlex.split(line, comments=True) for line in (root / "README.md").read_text(encoding="utf-8").splitlines()
             if re.match("facessl (embed|search|group|map) ", line)]  # fmt: skip
    assert [line[1] for line in words] == ["embed", "search", "group", "map"]
    assert [main(line[1:]) for line in words] == [0] * 4
    assert {"embeddings.parquet", "similar.png", "groups", "map.html"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.fault(
    "C5", "there was no walk-through of a table row", now="docs/guides/reproduce.md has one, which is carried out"
)
def test_a_row_of_a_table_is_reproduced_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a few synthetic faces, with a small network."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "reproduce.md").read_text(encoding="utf-8")
    section = page.split("## One row, end to end")[1].split("\n## ")[0]
    commands = re.findall(r"^facessl (?!plan)(.+)", section, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["list", "list", "pretrain", "finetune", "report"]
    monkeypatch.chdir(tmp_path)
    toy = {"vggface2:/data/VGGFace2": "synthetic:?n=16&size=40", "rafdb:/data/RAF-DB": build_rafdb(tmp_path / "raf")}
    short = [
        "--image-size", "32", "--batch-size", "4", "--max-steps", "2", "--workers", "0", "--device", "cpu",
        "--precision", "fp32", "--backbone", "test_resnet",
    ]  # fmt: skip
    small = [*short, "--method.hidden", "8", "--method.dim", "8", "--monitor.every", "0"]
    flags = {"pretrain": small, "finetune": short}
    for command in commands:
        words = [toy.get(word, word) for word in command.split()]
        assert main([*words, *flags.get(words[0], [])]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "downstream/table2/rafdb-ft-byol " in said
    assert "score:     paper: accuracy 89.53" in said
    assert re.search(r"\| rafdb-byol \| rafdb \| finetune \| accuracy \|.*\| 89.53 \| BYOL \(FRA, Table 2\) \|", said)
    assert "max_steps is 2" in said


def _python(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    ("name", "member"),
    [*itertools.product(["Pose"], ["Args", "needs", "defaults", "augments", "describe", "predict", "step", "meter"]),
     *itertools.product(["Toy"], ["Args", "needs", "views", "step", "after_step"])],
)  # fmt: skip
def test_a_missing_member_is_named(name: str, member: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = install(name, place)
    text = file.read_text()
    file.write_text(re.sub(rf"\b{member}\b(?=:|\()", f"{member}_gone", text))
    assert main(["--plugin", str(file), "list"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"the class {name} has no {member}:" in said
    assert str(file) in said
    file.write_text(text)
    plugins.add(file)


def test_a_name_may_be_typed_with_dashes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / "head_pose.py"
    file.write_text(install("Pose", place).read_text().replace("class Pose(", "class HeadPose("))
    plugins.add(file)
    for name in ("head-pose", "head_pose"):
        assert parse(["none", "synthetic:", "--task", name], FINETUNE).task["name"] == "head_pose"
    assert main(["list", "tasks", "head"]) == 0
    assert capsys.readouterr().out.startswith("head-pose ")


def test_the_files_of_the_page_pass_the_contract_tests(place: Path) -> None:
    np.savez(place / "faces.npz", images=np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8))
    words = [f"--plugin={install(name, place)}" for name in ("Toy", "Npz", "Pose")]
    words += [f"--source=npz:{place}/faces.npz", "-k", "toy or npz or pose"]
    files = [
        str(PAGE.parents[1] / "tests" / "contract" / f"test_{kind}.py") for kind in ("methods", "sources", "tasks")
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *words],
        capture_output=True, text=True, cwd=PAGE.parents[1], env=environment(),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"headline": None}, "no headline"),
        ({"headline": {"name": "error", "value": 1.0}}, "interval"),
        ({"error": None}, "under that name"),
        ({"images": None}, "number of images"),
        ({"headline": headline("error", 1.0, (0.0, 2.0), better="lowest")}, "lowest"),  # type: ignore[arg-type]
    ],
)
def test_missing_scores_are_named(change: dict[str, Any], says: str) -> None:
    whole = {"headline": headline("error", 1.0, (0.0, 2.0)), "error": 1.0, "images": 3}
    check_result(whole, object())
    with pytest.raises(PluginError, match=says):
        check_result({k: v for k, v in (whole | change).items() if v is not None}, object())


def test_decimals_of_a_guide_are_compared_and_times_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    difference = importlib.import_module("check").difference
    shown = "accuracy 81.20 % (80.10 to 82.30 %) ... 3.5 s, error 9.0e-07"
    assert difference(shown, "accuracy 80.95 % (79.90 to 82.30 %) on 40, 12.25 s, error 1.1e-06") is None
    assert difference(shown, shown.replace("81.20", "3.10")) == shown
