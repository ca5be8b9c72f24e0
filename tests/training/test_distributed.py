"""4 ranks give what one process gives on the same global batch, through the whole trainer, for every method."""

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import connector
from torch import Tensor, nn

from facessl.cli import main
from facessl.config import parse
from facessl.config.optim import PretrainOptim
from facessl.config.pretrain import PretrainConfig
from facessl.core.distributed import ranks
from facessl.core.errors import ConfigError
from facessl.core.launch import start_fabric
from facessl.core.types import Batch, Progress, Sample, Step
from facessl.data.source import open_source
from facessl.data.sources.synthetic import Synthetic
from facessl.methods.byol import BYOL
from facessl.methods.farl import FaRL
from facessl.methods.mae import MAE
from facessl.methods.mcf import MCF
from facessl.training import fsdp
from facessl.training.pretrain import Pretraining
from facessl.training.run import run_job
from tests.helpers import TINY, UNUSED, as_ranks, assert_same, in_double, losses, weights

#: What the smallest networks need to be told; dropout and PCL's noise are drawn by rank.
SMALL = ["--method.hidden", "24", "--method.dim", "16"]
DECODER = [
    "--method.decoder_width", "32", "--method.decoder_heads", "2", "--method.decoder_feed_forward", "16",
    "--method.dropout", "0",
]  # fmt: skip
MASKED = [
    "--backbone", "test_vit", "--method.decoder_width", "16", "--method.decoder_depth", "1", "--method.decoder_heads",
    "2",
]  # fmt: skip
CURVES = {
    "byol": ["byol", *SMALL],
    "fra": ["fra", *SMALL, *DECODER],
    "fra-official": ["fra", "--method.variant", "official", *SMALL, *DECODER],
    "lewel": ["lewel", *SMALL],
    "pcl": ["pcl", "--method.noise", "0", "--method.width", "8", "--method.decoder_width", "16",
            "--method.decoder_size", "16"],
    "mae": ["mae", *MASKED],
    "mae-accumulate": ["mae", *MASKED, "--accumulate", "2"],
    "mcf": ["mcf", *MASKED, *SMALL, "--method.teacher", "timm:test_resnet?pretrained=false",
            "--method.feature_weight", "1", "--clip-grad", "1"],
    "farl": ["farl", "--backbone", "test_vit", "--method.text_width", "16", "--method.text_depth", "1",
             "--method.text_heads", "2", "--method.context", "8"],
    "simclr": ["simclr", *SMALL],
    "swav": ["swav", *SMALL, "--method.prototypes", "10", "--method.freeze_prototypes_epochs", "0.5",
                   "--method.queue_length", "20", "--method.queue_step", "0"],
    "dino": ["dino", "--method.hidden_dim", "24", "--method.bottleneck_dim", "16", "--method.out_dim", "10",
             "--method.freeze_last_layer_epochs", "0.5"],
    "distill": ["distill", "--method.teacher", "timm:test_vit?pretrained=false", "--method.teacher_dim", "64"],
}  # fmt: skip
#: 20 images in batches of 8: the last 4 of every epoch are left out, on any number of ranks.
COMMON = [
    "synthetic:?n=20&size=40&captions=true", "--backbone", "test_resnet", "--image-size", "64", "--batch-size", "8",
    "--max-steps", "3", "--log-every", "1", "--checkpoint-every", "0", "--workers", "0", "--monitor.every", "0",
    "--device", "cpu", "--optim.warmup_epochs", "0", "--optim.name", "adamw", "--optim.lr", "1e-3",
    "--optim.reference_batch", "null",
]  # fmt: skip


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every method on 1 and 4 ranks; one sharded; one that began on 2 ranks and went on sharded on 4; one
    on 2 ranks with batch norms of their own, whole and stopped."""
    pytest.importorskip("open_clip")
    folder, source = tmp_path_factory.mktemp("curves"), open_source(COMMON[0])
    faces = [source[index] for index in range(len(source))]

    def start(count: int, *commands: list[str]) -> None:
        configs = [parse.parse(words) for words in commands]
        assert as_ranks(partial(train, folder, faces, configs), count, start=UNUSED) == [0] * count

    for count in (1, 4):
        start(count, *([*COMMON, "--method", *words, "--out", f"{name}-{count}"] for name, words in CURVES.items()))
    halves = [*COMMON, "--method", *CURVES["byol"], "--checkpoint-every", "2", "--out", "halves"]
    shards = [*COMMON, "--method", *CURVES["mcf"], "--strategy", "fsdp", "--out", "mcf-fsdp"]
    local = [*COMMON, "--method", *CURVES["lewel"], "--sync-batch-norm", "false", "--checkpoint-every", "2", "--out"]
    start(2, halves, shards, [*local, "local"], [*local, "local-halves"])
    for name in ("halves", "local-halves"):
        run = folder / name / "checkpoints"
        shutil.copy(run / "step-00000002.ckpt", run / "last.ckpt")
    start(4, [*halves, "--resume", "--strategy", "fsdp"])
    start(2, [*local, "local-halves", "--resume"])
    return folder


def noise(self: Any, batch: Batch, salt: int = 0) -> Tensor:
    """Masks drawn by image: drawn on the device, they differ with the number of ranks by design."""
    tokens = self.grid[0] * self.grid[1]
    seeds = [torch.Generator().manual_seed(1000 * salt + int(i)) for i in batch.index]
    return torch.stack([torch.rand(tokens, generator=seed) for seed in seeds])


def train(folder: Path, faces: list[Sample], configs: list[PretrainConfig]) -> None:
    """Runs of `facessl pretrain`, one after the other in one process group, in float64."""
    in_double()
    connector.ModelParallelStrategy = type("Nothing", (), {})  # type: ignore[misc]  # it refuses float64
    fsdp.UNIT = 0  # every block for itself, also the smallest
    Pretraining.finish = lambda *_, **__: None  # type: ignore[assignment, method-assign]  # exports are float32
    MAE.noise = FaRL.noise = noise  # type: ignore[method-assign, assignment]
    MCF.noise = lambda self, batch: (noise(self, batch), noise(self, batch, 1))  # type: ignore[method-assign]
    Synthetic.__getitem__ = lambda self, index: replace(faces[index])  # type: ignore[method-assign]  # drawn once
    os.chdir(folder)
    for config in configs:
        run_job(Pretraining(config))


def assert_equal_runs(one: Path, other: Path) -> None:
    """Loss curve as printed, and every weight and statistic at the end to the rounding of float64."""
    assert len(losses(one)) == 3
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], torch.Tensor) and a[key].is_floating_point():
            torch.testing.assert_close(b[key], a[key], rtol=1e-6, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}")


def one_step_in_bf16(folder: Path) -> None:
    real = BYOL.step

    def step(self: BYOL, batch: Batch, progress: Progress) -> Step:
        assert {t.dtype for t in (*batch.views, *batch.crops)} == {torch.float32}
        assert torch.is_autocast_enabled("cpu")
        return real(self, batch, progress)

    BYOL.step = step  # type: ignore[method-assign]
    words = [*COMMON, "--method", *CURVES["byol"], "--precision", "bf16", "--max-steps", "1", "--out", str(folder)]
    run_job(Pretraining(parse.parse(words)))


def test_a_batch_keeps_its_precision_on_several_ranks(tmp_path: Path) -> None:
    """Fabric rounds the inputs of a mixed-precision module to 16 bits there: landmarks in pixels, crops, views."""
    assert as_ranks(partial(one_step_in_bf16, tmp_path), 2, start=UNUSED) == [0, 0]


@pytest.mark.parametrize("name", CURVES)
def test_ranks_train_as_one_process(curves: Path, name: str) -> None:
    assert_equal_runs(curves / f"{name}-1", curves / f"{name}-4")


def test_a_loss_that_is_a_mean_accumulates_exactly(curves: Path) -> None:
    assert_equal_runs(curves / "mae-1", curves / "mae-accumulate-4")


def test_sharded_ranks_train_as_one_process(curves: Path) -> None:
    assert_equal_runs(curves / "mcf-1", curves / "mcf-fsdp")
    norms = losses(curves / "mcf-1", "grad_norm")
    assert max(norms) > 1, "nothing was clipped"
    assert losses(curves / "mcf-fsdp", "grad_norm") == pytest.approx(norms, rel=1e-5)


def test_what_sharding_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lars.*--optim.name adamw, or ddp"):
        fsdp.check(PretrainConfig(), False)
    with pytest.raises(ConfigError, match="fp16"):
        fsdp.check(PretrainConfig(optim=PretrainOptim(name="adamw"), precision="fp16"), False)
    number = nn.Module()
    number.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match="scale of Module"):
        fsdp.shard(number, None)


def test_other_ranks_and_another_strategy_go_on_with_the_same_curve(curves: Path) -> None:
    assert_equal_runs(curves / "byol-1", curves / "halves")


def test_own_batch_norms_resume_with_the_same_bits(curves: Path) -> None:
    """LEWEL's target uses moving statistics, of which the ranks would each have their own and a checkpoint one."""
    assert_same(weights(curves / "local-halves"), weights(curves / "local"))


def test_ranks_refuse_a_batch_they_cannot_share(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", *TINY, "--batch-size", "7", "--out", str(tmp_path / "odd")]
    assert as_ranks(lambda: main(words), 2) == [2, 2]
    assert "7" in capfd.readouterr().err.split("facessl: ")[1].splitlines()[0]


#: What SLURM sets for a batch script of 2 x 4 tasks, in which `srun` starts them.
BATCH = {
    **{"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"},
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, 1)),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, (16, 8)),
        (BATCH | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}, (8, 4)),
        (BATCH | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_NAME": "bash"}, (1, 1)),
        (BATCH, (1, 1)),
    ],
)
def test_ranks_are_those_of_the_launcher(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks() == expected
    if expected == (1, 1):
        assert start_fabric("cpu", "fp32").world_size == 1
