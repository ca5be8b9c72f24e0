"""The trainer on the GPU: resume, compiled backbones, converted batch norms, FSDP, and steps without a wait."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from facessl.core.types import Progress
from facessl.models.layers import sync_batch_norm
from facessl.training import fsdp
from facessl.training.pretrain import pretrain
from facessl.training.trainer import Trainer
from tests.contract.test_methods import batch, build
from tests.helpers import TINY, assert_same, command, environment, free_port, weights

SETTINGS: dict[str, Any] = {
    "source": "synthetic:?n=40&size=40", "backbone": "resnet10t", "image_size": 32, "batch_size": 8, "max_steps": 10,
    "log_every": 1, "checkpoint_every": 2, "workers": 0, "monitor": {"every": 0},
    "method": {"name": "fra", "hidden": 16, "dim": 8}, "optim": {"lr": 4.0},
}  # fmt: skip
#: Deterministic kernels and slow steps, before a run in a process of its own.
SCRIPT = """
import time, torch
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.allow_tf32 = False
torch.set_num_threads(1)
from facessl.training.trainer import Trainer
real = Trainer._one_step
def one_step(self, *rest):
    time.sleep(0.3)
    real(self, *rest)
Trainer._one_step = one_step
"""


def run(device: torch.device, out: Path, **changes: Any) -> Path:
    return pretrain(**SETTINGS | changes, device=device.type, out=str(out)).folder


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGKILL"])
def test_a_stopped_run_ends_with_the_same_bits(sign: str, device: torch.device, exact: None, tmp_path: Path) -> None:
    whole = weights(run(device, tmp_path / "whole"))
    words = ["pretrain", *TINY, "--device", device.type, "--out", "run"]
    process = subprocess.Popen(
        command(*words, script=SCRIPT), cwd=tmp_path, env=environment(CUBLAS_WORKSPACE_CONFIG=":4096:8"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "step-00000002.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(getattr(signal, sign))
    process.wait()
    assert weights_step(tmp_path / "run") < 10
    assert_same(weights(run(device, tmp_path / "run", resume=True)), whole)


def weights_step(run: Path) -> int:
    return int(weights(run)["step"])


def test_compiled_backbones_train_alike(device: torch.device, exact: None, tmp_path: Path) -> None:
    settings = {"max_steps": 3, "optim": {"lr": 0.1}, "sync_batch_norm": False}
    plain = weights(run(device, tmp_path / "plain", **settings))
    faster = weights(run(device, tmp_path / "compiled", compile=True, **settings))
    assert plain.keys() == faster.keys()
    for name, value in plain.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(faster[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_end(precision: str, device: torch.device, tmp_path: Path) -> None:
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("float16 needs a GPU")
    found = weights(run(device, tmp_path / "run", precision=precision, workers=2))
    assert all(v.isfinite().all() for v in found.values() if isinstance(v, torch.Tensor))


def test_the_trainer_does_not_wait_for_the_gpu(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, checked = Trainer._one_step, []

    def one_step(self: Trainer, *rest: Any) -> None:
        watched = 3 <= self.step < 6 and device.type == "cuda"
        if watched:
            torch.cuda.set_sync_debug_mode("error")
        try:
            real(self, *rest)
            checked.append(self.step)
        finally:
            if watched:
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_one_step", one_step)
    run(device, tmp_path / "run", precision="bf16", log_every=10, checkpoint_every=0, workers=2)
    assert checked == [*range(1, 11)]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_batch_norm_over_ranks_equals_that_of_one(
    kind: type[nn.Module], device: torch.device, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group of one rank. On a CPU ours computes as over ranks. On a GPU torch's class falls back to plain batch
    norm: what is checked there is the conversion; two ranks are in tests/methods/test_ranks.py."""
    torch.manual_seed(0)
    x = torch.randn(6, 8, 5, 5, device=device).contiguous(memory_format=torch.channels_last)
    norms = [kind(8).to(device), sync_batch_norm.convert_sync_batchnorm(kind(8).to(device))]
    assert isinstance(norms[1], nn.SyncBatchNorm if device.type == "cuda" else sync_batch_norm.SyncBatchNorm)
    assert sync_batch_norm.convert_sync_batchnorm(norms[1]) is norms[1]
    inputs = [x.clone().requires_grad_() for _ in norms]
    monkeypatch.setattr(sync_batch_norm, "world_size", lambda: 2)  # or ours would not send a message
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        wanted, found = (norm(part) for norm, part in zip(norms, inputs, strict=True))
        for out in (wanted, found):
            out.square().sum().backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norms[1].weight.grad, norms[0].weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norms[1].running_var, norms[0].running_var, rtol=1e-5, atol=1e-5)


def test_fsdp_gives_the_gradients_of_one_process(device: torch.device, exact: None) -> None:
    """FSDP2 over one rank: gathers and reductions are NCCL's, and nothing may change."""
    method, twin = build("mae").to(device), build("mae").to(device)
    data = batch(method, count=8).to(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        fsdp.shard(method, init_device_mesh(device.type, (1,)))
        for one in (method, twin):
            torch.manual_seed(3)
            one.step(data, Progress(0, 10)).loss.backward()
        found = {n: p.grad.full_tensor() for n, p in method.named_parameters() if p.requires_grad}
    finally:
        dist.destroy_process_group()
    for name, parameter in twin.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)
