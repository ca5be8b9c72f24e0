"""Checkpoints and exported weights: saved atomically, and read without running code from them."""

import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Required, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from facessl.core.errors import CheckpointError, DataError, no_run
from facessl.core.files import temporary_beside, write_atomic
from facessl.core.foreign_pickles import SAFE_GLOBALS
from facessl.core.schema import check, read_json, to_json
from facessl.core.yaml_file import DEPTH, NODES

FORMAT = "facessl-run-1"
#: Bytes of a tensor that may repeat the numbers of a smaller file.
_MOST_REPEATED = 1 << 30


class TrainingCheckpoint(TypedDict, total=False):
    """What a training checkpoint holds. Loading the network needs `config` and `method`, resuming the run all of it."""

    format: str
    step: Required[int]
    config: Required[dict[str, Any]]  # as in config.yaml
    sources: dict[str, Any]  # number of images and fingerprint of each source
    method: Required[dict[str, Tensor]]  # the network's tensors by name
    optimizer: dict[str, Any]
    precision: dict[str, Any]  # of the loss scaler
    rng: list[Any]  # each rank's random states
    unlogged: list[Any]  # each rank's loss terms since the last log line
    skipped: list[Any]  # (key, reason) of unreadable images


def save_run(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Save `state` (tensors and plain values) as `folder/step-<step>.ckpt`, also named `last.ckpt`; keep the newest."""
    path = folder / f"step-{step:08d}.ckpt"
    payload = {"format": FORMAT, "step": step, **state}
    try:
        write_atomic(path, lambda file: torch.save(payload, file))
        _point(folder / "last.ckpt", path, payload)
    except DataError as error:
        short = "memory" if str(error).endswith("memory") else "space"
        raise CheckpointError(f"{error}; earlier checkpoints are untouched: free {short}, then --resume") from None
    for old in steps(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _point(last: Path, path: Path, payload: Mapping[str, Any]) -> None:
    """Make `last` another name of the checkpoint `path`, or a copy on file systems without hard links."""
    link = temporary_beside(last)
    try:
        os.link(path, link)
        link.replace(last)
    except OSError:
        link.unlink(missing_ok=True)
        write_atomic(last, lambda file: torch.save(payload, file))


def steps(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+\.ckpt", p.name))


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint (ours or an authors' .pth/.pt/.tar) on the CPU without running code from it.

    CheckpointError: missing, truncated, no checkpoint at all, one that asks for code to be run, or one that needs far
    more memory than the file has bytes.
    """
    if not path.is_file():
        raise CheckpointError(no_run(path))
    if path.stat().st_size == 0:
        raise CheckpointError(f"checkpoint {path} is empty (0 bytes): {_instead(path)}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            warnings.simplefilter("ignore")  # remarks on foreign pickles; what matters is raised
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(
                f"checkpoint {path} asks for {asked.group(1)} to be run on loading and was refused: "
                "re-save it as a plain state dict, or use another file"
            ) from None
        numpy = re.search(r"a numpy .*? refused", str(error))
        why = f"holds {numpy[0]}" if numpy else "is damaged or not a checkpoint"
        raise CheckpointError(f"checkpoint {path} cannot be read, it {why}: {_instead(path)}") from None
    except Exception as error:  # foreign bytes make torch raise almost anything
        reason = " ".join(str(error).split())[:160]
        why = f" ({reason})" if " " in reason else ""  # the unpickler's bare numbers tell nobody anything
        raise CheckpointError(f"checkpoint {path} is damaged or not a checkpoint{why}: {_instead(path)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(value).__name__}, not a state dict")
    _refuse_expanded(value, path)
    return value


def _refuse_compressed(path: Path) -> None:
    """CheckpointError where a zip would take more memory than the file has bytes: torch.save does not compress."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            return
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            raise CheckpointError(f"checkpoint {path} is damaged or not a checkpoint: {_instead(path)}") from None
    if size > (there := path.stat().st_size):
        raise CheckpointError(
            f"checkpoint {path} is compressed, {size:,} bytes in a file of {there:,}: re-save it with torch.save, or "
            "use another file"
        )


def _refuse_expanded(value: Any, path: Path) -> None:
    """Raise CheckpointError if a tensor repeats a few numbers, or lists repeat a few values, beyond the file's size."""
    size = path.stat().st_size
    if not _is_within(value, size):
        raise CheckpointError(
            f"checkpoint {path} repeats its values more often than it has bytes ({size:,}): re-save it as a plain "
            "state dict, or use another file"
        )
    for tensor in _tensors(value):
        needed = tensor.numel() * tensor.element_size()
        if tensor.layout is torch.strided and needed > max(size, _MOST_REPEATED):
            raise CheckpointError(
                f"checkpoint {path} holds a tensor of {needed:,} bytes, more than the file's {size:,}: "
                "re-save it with .contiguous() tensors, or use another file"
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple):
            waiting += item.values() if isinstance(item, dict) else item


def _is_within(value: Any, nodes: int, depth: int = sys.maxsize) -> bool:
    """Whether `value` has at most `nodes` keys and values, repeated ones counted again, nested at most `depth` deep."""
    waiting = [(value, 1)]
    while waiting:
        item, level = waiting.pop()
        nodes -= 1
        if nodes < 0 or level > depth:
            return False
        if isinstance(item, dict | list | tuple):
            parts = [*item, *item.values()] if isinstance(item, dict) else item
            waiting += ((part, level + 1) for part in parts)
    return True


def read_run(path: Path) -> dict[str, Any]:
    """Load a training checkpoint of this library; anything else is refused."""
    state = read(path)
    check_run(state, path)
    return state


def check_run(state: Mapping[str, Any], path: Path) -> None:
    """CheckpointError where `state`, read from `path`, is not a training checkpoint of this library."""
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a facessl training checkpoint (no mark {FORMAT!r} in it)")
    check(state, TrainingCheckpoint, path)
    if not _is_within(state["config"], NODES, DEPTH):
        raise CheckpointError(
            f"{path} was not written by facessl, or was changed: config has more than {NODES:,} values, or is nested "
            f"more than {DEPTH} deep"
        )


def write_backbone(path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """`backbone.safetensors` in timm's keys and, beside it, its card as `backbone.json`."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    write_atomic(path, safetensors_bytes(tensors, metadata={"card": to_json(card)}))
    write_atomic(path.with_suffix(".json"), to_json(card, indent=2).encode() + b"\n")


def read_safetensors(path: Path, *, card_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card (from the file itself, or the .json beside it; empty where there is none)."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {} if card_only else {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no iterator)
            card = json.loads((file.metadata() or {}).get("card", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}): use another file") from None
    check(card, dict[str, Any], path)
    beside = path.with_suffix(".json")
    if not card and beside.is_file():
        card = read_json(beside, dict[str, Any])
    return tensors, card


def _instead(path: Path) -> str:
    """What to do where a checkpoint cannot be read: a run has earlier ones, an authors' file can be had again."""
    own = path.suffix == ".ckpt"
    return "use an earlier one of the run" if own else "download or copy it again, or use another file"
