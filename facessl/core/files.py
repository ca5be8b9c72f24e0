"""Writing and reading files that must not be lost: atomic saves, and loads that run no code."""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import glob
import io
import json
import os
import pathlib
import pickle
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Required, TypedDict

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from facessl.core.errors import CheckpointError, ConfigError, DataError
from facessl.core.schema import check, read_json, to_json

FORMAT = "facessl-run-1"
#: Bytes of the largest list that is read.
MAX_LIST = 2 << 30


def open_regular(path: str | Path, mode: str = "rb", *, most: int = MAX_LIST, **options: Any) -> IO[Any]:
    """`open` for reading a file that somebody else named: neither a pipe nor a device, and of a plausible size.

    Args:
        most: bytes of the largest file that is opened.
        options: of `open`.

    Raises:
        OSError: as `open`, and with a `strerror` that says what else the file is.
    """
    try:
        return open(path, mode, opener=lambda name, _: _descriptor(name, most)[0], **options)
    except ValueError:
        raise OSError(errno.EINVAL, "the name has a NUL byte in it") from None


def read_regular(path: str | Path, *, most: int) -> bytes:
    """The content of a file as `open_regular` opens it, in half of its time."""
    try:
        descriptor, size = _descriptor(path, most)
    except ValueError:
        raise OSError(errno.EINVAL, "the name has a NUL byte in it") from None
    try:
        data = os.read(descriptor, size)
        while more := size - len(data):
            if not (rest := os.read(descriptor, more)):
                break
            data += rest
        return data
    finally:
        os.close(descriptor)


def _descriptor(path: str | Path, most: int) -> tuple[int, int]:
    """A regular file of at most `most` bytes, opened for reading, and its size."""
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size <= most:
        return descriptor, status.st_size
    os.close(descriptor)
    if stat.S_ISREG(status.st_mode):
        raise OSError(errno.EFBIG, f"{status.st_size:,} bytes are more than the {most:,} that are read")
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "not a regular file")


#: A pipe does not wait for its writer, a child process does not hold the file, Windows changes no line ends.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


#: A byte that is not UTF-8 (as `os.fsdecode` gives it), and text that reads like one that `printable` wrote.
_ODD = re.compile(r"(\\*)([\udc80-\udcff]|x[89a-f][0-9a-f])")
_ESCAPED = re.compile(r"(\\+)x([89a-f][0-9a-f])")
#: What spreadsheets run as a formula, with the quotes in front that keep them from it.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|inf)(e[+-]?\d+)?", re.IGNORECASE)


class Run(TypedDict, total=False):
    """A training checkpoint: `config` as `config.yaml` holds it, `method` the network's tensors by name."""

    format: str
    step: Required[int]
    config: Required[dict[str, Any]]
    method: Required[dict[str, Tensor]]


#: What others' checkpoints hold beside tensors and plain values; names as pickles have them. Not numpy's types: with a
#: state from the file they read and free memory that is not theirs.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    *((pathlib.PurePosixPath, f"pathlib.{inner}PosixPath") for inner in ("", "_local.")),
    *((pathlib.PureWindowsPath, f"pathlib.{inner}WindowsPath") for inner in ("", "_local.")),
]


def write_atomic(path: Path, data: bytes | Callable[[IO[bytes]], object], *, private: bool = False) -> None:
    """Write `data`, or let it write to the file it is given: `path` holds its old or its new content, never a part.

    Args:
        path: of the file; its folder is made where it is missing.
        data: bytes, or what writes to an open file.
        private: nobody but the owner may read the file.

    Raises:
        DataError: the file could not be written (disk full, no permission, no memory); the old one is untouched.
    """
    with completed(path) as temporary:
        mode = 0o600 if private else 0o666
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            try:
                if callable(data):
                    data(file)
                else:
                    file.write(data)
            except (RuntimeError, MemoryError) as error:  # torch.save reports a full disk as a RuntimeError
                raise OSError(errno.EIO, _reason(error)) from None
            file.flush()
            os.fsync(file.fileno())
    _sync_folder(path.parent)


@contextlib.contextmanager
def completed(path: str | Path) -> Iterator[Path]:
    """A name to write to; that file becomes `path` where the block ends without an error, and is removed otherwise.

    Raises:
        DataError: the file cannot be written; an old one is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def is_temporary(name: str) -> bool:
    """Whether a file has the name of one that `completed` has not finished."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(files: Iterable[Path], *, locked: bool = False) -> None:
    """Remove those among `files` that processes which were killed left unfinished; others stay.

    Args:
        locked: no other process writes there, so that what has the number of one that runs is left over as well.
    """
    for left in files:
        found = _TEMPORARY.fullmatch(left.name)
        if found and (locked or not _running(int(found[1]))):
            with contextlib.suppress(OSError):
                left.unlink()


def _running(process: int) -> bool:
    if os.name == "nt":  # signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_output(path: str | Path | None, *, folder: bool = False) -> None:
    """Check, before any work, that a file can be made at `path`, or a folder, and remove what killed calls left of it.

    None is fine.

    Raises:
        ConfigError: something else is there, or a folder above it may not be written to.
    """
    if path is None:
        return
    kind, other = ("folder", "file") if folder else ("file", "folder")
    if os.path.exists(path) and os.path.isdir(path) != folder:
        raise ConfigError(f"--out {path} is a {other}: name a {kind}")
    full = os.path.abspath(path)
    above = full if folder else os.path.dirname(full)
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
        why = "may not be written to" if os.path.isdir(above) else "is a file"
        raise ConfigError(f"--out {path} cannot be made, as {above} {why}: name a {kind} where you may write")
    made = Path(full)
    remove_temporaries(made.rglob(".*.tmp") if folder else made.parent.glob(f".{glob.escape(made.name)}.*.tmp"))


def save_run(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Save `state` as `folder/step-<step>.ckpt` and point `last.ckpt` at it; keep the newest `keep`.

    The payload is tensors and plain values only, so that `read` can load it without running code.
    """
    path = folder / f"step-{step:08d}.ckpt"
    payload = {"format": FORMAT, "step": step, **state}
    try:
        write_atomic(path, lambda file: torch.save(payload, file))
        _point(folder / "last.ckpt", path, payload)
    except DataError as error:
        short = "memory" if "memory" in str(error) else "space"
        raise CheckpointError(f"{error}; earlier checkpoints are untouched: free {short}, then --resume") from None
    for old in steps(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _point(last: Path, path: Path, payload: Mapping[str, Any]) -> None:
    """Make `last` another name of the checkpoint `path`, or a copy on file systems without hard links."""
    try:
        with completed(last) as link:
            os.link(path, link)
    except DataError:
        write_atomic(last, lambda file: torch.save(payload, file))


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
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
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
            f"checkpoint {path} cannot be read, it is damaged or not a checkpoint: {_instead(path)}"
        ) from None
    except Exception as error:  # foreign bytes make torch raise almost anything
        reason = " ".join(str(error).split())[:160]
        why = f" ({reason})" if " " in reason else ""  # the unpickler's bare numbers tell nobody anything
        raise CheckpointError(f"checkpoint {path} is damaged or not a checkpoint{why}: {_instead(path)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(value).__name__}, not a state dict")
    return value


def read_run(path: Path) -> dict[str, Any]:
    """Load a training checkpoint of this library; anything else is refused."""
    state = read(path)
    check_run(state, path)
    return state


def check_run(state: Mapping[str, Any], path: Path) -> None:
    """CheckpointError where `state`, read from `path`, is not a training checkpoint of this library."""
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a facessl training checkpoint (no mark {FORMAT!r} in it)")
    check(state, Run, path)


def write_backbone(path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """`backbone.safetensors` in timm's keys and, beside it, its card as `backbone.json`."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    write_atomic(path, safetensors_bytes(tensors, metadata={"card": to_json(card)}))
    write_atomic(path.with_suffix(".json"), to_json(card, indent=2).encode() + b"\n")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card (from the file itself, or the .json beside it; empty where there is none)."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no iterator there)
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


def _reason(error: RuntimeError | MemoryError) -> str:
    """What went wrong, also where torch's writer hides the system's own words."""
    root: BaseException = error
    while root.__context__ is not None:
        root = root.__context__
    if isinstance(root, MemoryError):
        return "not enough memory"
    return getattr(root, "strerror", None) or " ".join(str(root).split())[:160] or type(root).__name__


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def printable(name: str) -> str:
    r"""A file's name as text that CSV, JSON, Parquet and HTML can hold: its bytes that are not UTF-8 as `\xfc`."""

    def escaped(match: re.Match[str]) -> str:
        slashes, odd = match.groups()
        if odd[0] == "x":
            return 2 * slashes + odd
        return f"{2 * slashes}\\x{ord(odd) - 0xDC00:02x}"

    return _ODD.sub(escaped, name)


def csv_row(*values: object) -> bytes:
    """A line of CSV. Texts are `printable`, and one that a spreadsheet would run as a formula has a `'` in front."""
    cells = [printable(value) if isinstance(value, str) else value for value in values]
    for at, cell in enumerate(cells):
        if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
            cells[at] = "'" + cell
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def from_csv(cell: str) -> str:
    """The text that `csv_row` wrote as `cell`."""

    def byte(match: re.Match[str]) -> str:
        slashes, odd = match.groups()
        half = len(slashes) // 2 * "\\"
        return half + (chr(0xDC00 + int(odd, 16)) if len(slashes) % 2 else f"x{odd}")

    return _ESCAPED.sub(byte, cell.removeprefix("'") if _FORMULA.match(cell) else cell)
