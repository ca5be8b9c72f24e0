"""What several test files use."""

import contextlib
import csv
import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facessl.cli import main
from facessl.core import launch
from facessl.core.types import Batch, Sample
from facessl.views.photometric import Photometric

#: Device and type that golden models run in.
PLACES = [(d, t) for d in ("cpu", *["cuda"] * torch.cuda.is_available()) for t in (torch.float32, torch.float64)]

#: A run of seconds: 10 steps of 8 synthetic faces on a ResNet of 0.5 million weights.
TINY = [
    "synthetic:?n=40&size=40", "--backbone", "test_resnet", "--image-size", "32", "--batch-size", "8",
    "--max-steps", "10", "--log-every", "1", "--checkpoint-every", "2", "--workers", "0", "--monitor.every", "0",
    "--method.hidden", "16", "--method.dim", "8", "--device", "cpu", "--optim.lr", "4",
]  # fmt: skip


def views_of(transform: Any, image: np.ndarray, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Views and parameter rows of an image without labels."""
    _, views, params, _ = transform.draw(rng)(Sample(b"", "an image without labels"), image)
    return views, params


def drawn_intervals(scores: Callable[[np.ndarray], Any], count: int, samples: int) -> np.ndarray:
    """Bootstrap the slow way: 2.5 and 97.5 % of scores over images drawn with replacement.

    Args:
        scores: number or tuple of S numbers of the images at these places, (count,) integers.

    Returns:
        (2,), or (S, 2) of a tuple.
    """
    rng = np.random.default_rng(1)
    found = [scores(rng.integers(0, count, count)) for _ in range(samples)]
    return np.asarray(np.percentile(found, [2.5, 97.5], axis=0).T)


def lacking(made: object, protocol: Any) -> list[str]:
    """Members of a protocol that an object has not. `isinstance` does not see the parts of an `nn.Module`."""
    names = {*protocol.__annotations__, *(name for name in vars(protocol) if not name.startswith("_"))}
    return sorted(name for name in names if not hasattr(made, name))


def command(*words: str, script: str = "") -> list[str]:
    """The command line in its own process; `script` runs before it (to break things on purpose)."""
    program = f"import sys\n{script}\nfrom facessl.cli import main\nsys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", program, *words]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line says where it refuses the words: one line."""
    assert main([*words]) == 2
    out, err = capsys.readouterr()
    message = [line for line in err.splitlines() if line.startswith("facessl: ")]
    assert len(message) == 1, err
    assert "Traceback" not in out + err
    return message[0]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun_command(ranks: int) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={free_port()}",
    ]  # fmt: skip


FORKS = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
#: How processes that train are started, since torch may refuse autograd, and CUDA anything, in a fork of a process that
#: has used it: forks of one that has imported what they need and done nothing.
UNUSED: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    UNUSED.set_forkserver_preload(["pytest", "open_clip", "facessl.training.finetune", "facessl.training.pretrain"])
#: Forks of the test, with what it has patched.
PATCHED: Any = multiprocessing.get_context("fork" if FORKS else "spawn")


def as_ranks(call: Callable[[], object], world: int, only: Sequence[int] = (), start: Any = PATCHED) -> list[int]:
    """Exit codes of `world` processes, or `only` these ranks, that each run `call` as if torchrun had started them."""
    known = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    known |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    children = []
    for rank in only or range(world):
        mine = {**known, "RANK": rank, "LOCAL_RANK": rank} if world > 1 else {}
        environ = {**os.environ, **{key: str(value) for key, value in mine.items()}}
        children.append(start.Process(target=_run, args=(call, environ)))
        children[-1].start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def _run(call: Callable[[], object], environ: dict[str, str]) -> None:
    code = 1
    try:
        signal.alarm(300)  # one that hangs is killed
        torch.set_num_threads(1)
        os.environ |= environ
        found = call()
        code = found if isinstance(found, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def in_double() -> None:
    """Views and networks are float64: what is compared is the arithmetic of ranks, not how rounding grows."""
    real = Photometric.__call__

    def double(self: Photometric, batch: Batch) -> Batch:
        batch = real(self, batch)
        batch.views = [view.double() for view in batch.views]
        return batch

    Photometric.__call__ = double  # type: ignore[method-assign]
    launch.PRECISIONS["fp32"] = ("64-true", None)


#: Operations that read a value on the host of a GPU, which meta tensors do not need.
WAITING = {"_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "histc", "multinomial"}


class CpuGenerator(torch.Generator):
    """In the place of torch.Generator, which does not exist for meta tensors."""

    def __new__(cls, device: object = "cpu") -> Any:
        return super().__new__(cls, "cpu")


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """AssertionError at an operation of meta tensors that a GPU refuses or makes the host wait for: tensors of two
    devices, a blocking copy, a new constant, a checked inverse. What needs a value, meta tensors themselves refuse."""
    with _Operations(), _Constants():
        yield


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        places = {t.device.type for t in tensors if t.ndim}
        name = func.name().split("::")[1].split(".")[0]
        if name == "copy_":
            assert args[2:] == (True,) or args[0].device.type == args[1].device.type, "a copy waits"
        elif name == "_to_copy":
            to = torch.device(kwargs.get("device") or args[0].device)
            assert kwargs.get("non_blocking") or to.type == args[0].device.type, "a copy waits"
        else:
            assert len(places) < 2, f"{name} of tensors on {' and '.join(sorted(places))}"
        assert name not in WAITING, f"{name} waits"
        return func(*args, **kwargs)


class _Constants(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            elsewhere = str(kwargs.get("device") or "cpu") != "cpu"
            assert not elsewhere or isinstance(args[0], torch.Tensor), "the copy of a new constant waits"
        elif func in (torch.Tensor.new_tensor, torch.Tensor.new):
            assert args[0].device.type == "cpu", "the copy of a new constant waits"
        elif func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].device.type != "cpu":
            places = args[1] if isinstance(args[1], tuple) else args[1:2]
            copied = any(isinstance(place, list | tuple | range | np.ndarray) for place in places)
            assert not copied, "the copy of an index waits"
            if func is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor):
                numbers = any(isinstance(place, torch.Tensor) and place.dtype != torch.bool for place in places)
                assert not numbers, "a number written to positions waits: use index_fill_"
        return func(*args, **kwargs)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def losses(run: Path, name: str = "loss") -> list[float]:
    return [float(row[name]) for row in read_table(run / "metrics.csv") if row[name]]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def weights(run: Path) -> dict[str, Any]:
    """State of the method at the end of a run."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {"step": state["step"], **state["method"]}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bit-exact."""
    assert a.keys() == b.keys()
    different = [k for k in a if not (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k])]
    assert not different, f"{len(different)} of {len(a)} differ: {different[:5]}"


def script(name: str) -> ModuleType:
    """A file of benchmarks/, imported as Python runs it: its neighbors can be imported."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
        spec.loader.exec_module(module)
    return module
