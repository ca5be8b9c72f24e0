"""What others' checkpoints hold beside tensors and plain values, for torch's loader that runs no code.

numpy's own functions read and free memory that is not theirs where the file gives them a state for it; these stand-ins
build arrays and scalars of numbers alone, from exactly as many bytes as they have. Some functions that torch allows
take any amount of memory or time for a file of a few bytes; theirs take the arguments that pickles write.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import pathlib
import re
import reprlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, _weights_only_unpickler

_NUMBER = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")


class _DType:
    """`numpy.dtype` of a number: its code, then its byte order in the state."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise UnpicklingError(f"a numpy type {reprlib.repr(code)[:40]} is not a number's, and is refused")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.order, *inner = state
        if self.order not in ("<", ">", "=", "|") or any(part is not None for part in inner[:3]):
            raise UnpicklingError("a numpy type of several fields, which is refused")

    def array(self, data: object, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(self.order + self.code)
        if not (isinstance(data, bytes) and isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
            raise UnpicklingError(f"a numpy array of shape {reprlib.repr(shape)[:40]}, which is refused")
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


def _encode(text: str, code: str = "latin1") -> bytes:
    """`codecs.encode` as pickles write bytes: the codec `hex` would double their length at each call."""
    if not isinstance(text, str) or code not in ("latin1", "latin-1"):
        raise UnpicklingError("an encoding other than that of bytes, which is refused")
    return text.encode("latin1")


def _of(kind: type, *given: type) -> Callable[..., Any]:
    """Calls `kind` with arguments of these types alone: a tensor may repeat a number billions of times."""

    def called(*arguments: Any) -> Any:
        if not all(isinstance(argument, given) for argument in arguments):
            raise UnpicklingError(f"a {kind.__name__} of another type, which is refused")
        return kind(*arguments)

    return called


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    if not isinstance(pairs, list | tuple) or not all(isinstance(pair, list | tuple) for pair in pairs):
        raise UnpicklingError("an OrderedDict of another type, which is refused")
    return OrderedDict(pairs)


def _tensor(*given: object) -> Tensor:
    """`torch.Tensor`, empty: of nested lists it would count a list that is repeated each time."""
    if given:
        raise UnpicklingError("a torch.Tensor of other values, which is refused")
    return Tensor()


def _of_type(rebuild: Callable[..., Any], kind: Any, *rest: Any) -> Any:
    return torch._tensor._rebuild_from_type_v2(rebuild, Tensor if kind is _tensor else kind, *rest)


def _on_device(tensor: Tensor, *rest: Any) -> Any:
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UnpicklingError("a tensor of repeated values, which is refused")
    return torch._utils._rebuild_device_tensor_from_cpu_tensor(tensor, *rest)


class _Bytes:
    """`torch.UntypedStorage`, of which the loader reads the dtype alone."""

    dtype = torch.uint8
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        # The loader compares what a file calls with all that may be called, and shows the rest of it in its message,
        # which has no end for a list of lists that are the same one.
        if isinstance(other, list | tuple | dict):
            raise UnpicklingError(f"a call of a {type(other).__name__}, which is refused")
        return self is other


#: What torch allows by name, and what is used instead.
_STAND_INS: dict[str, Any] = {
    "_codecs.encode": _encode,
    "builtins.set": _of(set, list, tuple),
    "collections.Counter": _of(Counter, dict),
    "collections.OrderedDict": _ordered,
    "torch.Size": _of(torch.Size, list, tuple),
    "torch.Tensor": _tensor,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _on_device,
    "torch.storage.UntypedStorage": _Bytes(),
}
#: What it allows and is refused, beside old classes of tensors (`torch.FloatTensor`).
_REFUSED = ("builtins.bytearray", "torch.storage.TypedStorage")
_LOADING = threading.Lock()

_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
#: With the names that pickles have for them, as `torch.serialization.safe_globals` takes them.
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    *((_of(pathlib.PurePosixPath, str), f"pathlib.{inner}PosixPath") for inner in ("", "_local.")),
    *((_of(pathlib.PureWindowsPath, str), f"pathlib.{inner}WindowsPath") for inner in ("", "_local.")),
    (_no_bytes, "builtins.bytes"),
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_scalar, f"{core}.scalar") for core in _CORES),
    *((_reconstruct, f"{core}._reconstruct") for core in _CORES),
]


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Have `torch.load(weights_only=True)` use these stand-ins, in all threads, until the block ends."""
    allowed = _weights_only_unpickler._get_allowed_globals()  # a cached dict, which torch looks up before our list
    with _LOADING, torch.serialization.safe_globals(_SAFE_GLOBALS):
        before = dict(allowed)
        for name in before:
            if name in _REFUSED or (name.endswith("Tensor") and name not in _STAND_INS):
                del allowed[name]
        allowed.update({name: _STAND_INS[name] for name in before.keys() & _STAND_INS.keys()})
        try:
            yield
        finally:
            allowed.update(before)
