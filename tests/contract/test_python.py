"""The public functions take the same kinds of arguments, and name what is wrong with others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import facessl
from facessl.core.errors import ConfigError, UnknownName
from facessl.data.source import open_source
from facessl.tools.pack import pack


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, `labeled`, and a run, `run`, both named by path objects."""
    place, rng = tmp_path_factory.mktemp("python"), np.random.default_rng(0)
    for number in range(20):
        file = place / "labeled" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(file)
    found = facessl.pretrain(
        place / "labeled", out=place / "run", method="byol", backbone="test_resnet", image_size=32, batch_size=8,
        max_steps=1, workers=0, device="cpu", monitor={"every": 0},
    )  # fmt: skip
    assert found.folder == place / "run"
    return place


def test_a_path_object_or_a_run_stands_wherever_a_text_or_a_network_does(place: Path) -> None:
    run, labeled = place / "run", place / "labeled"
    vectors = facessl.embed(facessl.load_backbone(run), str(labeled))
    for network in (run, str(run), run / "backbone.safetensors"):
        np.testing.assert_array_equal(facessl.embed(network, labeled), vectors)
    rows = facessl.embeddings(run, labeled)
    facessl.write_embeddings(place / "e.parquet", rows)
    assert facessl.read_embeddings(place / "e.parquet").keys == rows.keys
    assert facessl.search(run, rows.keys[3], place / "e.parquet", k=1).paths == [rows.keys[3]]
    assert len(facessl.group(place / "e.parquet").labels) == 20
    scores = facessl.evaluate(run, labeled, k=3)
    assert scores == facessl.evaluate(facessl.load_backbone(run), str(labeled), k=3)
    assert facessl.evaluate(str(run), labeled, test=labeled, k=3)["n_test"] == 20
    tuned = facessl.finetune(
        run, labeled, test=labeled, out=place / "tuned", max_steps=1, image_size=32, batch_size=4, workers=0,
        device="cpu",
    )  # fmt: skip
    assert Path(tuned["out"]) == place / "tuned"
    assert pack(labeled, place / "packed", workers=0).packed == 20


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p: facessl.crop(p / "labeled", p / "out", sise=3), UnknownName, "option of crop 'sise': did you mean"),
        (lambda p: pack(p / "labeled", p / "out", qality=3), UnknownName, "option of pack 'qality': did you mean"),
        (lambda p: facessl.crop(p / "labeled", p / "out", size="large"), ConfigError, "crop's size is large: give"),
        (lambda p: facessl.group(np.zeros((9, 4))), ConfigError, r"of type ndarray .* facessl\.embeddings\("),
        (lambda p: facessl.search(p / "run", p / "labeled/a/0.png", np.zeros((9, 4))), ConfigError, "of type ndarray"),
        (lambda p: facessl.finetune(p / "labeled"), ConfigError, r"labeled and no labeled images: .*RUN, SOURCE"),
        (lambda p: facessl.embed(3, p / "labeled"), ConfigError, r"network is of type int: give"),
        (lambda p: facessl.embed(p / "run", 3), ConfigError, "source is of type int: give a path, NAME:PATH"),
        (lambda p: facessl.evaluate(p / "run", open_source(p / "labeled")), ConfigError, "of type Folder, which"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(call: Callable[[Path], Any], error: type[Exception], says: str, place: Path) -> None:
    with pytest.raises(error, match=says) as raised:
        call(place)
    assert "\n" not in str(raised.value)
    assert not (place / "out").exists()
