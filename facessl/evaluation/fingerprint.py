"""Names for what features were made from: change one image, option or weight, and the name changes."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
from array import array
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.index import Table
from facessl.data.source import Source

#: Images whose content is looked at; of the others the key, size and time of the file are enough.
_LOOKED_AT = 8
#: What says when an index was made, not what it says.
_VOLATILE = frozenset({"time", "stamp"})
_DEPTH = 32


def of_source(source: Source) -> str:
    """Class, options and lists of a source, the keys of its images, the size and time of their files, some images."""
    out = _Digest()
    out.add(type(source).__qualname__)
    out.add(source)
    for i in range(len(source)):
        key = source.key(i)
        out.add(key)
        try:
            status = os.stat(key)
        except (OSError, ValueError):  # a member of a shard, a drawn image
            continue
        out.add((status.st_size, status.st_mtime_ns))
    for i in np.unique(np.linspace(0, len(source) - 1, _LOOKED_AT).round().astype(int)).tolist() if len(source) else ():
        try:
            sample = source[i]
        except DataError as error:
            out.add(str(error))
            continue
        out.add([getattr(sample, f.name) for f in dataclasses.fields(Sample)])
    return out.name()


class _Digest:
    """Hash of nested values, the same in every process (unlike their pickle: sets have no order)."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._inside: list[int] = []

    def name(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | str | bytes | PurePath | enum.Enum | range | slice):
            self._text(f"{type(value).__name__}:")
            self._hash.update(value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogateescape"))
            self._text(";")
        elif isinstance(value, np.ndarray | np.generic | array):
            numbers = np.ascontiguousarray(value)
            self._text(f"{numbers.dtype}{numbers.shape}")
            self._hash.update(repr(numbers.tolist()).encode() if numbers.dtype.hasobject else numbers.tobytes())
        else:
            self._nested(value)

    def _nested(self, value: Any) -> None:
        if id(value) in self._inside or len(self._inside) == _DEPTH:
            return
        self._inside.append(id(value))
        if isinstance(value, Table):  # not where it is kept
            self._members(value.columns | value.note)
        elif isinstance(value, dict):
            self._members(value)
        elif isinstance(value, set | frozenset):
            self._each(sorted(value, key=repr))
        elif isinstance(value, list | tuple):
            self._each(value)
        else:
            self._text(type(value).__qualname__)
            self._each(_state(value))
        self._inside.pop()

    def _members(self, values: dict[Any, Any]) -> None:
        self._text("{")
        for key in sorted(values, key=repr):
            if key not in _VOLATILE:
                self.add(key)
                self.add(values[key])
        self._text("}")

    def _each(self, values: Iterable[Any]) -> None:
        self._text("[")
        for value in values:
            self.add(value)
        self._text("]")

    def _text(self, text: str) -> None:
        self._hash.update(text.encode())


def _state(value: Any) -> list[Any]:
    """What a copy of an object would be made from: without its open files and kept images, where it says so."""
    try:
        state = value.__getstate__()
    except (TypeError, AttributeError):  # an object that cannot be copied is known by its class alone
        return []
    return list(state) if isinstance(state, tuple) else [state]
