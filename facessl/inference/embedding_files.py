"""Files of embeddings, one row per image: .parquet, .npy with its names beside it, and .csv.

| file | what it holds |
| --- | --- |
| `x.parquet` | columns `path`, `label` and `label_name` where there are labels, `embedding` (list of C float32) |
| `x.npy` | (N, C) float32; the other columns are in `x.names.csv` |
| `x.csv` | the same columns, with `e0`, `e1`, ... for the embedding |

All of them say which network made them (`embed.network_mark`): Parquet in its metadata, CSV in a column `network`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from facessl.core import files, tables
from facessl.core.errors import ConfigError, DataError
from facessl.core.lock import only_writer
from facessl.inference.embed import Embeddings, example

#: Rows of a row group of a Parquet file, at least.
ROWS = 2048
ENDINGS = (".parquet", ".npy", ".csv")
_NETWORK = b"facessl.network"
#: Bytes of the largest file that is read, and of the head of an .npy file.
_MOST, _HEAD = 1 << 40, 128


def check_ending(path: str | Path) -> None:
    """ConfigError unless `path` ends as a file of embeddings does."""
    if Path(path).suffix not in ENDINGS:
        raise ConfigError(f"{path} is not a name for embeddings: it must end in {', '.join(ENDINGS)}")


def write_embeddings(path: str | Path, rows: Embeddings | Iterable[Embeddings]) -> tuple[int, list[tuple[str, str]]]:
    """Write embeddings as the ending of `path` says; the file appears only when it is complete.

    Memory holds one row group (`ROWS` rows) at a time.

    Args:
        path: file ending in .parquet, .npy or .csv; its folder is made.
        rows: all embeddings, or batches of them from `embedding_batches`.

    Returns:
        Number of rows written, and (key, reason) of the images that were skipped.

    Raises:
        ConfigError: another ending.
        DataError: there is no row to write, or the file cannot be written.
    """
    path = Path(path)
    check_ending(path)
    written = 0
    skipped: list[tuple[str, str]] = []
    waiting: list[pa.Table] = []
    with only_writer(path, folder=False), contextlib.ExitStack() as stack:
        write: Callable[[pa.Table], object] | None = None
        for part in itertools.chain([rows] if isinstance(rows, Embeddings) else rows, [None]):
            if part is not None:
                skipped.extend(part.skipped)
                waiting += [_table(part, path.suffix)] if len(part) else []
            if waiting and (part is None or sum(map(len, waiting)) >= ROWS):
                write = write or _writer(path, waiting[0].schema, stack)
                write(pa.concat_tables(waiting))
                written += sum(map(len, waiting))
                waiting.clear()
        if write is None:
            raise DataError(f"nothing to write to {path}: no image could be read{example(skipped)}")
    return written, skipped


def _table(part: Embeddings, suffix: str) -> pa.Table:
    text = tables.printable if suffix == ".parquet" else tables.csv_cell
    columns: dict[str, Any] = {"path": pa.array(map(text, part.keys), pa.string())}
    if part.labels is not None:
        columns["label"] = pa.array(part.labels, pa.int64(), mask=part.labels < 0)
        if part.label_names:
            names = [text(part.label_names[i]) if i >= 0 else None for i in part.labels]
            columns["label_name"] = pa.array(names, pa.string())
    if suffix != ".parquet":
        columns["network"] = pa.array([part.network] * len(part), pa.string())
    flat = pa.array(np.ascontiguousarray(part.array, np.float32).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, part.array.shape[1])
    return pa.table(columns).replace_schema_metadata({_NETWORK: part.network.encode()})


def _writer(path: Path, schema: pa.Schema, stack: contextlib.ExitStack) -> Callable[[pa.Table], object]:
    """What writes tables of this schema to `path`, which appears when `stack` is closed without an error."""
    if path.suffix == ".npy":
        names = stack.enter_context(files.completed(_names(path)))
        table = stack.enter_context(pa_csv.CSVWriter(names, schema.remove(schema.get_field_index("embedding"))))
        partial = stack.enter_context(files.completed(path))
        array = stack.enter_context(_Npy(partial))

        def write(rows: pa.Table) -> None:
            table.write_table(rows.drop_columns("embedding"))
            array.append(array_of(rows["embedding"]))

        return write
    partial = stack.enter_context(files.completed(path))
    if path.suffix == ".csv":
        wide = stack.enter_context(pa_csv.CSVWriter(partial, _wide(schema.empty_table()).schema))
        return lambda rows: wide.write_table(_wide(rows))
    # Numbers that hardly repeat make a dictionary that is larger than they are and takes longest to build.
    writer = stack.enter_context(pq.ParquetWriter(partial, schema, use_dictionary=["label_name"]))
    write_rows: Callable[[pa.Table], object] = writer.write_table
    return write_rows


def _names(path: Path) -> Path:
    """The table beside an .npy file."""
    return path.with_suffix(".names.csv")


def _wide(rows: pa.Table) -> pa.Table:
    """A table with a column for each number of the embedding."""
    array = array_of(rows["embedding"])
    columns = {name: rows[name] for name in rows.column_names if name != "embedding"}
    return pa.table(columns | {f"e{i}": pa.array(values) for i, values in enumerate(np.ascontiguousarray(array.T))})


class _Npy:
    """An .npy file of rows of float32 whose number is known at the end."""

    def __init__(self, path: Path) -> None:
        self.file, self.rows, self.width = path.open("wb"), 0, 0
        self.file.write(bytes(_HEAD))

    def __enter__(self) -> _Npy:
        return self

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, "<f4").data)
        self.rows, self.width = self.rows + len(rows), rows.shape[1]

    def __exit__(self, *_: object) -> None:
        head = io.BytesIO()
        shape = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.width)}
        np.lib.format.write_array_header_1_0(head, shape)  # leaves room for more digits
        with self.file:
            self.file.seek(0)
            self.file.write(head.getvalue())


def read_embeddings(path: str | Path) -> Embeddings:
    """The rows of a file of embeddings; classes are numbered in the order of their names.

    Raises:
        DataError: missing, damaged, of another kind or empty, or a row that is not finite, which is named.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise DataError(
            f"{path} is not a file of embeddings: name one that `facessl embed` wrote ({', '.join(ENDINGS)})"
        )
    try:
        table, array = _read(path)
        keys = [_text(path, cell) for cell in table["path"].to_pylist()]
        network = (table.schema.metadata or {}).get(_NETWORK, b"").decode()
        if not network and "network" in table.column_names:
            (network,) = set(table["network"].to_pylist())  # ValueError: of several networks
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} does not exist: name a file that `facessl embed` wrote") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is not a file that `facessl embed` wrote, or is damaged ({reason})") from None
    if not len(keys):
        raise DataError(f"{path} has no rows: write it again with `facessl embed`")
    finite = np.isfinite(array.sum(1, dtype=np.float64))
    if not finite.all():
        bad = int(finite.argmin())
        raise DataError(
            f"the embedding of {tables.printable(keys[bad])} in {path} is not finite: embed the images again"
        )
    labels, names = _labels(path, table)
    return Embeddings(array, keys, np.arange(len(keys)), labels, names, network=network or "")


def _read(path: Path) -> tuple[pa.Table, np.ndarray]:
    """The table and the embeddings (N, C) float32. Raises OSError, ValueError, KeyError, TypeError, ArrowException."""
    with files.open_regular(_names(path) if path.suffix == ".npy" else path, most=_MOST) as file:
        if path.suffix == ".parquet":
            table = pq.read_table(file)
            return table, array_of(table["embedding"])
        text = dict.fromkeys(("path", "label", "label_name", "network"), pa.string())
        lines = pa_csv.ParseOptions(newlines_in_values=True)
        options = pa_csv.ConvertOptions(column_types=text, strings_can_be_null=False)
        table = pa_csv.read_csv(file, parse_options=lines, convert_options=options)
    if path.suffix == ".csv":
        numbers = [name for name in table.column_names if name[:1] == "e" and name[1:].isdecimal()]
        columns = [table[name].to_numpy().astype(np.float32) for name in numbers]
        return table, np.stack(columns, 1)
    with files.open_regular(path, most=_MOST) as file:
        array = np.load(file, allow_pickle=False)
    if array.ndim != 2 or array.dtype.kind != "f" or len(array) != len(table):
        raise ValueError(f"{array.dtype} of shape {array.shape} for {len(table)} names")
    return table, np.asarray(array, np.float32)


def array_of(column: pa.ChunkedArray) -> np.ndarray:
    """(N, C) float32 of a column of lists."""
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type) or column.null_count:
        raise TypeError(f"the column embedding holds {kind}")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(-1, kind.list_size)


def _text(path: Path, cell: str) -> str:
    return tables.from_printable(cell) if path.suffix == ".parquet" else tables.from_csv(cell)


def _labels(path: Path, table: pa.Table) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(N,) class numbers, -1 unknown, and the names of the classes; None, () without labels."""
    column = next((name for name in ("label_name", "label") if name in table.column_names), None)
    if column is None:
        return None, ()
    cells = ["" if cell is None else _text(path, str(cell)) for cell in table[column].to_pylist()]
    names = sorted({cell for cell in cells if cell})
    number = {name: i for i, name in enumerate(names)}
    return np.array([number.get(cell, -1) for cell in cells], np.int64), tuple(names)
