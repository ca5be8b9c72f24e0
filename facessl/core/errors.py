"""Errors of users, beside `data.decode.ImageError`: the command line prints the sentence and exits 2."""

import difflib
import os
from collections.abc import Iterable, Sequence


class FaceSSLError(Exception):
    """Base of all expected errors: one sentence that names the value, the place and the fix."""


class UnknownName(FaceSSLError):
    """A plug-in or option that does not exist."""

    def __init__(self, kind: str, name: str, valid: Iterable[str]) -> None:
        valid = sorted(valid)
        near = difflib.get_close_matches(name, valid, n=5, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        shown = valid if len(valid) <= 20 else near or valid[:20]
        more = ", ..." if len(shown) < len(valid) else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}valid are {', '.join(shown) or 'none'}{more}")


class UnknownPlugin(UnknownName):
    """A method, source or task that does not exist, or whose file was not added."""

    def __str__(self) -> str:
        return f"{super().__str__()}; add your own with --plugin FILE.py, or facessl.core.plugins.add in Python"


class ConfigError(FaceSSLError):
    """A setting that cannot work."""


class PluginError(FaceSSLError):
    """A method, task, source or protocol that does not meet its contract."""


class DataError(FaceSSLError):
    """A source that cannot be read."""


class CheckpointError(FaceSSLError):
    """A checkpoint that cannot be written, read or matched."""


class TrainingError(FaceSSLError):
    """A run that cannot continue (a loss that is not finite, too many unreadable images)."""


class DataWarning(UserWarning):
    """An anomaly in a usable source; the command line prints the sentence alone."""


def instead_of(path: str | os.PathLike[str], otherwise: str) -> str:
    """What to do about a missing path: "did you mean" a file of a similar name, or `otherwise`."""
    above, name = os.path.split(os.fspath(path).rstrip("/"))
    near = difflib.get_close_matches(name, os.listdir(above or "."), n=1) if os.path.isdir(above or ".") else []
    return f"did you mean {os.path.join(above, near[0])}?" if near else otherwise


def no_run(path: str | os.PathLike[str], otherwise: str = "a run folder, a checkpoint or an exported backbone") -> str:
    """Message of a missing network: a file of a similar name, or what to name."""
    return f"{os.fspath(path)} does not exist: {instead_of(path, f'name {otherwise}')}"


def many(count: int, noun: str) -> str:
    """A number and its noun: 1 step, 2 steps."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(names: Sequence[str], most: int = 5) -> str:
    """First few names of a list, with their number if there are more."""
    shown = ", ".join(names[:most]) or "none"
    return f"{shown}, ... {len(names)} in all" if len(names) > most else shown
