"""Shared settings of the tests: one thread (results must not depend on how busy the machine is), no network."""

import os
from pathlib import Path

import cv2
import pytest
import torch

from facessl.core import plugins

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that a test starts
torch.set_num_threads(1)
cv2.setNumThreads(0)  # a fork of a process whose OpenCV has started threads may wait for them without end
torch.backends.cudnn.allow_tf32 = False  # float32 means float32 where numbers are compared

#: Measuring data beside the checkout; tests that need it are marked `shared`.
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

#: A source of a file outside the package, as `--source` names it.
OUTSIDE: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plugin", action="append", default=[], help="file outside the package whose contract is tested")
    parser.addoption("--source", action="append", default=[], help="NAME:PATH of 6 images, of a source of --plugin")


def pytest_configure(config: pytest.Config) -> None:
    for file in config.getoption("--plugin"):
        plugins.add(file)
    OUTSIDE.extend(config.getoption("--source"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"needs {SHARED.name}/ beside the checkout")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
