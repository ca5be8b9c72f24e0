"""Writing and reading files that must not be lost: atomic saves, and loads that run no code."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from facessl.core.errors import CheckpointError, ConfigError, DataError

FORMAT = "facessl-run-1"


def write_atomic(path: Path, data: bytes | Callable[[IO[bytes]], object], *, private: bool = False) -> None:
    """Write `data`, or let it write to the file it is given: `path` holds its old or its new content, never a part.

    Args:
        path: of the file; its folder is made where it is missing.
        data: bytes, or what writes to an open file.
        private: nobody but the owner may read the file.

    Raises:
        CheckpointError: the file could not be written (disk full, no permission, no memory); the old one is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(
            f"cannot write {path}: {_reason(error)}; earlier checkpoints are untouched: free space, then --resume"
        ) from None


def save_run(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Save `state` as `folder/step-<step>.ckpt` and point `last.ckpt` at it; keep the newest `keep`.

    The payload is tensors and plain values only, so that `read` can load it without running code.
    """
    path = folder / f"step-{step:08d}.ckpt"
    payload = {"format": FORMAT, "step": step, **state}
    write_atomic(path, lambda file: torch.save(payload, file))
    link = folder / f".last.{os.getpid()}.tmp"
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        os.replace(link, folder / "last.ckpt")
    except OSError:  # file systems without hard links
        write_atomic(folder / "last.ckpt", lambda file: torch.save(payload, file))
    for old in steps(folder)[:-keep]:
        old.unlink(missing_ok=True)
    for orphan in folder.glob(".*.tmp"):  # left by a process that was killed while it wrote
        orphan.unlink(missing_ok=True)
    return path


def steps(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+\.ckpt", p.name))


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint (ours or an authors' .pth/.pt/.tar) on the CPU without running code from it.

    Raises:
        CheckpointError: missing, truncated, no checkpoint at all, or one that asks for code to be run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: name a run folder, a checkpoint or an exported backbone")
    if path.stat().st_size == 0:
        raise CheckpointError(f"checkpoint {path} is empty (0 bytes): {_instead(path)}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on foreign pickles; what matters is raised
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(
                f"checkpoint {path} asks for {asked.group(1)} to be run on loading and was refused: "
                "re-save it as a plain state dict, or use another file"
            ) from None
        raise CheckpointError(
            f"checkpoint {path} cannot be read, it is damaged or no checkpoint: {_instead(path)}"
        ) from None
    except Exception as error:  # foreign bytes make torch raise almost anything
        reason = " ".join(str(error).split())[:160]
        why = f" ({reason})" if " " in reason else ""  # the unpickler's bare numbers tell nobody anything
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint{why}: {_instead(path)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(value).__name__}, not a state dict")
    return value


def read_run(path: Path) -> dict[str, Any]:
    """Load a training checkpoint of this library; anything else is refused."""
    state = read(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a facessl training checkpoint (no mark {FORMAT!r} in it)")
    return state


def write_backbone(path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """`backbone.safetensors` in timm's keys and, beside it, its card as `backbone.json`."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    write_atomic(path, safetensors_bytes(tensors, metadata={"card": json.dumps(card)}))
    write_atomic(path.with_suffix(".json"), json.dumps(card, indent=2).encode() + b"\n")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card (from the file itself, or the .json beside it; empty where there is none)."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no iterator there)
            card = json.loads((file.metadata() or {}).get("card", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}): use another file") from None
    beside = path.with_suffix(".json")
    if not card and beside.is_file():
        card = json.loads(beside.read_text())
    return tensors, card


def _instead(path: Path) -> str:
    """What to do where a checkpoint cannot be read: a run has earlier ones, an authors' file can be had again."""
    own = path.suffix == ".ckpt"
    return "use an earlier one of the run" if own else "download or copy it again, or use another file"


def _reason(error: OSError | RuntimeError) -> str:
    """What went wrong, also where torch's writer hides the system's own words."""
    root: BaseException = error
    while root.__context__ is not None:
        root = root.__context__
    return getattr(root, "strerror", None) or " ".join(str(root).split())[:160]


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def completed(path: str | Path) -> Iterator[Path]:
    """A name to write to; that file becomes `path` where the block ends without an error, and is removed otherwise.

    Raises:
        DataError: the file cannot be written; an old one is untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 picture; the file appears only when it is complete.

    Raises:
        ConfigError: the name does not end in .png.
        DataError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ConfigError(f"cannot write the picture to {path}: the name must end in .png")
    with completed(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG", compress_level=3)  # half the time of 6, a tenth larger
