"""A backbone, a folder of faces and an empty cache for the protocols."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facessl.models.backbone import Backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone("test_resnet", image_size=32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "facessl"


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder with three classes of 20."""
    write_shades(tmp_path / "faces", ("dark", "light", "mid"), 20)
    return tmp_path / "faces"


def write_shades(folder: Path, names: tuple[str, ...], count: int) -> None:
    """Folders of `count` images that are told apart by their brightness."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        level = {"dark": 30, "light": 220, "mid": 125}[name]
        for i in range(count):
            pixels = rng.integers(level - 20, level + 20, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
