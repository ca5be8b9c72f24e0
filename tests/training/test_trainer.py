"""The loop: what it hands to a method and when, accumulation, clipping, the time limit."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from facessl.core import checkpoint
from facessl.core.errors import PluginError, TrainingError
from facessl.core.launch import start_fabric
from facessl.core.types import Batch, Progress, Step
from facessl.data.prefetch import Prefetcher
from facessl.training.derived import Plan
from facessl.training.metrics_log import MetricsLog
from facessl.training.trainer import Trainer, TrainingSetup
from tests.helpers import UNUSED, free_port


class Recorder(nn.Module):
    """A linear least-squares "method" that remembers what the loop told it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3))
        self.steps: list[int] = []
        self.after: list[int] = []

    def step(self, batch: Batch, progress: Progress) -> Step:
        self.steps.append(progress.step)
        loss = ((batch.views[0].mean((2, 3)) @ self.weight) - 1).square().mean()
        return Step(loss, {"error": loss.detach()})

    def after_step(self, progress: Progress) -> None:
        self.after.append(progress.step)


def batches(size: int = 4) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield Batch([torch.randn(size, 3, 2, 2, generator=generator)], [], torch.arange(size), keys=["k"] * size)


def trained(method: Recorder, monitors: Any = None) -> TrainingSetup:
    nothing: Any = None
    sgd = torch.optim.SGD(method.parameters(), lr=1.0)
    return TrainingSetup(method, lambda plan: sgd, nothing, nothing, lambda batch: batch, monitors or {})


def made(folder: Path, method: Recorder, monitors: Any = None, **plan: Any) -> Trainer:
    settings = {"total_steps": 4, "steps_per_epoch": 2, "batch_size": 4, "learning_rate": lambda s: 0.1 * (s + 1)}
    return Trainer(
        Fabric(accelerator="cpu", devices=1),
        trained(method, monitors),
        Plan(**settings | {"log_every": 1, "checkpoint_every": 0, "monitor_every": 0} | plan),  # type: ignore
        folder,
        {},
    )


def train(folder: Path, monitors: Any = None, method: Recorder | None = None, **plan: Any) -> Recorder:
    method = method or Recorder()
    made(folder, method, monitors, **plan).fit(batches())
    return method


def test_update_k_sees_progress_k(tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    method = train(tmp_path / "run")
    assert method.steps == [0, 1, 2, 3]
    assert method.after == [0, 1, 2, 3], "BYOL's momentum schedule starts at its base value"
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("lr")
    assert [float(r.split(",")[column]) for r in rows[1:]] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    whole.mkdir()
    parts.mkdir()
    torch.testing.assert_close(train(whole).weight, train(parts, accumulate=2).weight)


class Uneven(Recorder):
    """Logs one more term in the micro-batches `extra`, counted from 0."""

    def __init__(self, *extra: int) -> None:
        super().__init__()
        self.extra = extra

    def step(self, batch: Batch, progress: Progress) -> Step:
        found = super().step(batch, progress)
        more = {"pose": found.loss.detach()} if len(self.steps) - 1 in self.extra else {}
        return Step(found.loss, more | found.logs)


@pytest.mark.parametrize("log_every", [1, 100])
@pytest.mark.parametrize(
    ("extra", "accumulate", "where"),
    [
        ((2,), 1, "in step 3 and not in step 1"),
        ((0, 1), 1, "in step 1 and not in step 3"),
        ((1,), 2, "in one micro-batch of step 1 and not in another"),
    ],
)
def test_a_step_with_other_terms_is_named(
    tmp_path: Path, extra: tuple[int, ...], accumulate: int, where: str, log_every: int
) -> None:
    says = f"the class Uneven logs 'pose' {where}: give Step.logs the same names in every step"
    with pytest.raises(PluginError) as caught:
        train(tmp_path, method=Uneven(*extra), accumulate=accumulate, log_every=log_every)
    assert str(caught.value) == says


def test_a_resumed_run_has_the_terms_of_the_steps_it_had_not_logged(tmp_path: Path) -> None:
    trainer = made(tmp_path, Uneven(0, 1), total_steps=2, log_every=100)
    trainer._one_step(Prefetcher(batches(), torch.device("cpu"), lambda batch: batch))
    state = trainer.state() | {"step": 1}
    resumed = made(tmp_path, Uneven(), total_steps=2, log_every=100)
    resumed.load_state(state)
    with pytest.raises(PluginError, match="logs 'pose' in step 1 and not in step 2"):
        resumed.fit(batches())


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    start = Recorder().weight.detach()
    moved = train(tmp_path, total_steps=1, clip_grad=0.01, learning_rate=lambda _: 1.0).weight.detach()
    assert float((moved - start).norm()) == pytest.approx(0.01, rel=1e-3)


def test_monitors_do_not_touch_the_run(tmp_path: Path) -> None:
    def nosy(method: Any, progress: Progress) -> dict[str, float]:
        assert not method.training
        return {"noise": float(torch.rand(()))}

    watched, plain = tmp_path / "watched", tmp_path / "plain"
    watched.mkdir()
    plain.mkdir()
    a, next_a = train(watched, {"nosy": nosy}, monitor_every=1), torch.rand(())
    b, next_b = train(plain), torch.rand(())
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(next_a, next_b), "a monitor drew from the run's random state"
    assert a.training
    assert "monitor/noise" in (watched / "metrics.csv").read_text()


@pytest.mark.fault("E8", "a checkpoint made the folder of a run that had been moved again, with half of its files")
def test_a_folder_that_was_moved_is_not_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def moving(method: Any, progress: Progress) -> dict[str, float]:
        if progress.step == 2:
            run.rename(tmp_path / "moved")
        return {}

    with pytest.raises(TrainingError, match=r"run is gone: put it back|cannot write .*put the folder back"):
        train(run, {"moving": moving}, monitor_every=2, log_every=100)
    assert not run.exists()


def test_without_tensorboard_the_numbers_are_in_the_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    log = MetricsLog(tmp_path)
    for step in (1, 2):
        log.write({"step": step, "loss": 0.5})
    log.flush()
    log.close()
    assert capsys.readouterr().err.count("facessl[tensorboard]") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.fault("E8", "a stray quote or an infinite time in metrics.csv ended a resume, or dropped whole rows")
def test_damaged_rows_of_the_table_are_left_out_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    odd = b'2,"0.8' + b"x" * 200_000, b"3,inf,1", b"4,1.0", b"\xff\x00,1.0,2", b"5,1.0,1,7", b"6,1.5,0.5", b"7,2.0,0.1"
    path.write_bytes(b"\n".join([b"step,seconds,loss", b"1,0.5,2.5", *odd]))
    log = MetricsLog(tmp_path)
    log.cut_after(100, {})
    log.close()
    assert path.read_text() == "step,seconds,loss\n1,0.5,2.5\n6,1.5,0.5\n"


def one_of_two_ranks(rank: int, folder: Path, port: int) -> None:
    sizes = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    os.environ |= {key: str(value) for key, value in sizes.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def signalled() -> Iterator[Batch]:
        for number, batch in enumerate(batches()):
            if rank == 1 and number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    method = Recorder()
    trainer = Trainer(
        start_fabric("cpu", "fp32"),
        trained(method),
        Plan(1000, 2, 8, lambda step: 0.1, checkpoint_every=0, monitor_every=0),
        folder,
        {},
    )
    assert not trainer.fit(signalled())
    (folder / f"rank-{rank}").write_text(f"{trainer.step} {trainer.stopping.reason}")
    torch.distributed.destroy_process_group()


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        one_of_two_ranks, (tmp_path, free_port()), nprocs=2, start_method=UNUSED.get_start_method()
    )
    (zero, why), (one, signalled) = ((tmp_path / f"rank-{rank}").read_text().split(" ", 1) for rank in (0, 1))
    assert int(zero) == int(one) <= 6, "within two steps of the signal"
    assert (why, signalled) == ("another rank stopped", "SIGTERM")
    assert [path.name for path in checkpoint.steps(tmp_path / "checkpoints")] == [f"step-{int(zero):08d}.ckpt"]
