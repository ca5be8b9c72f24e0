"""`facessl finetune` on two ranks is what one process does, with measurements on the way, and ends for any backbone."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facessl.cli import main
from facessl.core.types import Sample
from facessl.data.sources.synthetic import Synthetic
from facessl.models import forward
from facessl.training.trainer import Trainer
from tests.helpers import UNUSED, as_ranks, assert_same, in_double, losses

WORDS = [
    "finetune", "none", "synthetic:?n=40&size=64", "--image-size", "64", "--batch-size", "6", "--epochs", "2",
    "--workers", "0", "--device", "cpu", "--optim.warmup-epochs", "0", "--ema", "0.9", "--log-every", "1",
]  # fmt: skip


def with_hidden_points() -> None:
    """Faces of which the later ones of an epoch's order have ever fewer landmarks."""
    real = Synthetic.__getitem__

    def some(self: Synthetic, index: int) -> Sample:
        sample = real(self, index)
        sample.visible = (np.arange(68) < 68 - 3 * (index % 20)).astype(np.uint8)
        return sample

    Synthetic.provides = Synthetic.provides | {"visible"}
    Synthetic.__getitem__ = some  # type: ignore[method-assign]


def fine_tune(folder: Path, words: list[str], double: bool) -> int:
    """One rank; its weights at the end are `rank-R.pt`."""
    normalize, save = forward.normalize, Trainer.save
    if double:
        in_double()
        forward.normalize = lambda *values: normalize(*values).double()  # type: ignore[attr-defined]
        with_hidden_points()

    def saving(self: Trainer) -> None:
        save(self)
        torch.save(self.method.state_dict(), folder / f"rank-{os.environ.get('RANK', 0)}.pt")  # type: ignore[attr-defined]

    Trainer.save = saving  # type: ignore[method-assign]
    return main([*words, "--out", str(folder / "run")])


def run(folder: Path, words: list[str], world: int, double: bool = False) -> list[dict[str, Any]]:
    """Weights of every rank at the end of a run on `world` ranks."""
    folder.mkdir()
    assert as_ranks(partial(fine_tune, folder, words, double), world, start=UNUSED) == [0] * world
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world)]


#: Adam would make differences of rounding in gradients that are 0 as large as a step.
DENSE = [
    *("--task.width", "8", "--task.dropout", "0", "--max-steps", "3", "--select", "last"),
    *("--optim.name", "sgd", "--image-size", "32"),
]
#: What a loss averages over differs between the ranks: hidden landmarks, pixels outside the image.
CASES = {
    "eac": ["--protocol", "eac", "--balanced"],
    "alignment": ["--task", "alignment", "--task.heatmap-size", "null", *DENSE],
    "parsing": ["--task", "parsing", "--task.outside", "ignored", "--augment", "{shift: 0.3}", *DENSE],
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(case: str, tmp_path: Path) -> None:
    words = [*WORDS, "--backbone", "test_resnet", "--optim.lr", "0.01", *CASES[case]]
    (one,) = run(tmp_path / "one", words, 1, double=True)
    two = run(tmp_path / "two", words, 2, double=True)
    assert one.keys() == two[0].keys()
    for rank in two:
        for key, value in one.items():
            torch.testing.assert_close(rank[key], value, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    found = [json.loads((tmp_path / name / "run" / "results.json").read_text()) for name in ("one", "two")]
    value = found[0]["test"]["headline"]["value"]
    assert value == pytest.approx(found[1]["test"]["headline"]["value"], rel=1e-6)
    one_losses, two_losses = (losses(tmp_path / name / "run") for name in ("one", "two"))
    assert one_losses == pytest.approx(two_losses, rel=1e-6), "what is logged is the mean over the ranks"
    assert found[0]["selected"]["step"] == found[1]["selected"]["step"]


def test_a_dense_task_on_a_vit_does_not_wait_for_unused_weights(tmp_path: Path) -> None:
    words = [*WORDS, "--backbone", "test_vit", "--task", "parsing", "--task.width", "8", "--max-steps", "3"]
    first, second = run(tmp_path / "run", words, 2)
    assert_same(first, second)
    assert (tmp_path / "run" / "run" / "results.json").is_file()
