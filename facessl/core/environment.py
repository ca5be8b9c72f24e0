"""Versions, device and commit of a run. Torch, which takes a second, is imported by the functions that need it."""

import contextlib
import ctypes
import importlib.metadata
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from facessl.core.errors import ConfigError, UnknownName, many

PARTS = (
    *("torch", "torchvision", "timm", "lightning-fabric"),
    *("numpy", "opencv-python-headless", "simplejpeg", "webdataset"),
)
OPTIONAL = {
    "gradio": "app (pip install 'facessl[app]')",
    "av": "videos (pip install 'facessl[video]')",
    "pillow-heif": "HEIC photos (pip install 'facessl[heic]')",
    "open_clip_torch": "FaRL (pip install 'facessl[farl]')",
    "onnxruntime": "export to ONNX (pip install 'facessl[onnx]')",
    "tensorboard": "TensorBoard logs (pip install 'facessl[tensorboard]')",
    "umap-learn": "map --projection umap (pip install 'facessl[umap]')",
}


def describe() -> dict[str, Any]:
    """Versions, processor, device and commit, as plain values."""
    import torch

    return {
        "facessl": version("facessl"),
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in PARTS},
    }


def check() -> dict[str, Any]:
    """`describe` with the device and the features that work here: bf16, fp16, optional packages."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return describe() | {
        "device": default_device(),
        "bf16": bf16_support(),
        "fp16": "no (needs a GPU)" if default_device() == "cpu" else "yes",
        "torch.compile": "yes" if any(map(shutil.which, ("cc", "g++", "cl"))) else "no (needs a C++ compiler)",
        "optional": {name: version(name) or f"absent: no {use}" for name, use in OPTIONAL.items()},
        "free disk here": f"{free:.0f} GiB",
    }


def version(name: str) -> str | None:
    """Installed version of a distribution; None if it is absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """Git commit of the package's own checkout, with `+changes` if it has any; "" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def cores() -> int:
    """Number of cores that this process may use, within the limit of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max" without a limit
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split())
        allowed = min(allowed, max(1, math.ceil(quota / period)))
    return allowed


def start_method() -> str:
    """Start method of worker processes: fork on Linux, spawn elsewhere, or `$FACESSL_START_METHOD`.

    fork starts in milliseconds and shares the source; such a process runs no CUDA and one thread, so the locks that a
    fork can leave behind are never taken. ConfigError: the variable has another value.
    """
    valid = multiprocessing.get_all_start_methods()
    name = os.environ.get("FACESSL_START_METHOD") or ("fork" if sys.platform == "linux" else "spawn")
    if name not in valid:
        raise ConfigError(f"FACESSL_START_METHOD={name} is not a way to start a process here: use {', '.join(valid)}")
    return name


def use_threads(count: int | None, device: str) -> str | None:
    """Set the number of CPU threads (None: torch's choice). Return a hint if fewer cores are free."""
    import torch

    if count is not None:
        if count < 1:
            raise ConfigError(f"threads = {count} is out of range: give a positive number")
        torch.set_num_threads(count)
    threads, total = torch.get_num_threads(), cores()
    busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    free = max(1, total - busy)
    if device_of(device) != "cpu" or threads <= free:
        return None
    return (
        f"hint: torch computes with {threads} threads, and of the {many(total, 'core')} here "
        f"{min(total, busy)} are busy: --threads {free} may be several times as fast"
    )


def keep_memory() -> None:
    """Keep freed memory in the process and large tensors in huge pages, on Linux with glibc; elsewhere do nothing.

    A training step frees and takes the same gigabytes again, and by default the kernel clears them page by page each
    time: a tenth of the time of a step on a CPU. `MALLOC_*` and `GLIBC_TUNABLES` in the environment are left alone.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first large tensor
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block that goes back to the kernel when it is freed
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def default_device() -> str:
    """Best available device: cuda, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(name: str) -> str:
    """Device of auto, cpu, cuda or mps. UnknownName: another name. ConfigError: torch does not see it."""
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise UnknownName("device", name, ("auto", "cpu", "cuda", "mps"))
    best = default_device()
    if name not in ("auto", "cpu", best):
        raise ConfigError(f"device {name} was asked for, but torch sees none here: use --device cpu or auto")
    return best if name == "auto" else name


def bf16_support() -> str:
    """Whether bf16 works, and whether it is fast."""
    import torch

    if torch.cuda.is_available():
        return "yes" if torch.cuda.is_bf16_supported() else "no"
    if torch.backends.mps.is_available():
        return "yes"
    fast = [name for name in ("amx_bf16", "avx512_bf16") if name in _cpu_info()]
    return f"yes, fast ({', '.join(fast)})" if fast else "yes, slow (no bf16 instructions seen)"


def _processor() -> str:
    lines = (line for line in _cpu_info().splitlines() if line.startswith("model name"))
    return next((line.split(":", 1)[1].strip() for line in lines), platform.processor())


def _cpu_info() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.is_file() else ""
