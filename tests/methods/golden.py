"""Vectors that the released code gave on formula-made weights and inputs: ../shared/golden, made as its README says."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden"


def marks(name: str) -> list[pytest.MarkDecorator]:
    path = FOLDER / f"{name}.npz"
    return [pytest.mark.shared, pytest.mark.skipif(not path.exists(), reason=f"{path} is not here")]


def read(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """What describes the vectors, and the vectors."""
    return json.loads((FOLDER / f"{name}.json").read_text()), dict(np.load(FOLDER / f"{name}.npz"))


def filled(name: str, shape: list[int]) -> torch.Tensor:
    """The weights of the tensor `name`."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        value = 0.5 + random.random_sample(shape)
    else:
        value = random.standard_normal(shape)
        if name.endswith("running_mean"):
            value = 0.1 * value
        elif len(shape) < 2:
            value = float(name.endswith("weight")) + 0.1 * value
        else:
            value = value * np.sqrt(1 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def released_file(names: list[tuple[str, list[int]]]) -> dict[str, Any]:
    """A checkpoint of the released FRA or LEWEL; it holds the online backbone a second time and a center of zeros."""
    state = {n: filled(n.replace("module.encoder_q.", "module.online_net.backbone."), shape) for n, shape in names}
    return {"state_dict": state | {"module.center": 0 * state["module.center"]}, "epoch": 50}


def view(number: int, count: int, size: int) -> torch.Tensor:
    """(count, 3, size, size), view 1 or 2."""
    drawn = np.random.RandomState(number).standard_normal((count, 3, size, size))
    return torch.from_numpy(drawn.astype(np.float32))


def assert_relative(ours: torch.Tensor, theirs: np.ndarray) -> None:
    theirs = torch.from_numpy(np.asarray(theirs)).double()
    assert ours.shape == theirs.shape
    assert (ours.detach().double().cpu() - theirs).norm() <= 1e-4 * theirs.norm()
    torch.testing.assert_close(ours.detach().double().cpu(), theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
