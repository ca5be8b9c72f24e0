"""Bad input through the command line: one sentence that names the value, exit status 2, nothing lost, no traceback."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from facessl.cli import main
from facessl.config.parse import parse
from facessl.core import checkpoint, environment
from facessl.core.errors import ConfigError, DataWarning
from facessl.data.source import open_source
from facessl.training import pretrain
from facessl.training.derived import derive
from facessl.training.trainer import Trainer
from tests.helpers import TINY, read_table, refused, weights

REST = TINY[1:]
#: A fine-tuning run that is refused before it, or in its first step.
TUNED = ["--backbone", "test_resnet", "--image-size", "32", "--max-steps", "1", "--workers", "0", "--device", "cpu"]

UNWRITABLE = pytest.mark.fault(
    "B9",
    "`probe`, `convert`, `report` and `embed` worked first, and then advised to free space and to resume",
    now="Told before any work",
)
RANGE = pytest.mark.fault("E15", "a traceback, or advice on a loss that is not finite", now="One sentence")


def photo(path: Path, side: int = 48, value: int = 0, **options: object) -> None:
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(path, **options)  # type: ignore[arg-type]


def photos(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        photo(folder / f"{i:02d}.jpg", value=i)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["pretrain", *TINY, "--max-steps", "2", "--out", str(run)]) == 0
    return run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrain", "no/such/folder"], "no/such/folder"),
        (["pretrain", "foldr:x"], "folder"),
        (["pretrain", "synthetic:?sise=64"], "size"),
        (["pretrain", "synthetic:?n=many"], "many"),
        (["pretrain", "--method", "frra"], "fra"),
        (["pretrain", "--backbone", "resnet5o"], "resnet50"),
        (["pretrain", "--method.num-regionz", "4"], "--method.num-regions"),
        (["pretrain", "--optim.lr", "fast"], "fast"),
        (["pretrain", "--batch-size", "0"], "batch_size"),
        (["pretrain", "--config", "fra/vggface"], "fra/vggface2-r50"),
        (["pretrain", "--precision", "fp8"], "fp8"),
        (["pretrain", "--views.scale", "0.08"], "--views '[{"),
        (["pretrain", "--optim.momentum", "5"], "momentum"),
        (["pretrain", "--method.mask-embeddings", "foo"], "'image', 'batch'"),
        (["pretrain", *TINY, "--precision", "fp16"], "fp16"),
        (["pretrain", *TINY, "--batch-size", "64"], "64"),
        (["pretrain", *TINY, "--resume"], "--out"),
        (["pretrain", *TINY, "--resume", "--out", "nothing-here"], "nothing-here"),
        (["pretrain", *TINY, "--method", "fra", "--method.use-global", "false", "--method.use-local", "false",
          "--method.use-relation", "false"], "use_"),
        (["embed", "no-run", "synthetic:?n=4"], "no-run"),
        (["embed", "no-run"], "source"),
        (["embed", f"{__file__}y", "synthetic:?n=4"], f"does not exist: did you mean {__file__}?"),
        (["probe", "no-run", "synthetic:?n=4", "--protocol", "kmn"], "knn"),
        (["probe", "no-run", "synthetic:?n=4", "--protocol", "linear", "--k", "3"], "--k belongs to knn"),
        (["probe", "no-run", "synthetic:?n=4", "--kk", "3"], "'--k'"),
        (["pretrain", "--mean", "0.5"], "a list of 3, such as '[0.1, 0.1, 0.1]' or null"),
        (["pretrain", *TINY, "--optim.warmup-epochs", "9"], "optim.warmup-epochs 0.4 or less"),
        (["pretrain", "--method", "mae", "--backbone", "vit_tiny_patch16_224", "--image-size", "70"], "64 or 80"),
        (["pretrain", *TINY, "--backbone", "vit_tiny_patch16_224", "--image-size", "70"], "64 or 80"),
        (["pretrain", *TINY, "--out", "/proc/run"], "--out /proc/run cannot be made"),
        (["pretrain", *TINY, "--out", f"{__file__}/run"], "test_bad_input.py is a file"),
        (["pretrain", "labels-csv:x.csv?labl=mood"], "option of the source labels-csv 'labl': did you mean 'label'"),
        (["probe", "no-run", "synthetic:?n=4"], "no-run does not exist: name a run folder"),
        (["probe", "none", "synthetic:?n=4"], "--baseline evaluates random weights beside it"),
        (["report", "no-run"], "no-run does not exist: name a folder that"),
        (["predict", "no-run", "x.jpg"], "no-run does not exist: name a run folder of `facessl finetune`"),
        *(pytest.param([*words, "--out", f"{__file__}/x.{end}"], "test_bad_input.py is a file", marks=UNWRITABLE)
          for words, end in ((["probe", "no-run", "x"], "json"), (["convert", "no-run"], "safetensors"),
                             (["report", "no-run"], "html"), (["embed", "no-run", "x"], "parquet"))),
        *(pytest.param(["pretrain", *TINY, *words], says, marks=RANGE) for words, says in (
            (["--seed", "4294967296"], "seed = 4294967296 is out of range: give a number from 0 to 4294967295"),
            (["--image-size", "1000000000"], "image_size = 1000000000 is out of range"),
            (["--std", "[0,0,0]"], "std = [0.0, 0.0, 0.0] is out of range"),
            (["--config", "null.yaml"], "epochs = null is not valid"),
            (["--method", "simclr", "--views", "[{}]"], "method simclr takes 2 views, but --views has 1: leave"),
            (["--method", "swav", "--views", "[{}]"], "method swav takes 2 views or more, but --views has 1: leave"))),
        (["pretrain", *TINY, "--optim.lr", "None"], "optim.lr = 'None' is not valid: give a number"),
        (["embed", "no-run", "x", "--batch-size", "none"], "batch_size = 'none' is not valid: give a whole number"),
        (["probe", "no-run", "x", "--precision", "half"], "give one of 'fp32', 'bf16', 'fp16'"),
        (["finetune", "none", "x", "--task.smoothing", "1"], "task.smoothing is 1.0: give 0 or more and less than 1"),
        (["finetune", "none", "x", "--task.consistency=-1"], "task.consistency is -1.0: give 0 or more"),
        (["list", "methodes"], "methods"),
        (["pretrain", "a.jpg", "b.jpg"], "b.jpg is one word too many: give photos as one folder"),
        (["crop", "a.jpg", "b.jpg", "--out", "faces"], "b.jpg is one word too many: give photos as one folder"),
        (["check", "zipped:faces.zip"], "zipped:faces.zip is one word too many: facessl check takes only flags"),
        (["list", "tasks", "a", "b"], "b is one word too many: facessl list takes WHAT and FILTER"),
        (["crop", "photos", "-o", "faces"], "-o is not a flag: flags begin with two dashes"),
        (["pretrian"], "pretrain"),
    ],
)  # fmt: skip
def test_wrong_words(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("null.yaml").write_text("epochs: null\n")
    assert says in refused(capsys, *words)
    assert not list(tmp_path.rglob("*.ckpt"))


def table(folder: Path, rows: list[str]) -> Path:
    """A table with a row per photo of `folder`; a row may also name a photo that is not there."""
    photos(folder)
    (folder / "mine.csv").write_text("\n".join(["image,mood", *rows]) + "\n")
    return folder / "mine.csv"


@pytest.mark.parametrize(
    ("moods", "query", "more", "says"),
    [
        ("0 1 2 99 0 1 2 0", "?label=mood", [], "line 5: mood is 99"),
        ("0 1 2 3 0 1 2 0", "?label=mood&classes=3", [], "line 5: the mood is '3'"),
        ("joy sad hapy joy sad joy", "?label=mood&classes=2", [], "has 3 classes"),
        ("0 1 0 1 0 1 0 1", "", ["--labels", "2-per-class"], "labels-csv:FILE?label=COLUMN"),
        ("0 1 0 1 0 1 0 1", "?label=mood", ["--batch-size", "1"], "--batch-size 2"),
    ],
    ids=["not a class", "outside the classes", "a slip", "no column named", "a batch of one"],
)
def test_what_a_table_of_classes_cannot_be_used_for(
    moods: str, query: str, more: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = table(tmp_path / "p", [f"{i:02d}.jpg,{mood}" for i, mood in enumerate(moods.split())])
    source = f"labels-csv:{file}{query}" if query else str(file)
    assert says in refused(capsys, "finetune", "none", source, *TUNED, *more, "--out", str(tmp_path / "run"))


def test_a_test_part_without_a_readable_image_is_told_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, gone = (
        table(tmp_path / "p", [f"{i:02d}.jpg,{i % 2}" for i in range(8)]),
        table(tmp_path / "q", ["00.jpg,1", "zzz.jpg,0"]),
    )
    (tmp_path / "q" / "00.jpg").write_text("this is not a picture")
    words = [f"labels-csv:{file}?label=mood", "--test", f"labels-csv:{gone}?label=mood", *TUNED]
    said = refused(capsys, "finetune", "none", *words, "--out", str(tmp_path / "run"))
    assert "test part" in said
    assert "00.jpg" in said
    assert not (tmp_path / "run").exists()


def test_a_landmark_far_from_its_face_is_told_with_its_line(tmp_path: Path) -> None:
    photos(tmp_path, 3)
    head = "image," + ",".join(f"x{i},y{i}" for i in range(5))
    rows = [f"{i:02d}.jpg,10,10,30,10,20,20,12,30,{'28,3000' if i == 1 else '28,30'}" for i in range(3)]
    (tmp_path / "marks.csv").write_text("\n".join([head, *rows]))
    with pytest.warns(DataWarning, match="line 3: y4 is 3000") as told:
        open_source(f"landmarks-csv:{tmp_path / 'marks.csv'}")
    assert len(told) == 1


def test_the_warm_up_of_a_recipe_gives_way_to_a_short_run() -> None:
    words = ["--config", "mcf/smoke", "--max-steps", "5", "--batch-size", "64"]
    assert derive(parse(words), 1024).warmup_steps == 1
    asked = parse([*words, "--optim.warmup-epochs", "1"])
    with pytest.raises(ConfigError, match="16 steps, but the run has 5"):
        derive(asked, 1024)


def test_an_untrained_network_has_not_collapsed(capsys: pytest.CaptureFixture[str]) -> None:
    for step in (0, 5):
        pretrain._report_verdicts(step, {"embedding_std": 0.05})
    assert capsys.readouterr().err.startswith("step 5: the embeddings have collapsed")


def test_empty_and_unreadable_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty, text = tmp_path / "empty", tmp_path / "text"
    empty.mkdir()
    text.mkdir()
    assert str(empty) in refused(capsys, "pretrain", str(empty), *REST, "--out", str(tmp_path / "r1"))
    for i in range(10):
        (text / f"{i}.jpg").write_text("this is not a picture")
    assert "read" in refused(capsys, "pretrain", str(text), *REST, "--out", str(tmp_path / "r2"))


def test_awkward_images_are_used_or_skipped_and_listed(tmp_path: Path) -> None:
    folder, run = photos(tmp_path / "photos"), tmp_path / "run"
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(folder / "rotated.jpg", value=7, exif=exif)
    Image.new("CMYK", (48, 48), (10, 200, 30, 40)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((48, 48), 40000, np.uint16)).save(folder / "16-bit.png")
    frames = [Image.new("RGB", (48, 48), color) for color in ("red", "blue")]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    photo(folder / "bad-truncated.jpg", side=200, value=99)
    (folder / "bad-truncated.jpg").write_bytes((folder / "bad-truncated.jpg").read_bytes()[:400])
    (folder / "bad-empty.jpg").touch()
    (folder / "bad-text.jpg").write_text("this is not a picture")
    photo(folder / "bad-1x1.jpg", side=1)
    Image.new("1", (20000, 20000)).save(folder / "bad-20000x20000.png")
    words = ["pretrain", str(folder), *REST, "--max-steps", "2", "--batch-size", "21", "--max-bad", "0.3"]
    assert main([*words, "--out", str(run)]) == 0
    skipped = {row["key"] for row in read_table(run / "skipped.csv")}
    assert skipped == {str(path) for path in folder.glob("bad-*")}
    page = (run / "report.html").read_text()
    assert all(Path(key).name in page for key in skipped)
    assert "5 images were skipped, 24 % of the source" in page


def test_too_many_unreadable_images_stop_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, run = photos(tmp_path / "photos"), tmp_path / "run"
    for i in range(3):
        (folder / f"bad-{i}.jpg").touch()
    said = refused(capsys, "pretrain", str(folder), *REST, "--out", str(run))
    assert "skipped.csv" in said
    assert "--max-bad" in said
    assert (run / "skipped.csv").is_file()


@pytest.mark.parametrize("kind", ["truncated", "of another method", "hostile", "not ours"])
def test_bad_checkpoint_on_resume(kind: str, capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    last = run / "checkpoints" / "last.ckpt"
    words = ["pretrain", *TINY, "--max-steps", "2", "--out", str(run), "--resume"]
    data = last.read_bytes()
    if kind == "of another method":
        words += ["--method", "byol"]
    else:
        last.unlink()  # a hard link to the step's
    if kind == "truncated":
        last.write_bytes(data[: len(data) // 2])
    elif kind == "hostile":
        torch.save({"format": checkpoint.FORMAT, "step": main}, last)
    elif kind == "not ours":
        torch.save({"state_dict": {}}, last)
    said = refused(capsys, *words)
    assert ("method.name" if kind == "of another method" else "last.ckpt") in said


def test_regions_of_a_method_without_regions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "byol"
    assert main(["pretrain", *TINY, "--method", "byol", "--max-steps", "1", "--out", str(run)]) == 0
    assert "regions" in refused(capsys, "regions", str(run), "synthetic:?n=4", "--out", str(tmp_path / "r.png"))
    assert not (tmp_path / "r.png").exists()


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer._one_step

    def poisoned(self: Trainer, *rest: object) -> None:
        if self.step == 3:
            with torch.no_grad():
                next(self.method.local_predictor.parameters()).fill_(torch.nan)  # type: ignore[attr-defined]
        real(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_one_step", poisoned)
    run = tmp_path / "run"
    said = refused(capsys, "pretrain", *TINY, "--out", str(run))
    assert "local_consistency" in said
    assert "step 4" in said
    kept = weights(run)
    assert kept["step"] == 2
    assert all(torch.isfinite(v).all() for v in kept.values() if isinstance(v, torch.Tensor))


def test_wrong_flags_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    """Torch takes seconds."""
    words = [
        ["finetune", "--nonsense"],
        ["finetune", "--task", "parsing", "--task.widht=3"],
        ["pretrain", "--nonsense"],
        ["probe", "a", "b", "--nonsense"],
        ["predict", "a", "b", "--nonsense"],
    ]
    script = f"from facessl.cli import main; import sys; assert [main(w) for w in {words}] == [2] * {len(words)};"
    script += "main(['pretrain', '--method', 'swav', '--help']);"
    found = subprocess.run([sys.executable, "-c", script + "sys.exit('torch' in sys.modules)"], cwd=tmp_path)
    assert found.returncode == 0


@pytest.mark.fault("A9", "pictures of the run became training images")
def test_a_run_inside_its_images_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos(tmp_path / "photos"))
    assert "cannot lie inside the images" in refused(capsys, "pretrain", ".", *REST)
    assert not list(Path().rglob("*.yaml"))


def test_crops_are_not_written_over_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "faces").write_text("precious")
    assert "is a file" in refused(capsys, "crop", str(photos(tmp_path / "p", 1)), "--out", str(tmp_path / "faces"))
    assert (tmp_path / "faces").read_text() == "precious"


def test_a_missing_folder_names_the_one_like_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photos(tmp_path / "photos", 1)
    assert f"did you mean {tmp_path}/photos?" in refused(capsys, "pretrain", str(tmp_path / "phots"))


@pytest.mark.parametrize("command", ["probe", "predict", "plan", "pack", "pretrain"])
def test_help_shows_flags_as_they_are_written(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    told = capsys.readouterr().out
    assert "usage:" in told
    assert not re.search(r"--\w+_\w+|<class|Optional\[|Literal\[|Union\[", told)
    assert "--no-crop\n" in told or command != "predict"


def test_check_prints_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--as-json"]) == 0
    assert {"torch", "timm"} <= json.loads(capsys.readouterr().out)["versions"].keys()


@pytest.mark.fault(
    "C5",
    "`facessl list` alone was an error, and `list recipes` 121 lines without a filter",
    now="`list recipes WORD` filters, and `--show NAME` prints",
)
def test_list_filters_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "recipes" in capsys.readouterr().out
    for what, part in (("methods", "fra"), ("sources", "rafdb"), ("protocols", "knn"), ("recipes", "r50-official")):
        assert main(["list", what, part]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines
        assert all(part in line.split()[0] for line in lines)
    assert main(["list", "--show", "fra/vggface2-r50"]) == 0
    assert capsys.readouterr().out == Path("facessl/recipes/fra/vggface2-r50.yaml").read_text()


@pytest.mark.fault("E8", "a computer without a folder for temporary files ended in a traceback")
def test_what_the_system_refuses_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "check", Mock(side_effect=FileNotFoundError(2, "No usable temporary directory")))
    assert main(["check"]) == 2
    assert capsys.readouterr().err == "facessl: the system refuses: [Errno 2] No usable temporary directory\n"
