"""Files that somebody else wrote: commands in them are not run, and weights that are not numbers are refused."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facessl.cli import main
from facessl.core import checkpoint
from facessl.data.location import redacted, shareable
from facessl.data.source import open_source
from tests.helpers import TINY

REST = TINY[1:]


@pytest.mark.fault("E5", '`source: "pipe:..."` in config.yaml ran on `--resume`, and in a recipe at once')
@pytest.mark.parametrize(
    "form",
    ["pipe:{}; cat faces.tar", "webdataset:{{pipe:{};: x://,b}}", "webdataset:no.tar::pipe:{}", "webdataset:${{RUN}}"],
    ids=["plain", "in braces", "second", "variable"],
)
def test_a_command_in_somebody_elses_file_is_not_run(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    source = form.format(f"touch {mark}")
    monkeypatch.setenv("WDS_RUN", f"pipe:touch {mark}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"source: {json.dumps(source)}\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"source: {json.dumps(source)}\nmethod: {{name: fra}}\n")
    for words in (["pretrain", "--config", str(recipe)], ["pretrain", "--resume", "--out", str(run)]):
        assert main(words) == 2
        assert "would run a command" in capsys.readouterr().err
        assert not mark.exists()
    # Typed, a command runs (and finds no tar) where it begins with pipe:, and nowhere else.
    assert main(["pretrain", source, *REST, "--out", str(tmp_path / "own")]) == 2
    assert mark.exists() == source.startswith("pipe:")


@pytest.mark.fault("A7", "`convert`, `embed` and `probe` took weights with NaN, wrote NaN and exited 0")
@pytest.mark.fault("E1", "one step with an infinite learning rate saved half of the tensors not finite and exited 0")
def test_weights_that_are_not_numbers_are_neither_saved_nor_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--optim.name", "adamw", "--optim.lr", ".inf", "--optim.warmup_epochs", "0", "--max-steps", "1"]
    assert main(["pretrain", *TINY, *words, "--out", str(run)]) != 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert "not finite; no checkpoint had been written" in said
    assert not list(run.glob("checkpoints/*.ckpt"))
    assert main(["pretrain", *TINY, "--max-steps", "1", "--out", str(tmp_path / "good")]) == 0
    file = tmp_path / "good" / "backbone.safetensors"
    tensors, card = checkpoint.read_safetensors(file)
    tensors["conv1.0.weight"][0] = float("nan")
    checkpoint.write_backbone(file, tensors, card)
    capsys.readouterr()
    for words in (["convert", str(file), "--out", str(tmp_path / "again.safetensors")],
                  ["embed", str(file), TINY[0], "--out", str(tmp_path / "e.parquet")],
                  ["probe", str(file), TINY[0]]):  # fmt: skip
        assert main(words) == 2
        assert "conv1.0.weight first" in capsys.readouterr().err


@pytest.mark.fault("E14", "the token of a `pipe:` or URL source stood in cards, checkpoints and reports")
def test_credentials_of_a_source_stay_in_the_private_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = open_source(TINY[0])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(8):
            Image.fromarray(np.asarray(faces[i].image)).save(file := tmp_path / f"{i}.png")
            tar.add(file, file.name)
    source, run = f"webdataset:pipe:cat {tmp_path}/a.tar #SECRET", tmp_path / "run"
    words = ["pretrain", source, *REST, "--max-steps", "2", "--out", str(run)]
    assert main([*words, "--max-minutes", "1e-9"]) == 0
    shutil.rmtree(run / "checkpoints")  # with one a stream cannot be resumed
    assert main([*words, "--resume"]) == 0
    assert main(["convert", str(run / "checkpoints" / "last.ckpt"), "--out", str(run / "b.safetensors")]) == 0
    told = {path for path in run.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()}
    assert told == {run / "config.yaml"}
    assert (run / "config.yaml").stat().st_mode & 0o777 == 0o600
    assert "SECRET" not in capsys.readouterr().out
    assert redacted("https://me:SECRET@host/{0..9}.tar?key=SECRET") == "https://...@host/{0..9}.tar?..."


@pytest.mark.fault("E14", "a password with a slash, `;sig=` and what stood in braces were published")
@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("https://me:SEC/RET@host/a.tar", "https://...@host/a.tar"),
        ("https://me:SEC?RET@host/a.tar?shuffle=0", "https://..."),
        ("https://host/{a,b}.tar;sig=SECRET", "https://host/{a,b}.tar;..."),
        ("{https://me:SECRET@host/a.tar,https://me:SECRET@host/b.tar}", "{https://...@host/b.tar}"),
        ("webdataset:{pipe:SECRET,b}", "webdataset:{pipe:..."),
        ("{/SECRET/a,/SECRET/b}.tar", "{b}.tar"),
        ("/SECRET/photos", "photos"),
    ],
)
def test_what_is_published_of_a_source(spec: str, told: str) -> None:
    assert shareable(spec) == told


@pytest.mark.fault("E9", "a number of thousands of digits in config.yaml ended `--resume` in a traceback")
@pytest.mark.parametrize("text", ["method: {name: fra}\nseed: " + "9" * 5000, "a: [", "- fra", "\xff"])
def test_settings_that_cannot_be_read_are_told(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="latin-1")
    assert main(["pretrain", "--resume", "--out", str(tmp_path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "config.yaml is damaged, or is not of `facessl pretrain`: start a new run with another --out" in said
