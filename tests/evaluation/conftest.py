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
    """A folder with three classes, told apart by their brightness."""
    rng = np.random.default_rng(0)
    for name, level in {"dark": 30, "light": 220, "mid": 125}.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(level - 20, level + 20, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / name / f"{i}.png")
    return tmp_path / "faces"
