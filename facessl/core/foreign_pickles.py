"""What others' checkpoints hold beside tensors and plain values, for torch's loader that runs no code.

numpy's own functions read and free memory that is not theirs where the file gives them a state for it; these stand-ins
build arrays and scalars of numbers alone, from exactly as many bytes as they have.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import re
from pickle import UnpicklingError
from typing import Any

import numpy as np

_NUMBER = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")


class _DType:
    """`numpy.dtype` of a number: its code, then its byte order in the state."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise UnpicklingError(f"a numpy type {str(code)[:40]!r} is not a number's, and is refused")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.order, *inner = state
        if self.order not in ("<", ">", "=", "|") or any(part is not None for part in inner[:3]):
            raise UnpicklingError("a numpy type of several fields, which is refused")

    def array(self, data: object, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(self.order + self.code)
        if not (isinstance(data, bytes) and isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
            raise UnpicklingError(f"a numpy array of shape {str(shape)[:40]}, which is refused")
        if len(data) != dtype.itemsize * math.prod(shape):
            raise UnpicklingError(f"a numpy array of shape {shape} in {len(data)} bytes, which is refused")
        return np.frombuffer(data, dtype).reshape(shape)


class _Array(np.ndarray):
    """`numpy.ndarray`, empty until it is given its state, once: a tensor may share its memory afterwards."""

    def __new__(cls, *_: object) -> _Array:
        array = super().__new__(cls, 0, np.uint8)
        array._empty = True
        return array

    def __array_finalize__(self, _: object) -> None:
        self._empty = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not self._empty or not isinstance(dtype, _DType):
            raise UnpicklingError("a numpy array of no numbers, which is refused")
        self._empty = False
        array = dtype.array(data, shape)
        super().__setstate__((1, array.shape, array.dtype, bool(fortran), data))  # type: ignore[arg-type]


def _scalar(dtype: _DType, data: bytes) -> Any:
    return _DType.array(dtype, data, ())[()]


def _no_bytes() -> bytes:
    """What pickles write for empty bytes is a call of `bytes`, which could also be asked for gigabytes."""
    return b""


def _reconstruct(*_: object) -> _Array:
    return _Array()


_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
#: With the names that pickles have for them, as `torch.serialization.safe_globals` takes them.
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    *((pathlib.PurePosixPath, f"pathlib.{inner}PosixPath") for inner in ("", "_local.")),
    *((pathlib.PureWindowsPath, f"pathlib.{inner}WindowsPath") for inner in ("", "_local.")),
    (_no_bytes, "builtins.bytes"),
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_scalar, f"{core}.scalar") for core in _CORES),
    *((_reconstruct, f"{core}._reconstruct") for core in _CORES),
]
