"""Files of embeddings, one row per image: .parquet, .npy with its names beside it, and .csv.

| file | what it holds |
| --- | --- |
| `x.parquet` | columns `path`, `label` and `label_name` where there are labels, `embedding` (list of C float32) |
| `x.npy` | (N, C) float32; the other columns are in `x.names.csv` |
| `x.csv` | the same columns, with `e0`, `e1`, ... for the embedding |

All of them say which network made them (`embed.network_id`): Parquet in its metadata, CSV in a column `network`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from facessl.core import escape, files
from facessl.core.errors import ConfigError, DataError, instead_of
from facessl.core.lock import only_writer

#: Rows of a row group of a Parquet file, at least.
ROWS = 2048
ENDINGS = (".parquet", ".npy", ".csv")
NETWORK = b"facessl.network"
#: Bytes of the head of an .npy file that is written, and of the longest one that is read.
_HEAD, _LONGEST_HEAD = 128, 512
#: Columns that are read, and those of them that hold text.
_TEXTS = ("path", "label_name", "network")
_COLUMNS = (*_TEXTS, "label", "embedding")
#: A Parquet file may need so many times its size in memory, and always so many bytes. Embeddings hardly compress.
_FACTOR, _ALWAYS = 32, 64 << 20


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N images that could be read, in the order of their source.

    Attributes:
        array: (N, C) float32.
        keys: what a person finds each image by.
        index: (N,) int64 positions in the source.
        labels: (N,) int64 class indices; None if the source has none.
        label_names: class names by index; empty if there are none.
        skipped: (key, reason) of images that could not be read.
        network: what made them (`network_id`); empty if that is not known.
    """

    array: np.ndarray
    keys: list[str]
    index: np.ndarray
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    network: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def classes(self) -> list[str]:
        """Class of each image; "" without one."""
        if self.labels is None:
            return [""] * len(self)
        names = self.label_names or tuple(map(str, range(int(self.labels.max(initial=-1)) + 1)))
        return [names[i] if i >= 0 else "" for i in self.labels.tolist()]


def example(skipped: Sequence[tuple[str, str]]) -> str:
    """The first of the images that could not be read, for the end of a sentence."""
    return f" (the first: {skipped[0][0]}: {skipped[0][1]})" if skipped else ""


def write_embeddings(path: str | Path, rows: Embeddings | Iterable[Embeddings]) -> tuple[int, list[tuple[str, str]]]:
    """Write embeddings (all, or batches of them) as the ending .parquet, .npy or .csv of `path` says.

    Memory holds one row group (`ROWS` rows) at a time.

    Returns:
        Number of rows written, and (key, reason) of the images that were skipped.

    Raises:
        ConfigError: another ending.
        DataError: there is no row to write, or the file cannot be written.
    """
    files.check_ending(path, "embeddings", ENDINGS)
    with only_writer(path, folder=False):
        return write_locked(Path(path), [rows] if isinstance(rows, Embeddings) else rows)


def write_locked(path: Path, rows: Iterable[Embeddings], *, private: bool = False) -> tuple[int, list[tuple[str, str]]]:
    """`write_embeddings` for a caller that is the file's only writer already."""
    written = 0
    skipped: list[tuple[str, str]] = []
    waiting: list[pa.Table] = []
    with contextlib.ExitStack() as stack:
        write: Callable[[pa.Table], object] | None = None
        for part in itertools.chain(rows, [None]):
            if part is not None:
                skipped.extend(part.skipped)
                waiting += [_table(part, path.suffix)] if len(part) else []
            if waiting and (part is None or sum(map(len, waiting)) >= ROWS):
                write = write or _writer(path, waiting[0].schema, stack, private)
                write(pa.concat_tables(waiting))
                written += sum(map(len, waiting))
                waiting.clear()
        if write is None:
            raise DataError(f"nothing to write to {path}: no image could be read{example(skipped)}")
    return written, skipped


def _table(part: Embeddings, suffix: str) -> pa.Table:
    text = escape.printable if suffix == ".parquet" else escape.csv_cell
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
    return pa.table(columns).replace_schema_metadata({NETWORK: part.network.encode()})


def _writer(path: Path, schema: pa.Schema, stack: contextlib.ExitStack, private: bool) -> Callable[[pa.Table], object]:
    """Return a function that writes tables of a schema to `path`, which appears when `stack` closes without error."""
    if path.suffix == ".npy":
        names = stack.enter_context(files.completed(_names(path), private=private))
        table = stack.enter_context(pa_csv.CSVWriter(names, schema.remove(schema.get_field_index("embedding"))))
        partial = stack.enter_context(files.completed(path, private=private))
        array = stack.enter_context(_Npy(partial))

        def write(rows: pa.Table) -> None:
            table.write_table(rows.drop_columns("embedding"))
            array.append(array_of(rows["embedding"]))

        return write
    partial = stack.enter_context(files.completed(path, private=private))
    if path.suffix == ".csv":
        wide = stack.enter_context(pa_csv.CSVWriter(partial, _wide(schema.empty_table()).schema))
        return lambda rows: wide.write_table(_wide(rows))
    # Numbers that hardly repeat make a dictionary that is larger than they are and takes longest to build.
    writer = stack.enter_context(pq.ParquetWriter(partial, schema, use_dictionary=["label_name"]))
    write_rows: Callable[[pa.Table], object] = writer.write_table
    return write_rows


def _names(path: Path) -> Path:
    return path.with_suffix(".names.csv")


def _wide(rows: pa.Table) -> pa.Table:
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


def rows_of(given: str | os.PathLike[str] | Embeddings) -> Embeddings:
    """Embeddings, or those of the file that `given` names.

    Raises:
        ConfigError: neither, such as an array.
        DataError: as `read_embeddings`.
    """
    if isinstance(given, Embeddings):
        return given
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(
            f"embeddings of type {type(given).__name__} do not name their images: give facessl.embeddings(...), or a "
            "file that `facessl embed` wrote"
        )
    return read_embeddings(Path(given))


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
        network = (table.schema.metadata or {}).get(NETWORK, b"").decode()
        if not network and "network" in table.column_names:
            (network,) = set(table["network"].to_pylist())  # ValueError: of several networks
        labels, names = _labels(path, table)
    except FileNotFoundError as error:
        advice = instead_of(error.filename, "name a file that `facessl embed` wrote")
        raise DataError(f"{error.filename} does not exist: {advice}") from None
    except MemoryError:
        raise DataError(f"{path} does not fit in memory: embed fewer images, or use a larger machine") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is not a file that `facessl embed` wrote, or is damaged ({reason})") from None
    if not len(keys):
        raise DataError(f"{path} has no rows: write it again with `facessl embed`")
    finite = np.isfinite(array.sum(1, dtype=np.float64))
    if not finite.all():
        bad = int(finite.argmin())
        raise DataError(
            f"the embedding of {escape.printable(keys[bad])} in {path} is not finite: embed the images again"
        )
    return Embeddings(array, keys, np.arange(len(keys)), labels, names, network=network or "")


def _read(path: Path) -> tuple[pa.Table, np.ndarray]:
    """The table and the embeddings (N, C) float32. Raises what `read_embeddings` makes a sentence of."""
    if path.suffix == ".parquet":
        with files.open_regular(path, most=None) as file:
            table = _read_parquet(file)
        return table, array_of(table["embedding"])
    with files.open_regular(_names(path) if path.suffix == ".npy" else path, most=None) as file:
        text = dict.fromkeys((*_TEXTS, "label"), pa.string())
        lines = pa_csv.ParseOptions(newlines_in_values=True)
        options = pa_csv.ConvertOptions(column_types=text, strings_can_be_null=False)
        table = pa_csv.read_csv(file, pa_csv.ReadOptions(use_threads=False), lines, options)
    if path.suffix == ".csv":
        numbers = [name for name in table.column_names if name[:1] == "e" and name[1:].isdecimal()]
        columns = [table[name].to_numpy().astype(np.float32) for name in numbers]
        return table, np.stack(columns, 1)
    with files.open_regular(path, most=None) as file:
        return table, _read_npy(file, len(table))


def _read_parquet(file: IO[bytes]) -> pa.Table:
    """The known columns of a Parquet file. ValueError if they need far more memory than the file has bytes."""
    size = os.fstat(file.fileno()).st_size
    most = max(_ALWAYS, _FACTOR * size)
    metadata = pq.read_metadata(file)
    schema = metadata.schema.to_arrow_schema()
    kind = schema.field("embedding").type
    _check_list(kind)
    needed = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] in _COLUMNS:  # an encoding repeats values in a few bytes
                needed += max(column.total_uncompressed_size, 4 * column.num_values, 0)
    needed = max(needed, 4 * metadata.num_rows * kind.list_size)
    if needed <= most:
        texts = [name for name in _TEXTS if name in schema.names and pa.types.is_string(schema.field(name).type)]
        # Threads of Arrow's that have not ended when the process does can abort it.
        with pq.ParquetFile(file, metadata=metadata, read_dictionary=texts, pre_buffer=False) as parquet:
            table = parquet.read([name for name in schema.names if name in _COLUMNS], use_threads=False)
        for chunk in (chunk for name in texts for chunk in table[name].chunks):  # a long text may be repeated as well
            needed += pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
    if needed > most:
        raise ValueError(f"{needed:,} bytes of memory for a file of {size:,}")
    return table


def _read_npy(file: IO[bytes], rows: int) -> np.ndarray:
    """(N, C) float32 of an .npy file, whose head must fit its size. ValueError: another kind of array."""
    read_head = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, _, kind = read_head[np.lib.format.read_magic(file)](file, max_header_size=_LONGEST_HEAD)
    except (ValueError, LookupError, RecursionError, MemoryError):  # of Python's parser, not of the machine
        raise ValueError("it does not begin as an .npy file does") from None
    if len(shape) != 2 or kind.kind != "f" or shape[0] != rows:
        raise ValueError(f"{kind} of shape {shape} for {rows} names")
    size, needed = os.fstat(file.fileno()).st_size - file.tell(), math.prod(shape) * kind.itemsize
    if needed != size:
        raise ValueError(f"{size:,} bytes of numbers where the shape {shape} needs {needed:,}")
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False, max_header_size=_LONGEST_HEAD)
    return np.asarray(array, np.float32)


def _check_list(kind: pa.DataType) -> None:
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise TypeError(f"the column embedding holds {kind}")


def array_of(column: pa.ChunkedArray) -> np.ndarray:
    """(N, C) float32 of a column of lists."""
    _check_list(column.type)
    if column.null_count:
        raise TypeError("the column embedding has cells without a value")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(-1, column.type.list_size)


def _text(path: Path, cell: str) -> str:
    return escape.from_printable(cell) if path.suffix == ".parquet" else escape.from_csv(cell)


def _labels(path: Path, table: pa.Table) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(N,) class numbers, -1 unknown, and the names of the classes; None, () without labels."""
    column = next((name for name in ("label_name", "label") if name in table.column_names), None)
    if column is None:
        return None, ()
    kind = table[column].type
    if pa.types.is_temporal(kind) or pa.types.is_nested(kind):
        raise TypeError(f"the column {column} holds {kind}")
    cells = ["" if cell is None else _text(path, str(cell)) for cell in table[column].to_pylist()]
    names = sorted({cell for cell in cells if cell})
    number = {name: i for i, name in enumerate(names)}
    return np.array([number.get(cell, -1) for cell in cells], np.int64), tuple(names)
