"""Tables that a source looks its images up in: a few numpy arrays, mapped from one cached file.

A million Python strings cost 100 MB in every worker, as counting references touches the pages that a fork shares.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from facessl.core.errors import DataError

_DTYPES = {
    **{"BOOL": np.bool_, "U8": np.uint8, "I32": np.int32, "I64": np.int64},
    **{"F16": np.float16, "F32": np.float32, "F64": np.float64},
}


class Table:
    """Named columns and a note about what they were made from.

    A column of texts is stored as two arrays: `name` (all bytes one after the other) and `name.ends` (n + 1
    offsets). Pickling a table that lies in a file sends only the file's name.

    Attributes:
        columns: numpy arrays, read-only if they are mapped.
        note: JSON values; a saved table has a `stamp` of its own among them.
        file: the file behind the arrays; None: they are in memory.
    """

    def __init__(self, columns: dict[str, np.ndarray], note: dict[str, Any], file: Path | None = None) -> None:
        self.columns, self.note, self.file = columns, note, file

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def text(self, column: str, index: int) -> bytes:
        """Entry `index` of a column of texts."""
        ends = self.columns[column + ".ends"]
        return self.columns[column][ends[index] : ends[index + 1]].tobytes()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is None:
            return Table, (self.columns, self.note)
        return _reopen, (self.file, self.note)

    def saved(self, file: Path) -> Table:
        """The same table mapped from `file`, written atomically; this table itself where that is impossible."""
        table = Table(self.columns, self.note | {"stamp": uuid.uuid4().hex})
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(table.columns, partial, metadata={"note": json.dumps(table.note)})
            partial.replace(file)
        except Exception:  # safetensors has errors of its own for a full disk; a cache may fail, a run may not
            with contextlib.suppress(OSError):
                partial.unlink()
            return self
        return load(file) or self


def load(file: Path) -> Table | None:
    """Map a table; None if there is no such file or it is damaged."""
    try:
        # safetensors' own reader copies; the layout (8 bytes, JSON, arrays) is simple enough to map.
        raw = np.asarray(np.memmap(file, np.uint8, mode="r"))
        length = int.from_bytes(raw[:8].tobytes(), "little")
        header, raw = json.loads(raw[8 : 8 + length].tobytes()), raw[8 + length :]
        note = json.loads(header.pop("__metadata__")["note"])
        columns = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            if stop > len(raw):
                return None
            columns[name] = raw[start:stop].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Table(columns, note, file)


def texts(name: str, items: Iterable[bytes]) -> dict[str, np.ndarray]:
    """The two arrays of a column of texts."""
    items = list(items)
    ends = np.zeros(len(items) + 1, np.int64)
    np.cumsum([len(item) for item in items], out=ends[1:])
    return {name: np.frombuffer(b"".join(items), np.uint8), name + ".ends": ends}


def cache_file(kind: str, *identity: str) -> Path:
    """Path of a source's table: in `$XDG_CACHE_HOME/facessl/` or `~/.cache/facessl/`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256("\0".join(identity).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return Path(base) / "facessl" / f"{kind}-{name}.safetensors"


def class_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their labels: by number where all are numbers, else alphabetically."""
    unique = set(names)
    return sorted(unique, key=int if all(name.isdecimal() for name in unique) else str)


def _reopen(file: Path, note: dict[str, Any]) -> Table:
    table = load(file)
    if table is None or table.note != note:
        raise DataError(f"the index {file} was replaced while the run was starting: start it again")
    return table
