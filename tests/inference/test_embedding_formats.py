"""Files of embeddings: every format gives back what was written, and a file of another kind is one sentence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facessl.core.errors import DataError
from facessl.inference.embedding_formats import ENDINGS, Embeddings, read_embeddings, write_embeddings

NAMES = [
    "a.jpg",
    "=1+1.jpg",
    "'q'.jpg",
    'c"d,e.jpg',
    "line\nbreak.jpg",
    "caf\udce9.jpg",
    r"x\xfc.jpg",
    "ü/日本.jpg",
    " .jpg",
]


def rows(array: np.ndarray | None = None, names: list[str] = NAMES) -> Embeddings:
    array = np.random.default_rng(0).standard_normal((len(names), 3)) * 1e-3 if array is None else array
    labels = np.arange(len(names)) % 3 - 1
    return Embeddings(array.astype(np.float32), names, np.arange(len(names)), labels, ("=x", "y,z"), network="fp32:ab")


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back(ending: str, tmp_path: Path) -> None:
    written = rows()
    half = len(NAMES) // 2
    parts = [rows(written.array[i], NAMES[i]) for i in (slice(half), slice(half, None))]
    assert write_embeddings(tmp_path / "new" / f"e{ending}", parts) == (len(NAMES), [])
    found = read_embeddings(tmp_path / "new" / f"e{ending}")
    np.testing.assert_array_equal(found.array, written.array)
    assert found.keys == NAMES
    assert found.label_names == ("=x", "y,z")
    assert found.labels.tolist() == [*parts[0].labels, *parts[1].labels]
    assert found.network == "fp32:ab"
    assert np.load(tmp_path / "new" / "e.npy").shape == written.array.shape if ending == ".npy" else True


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_row_that_is_not_finite_is_named(ending: str, tmp_path: Path) -> None:
    array = np.ones((len(NAMES), 3))
    array[2, 1] = np.nan
    write_embeddings(tmp_path / f"e{ending}", rows(array))
    with pytest.raises(DataError, match=r"embedding of 'q'\.jpg in .* is not finite"):
        read_embeddings(tmp_path / f"e{ending}")


def table(numbers: np.ndarray, **columns: pa.Array) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1])
    return pa.table({"path": pa.array(["a"] * len(numbers)), **columns, "embedding": lists})


@pytest.mark.fault("E12", "a Parquet file of 3 KB took hundreds of MB, an .npy file of 192 bytes asked for 8 TB")
def test_a_small_file_of_many_numbers_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = table(np.zeros((20_000, 1000), np.float32))
    pq.write_table(zeros, tmp_path / "packed.parquet", compression="zstd", use_dictionary=False)
    pq.write_table(zeros, tmp_path / "repeated.parquet")
    few = np.random.default_rng(0).standard_normal((300, 2), np.float32)
    pq.write_table(table(few).set_column(0, "path", [["a" * (1 << 18)] * 300]), tmp_path / "texts.parquet")
    (tmp_path / "huge.names.csv").write_text("path\na\nb\n")
    with open(tmp_path / "huge.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2, 1 << 40)})
    for name in ("texts", "packed", "repeated"):  # of texts the lengths are known when they have been read
        with pytest.raises(DataError, match="bytes of memory for a file of"):
            read_embeddings(tmp_path / f"{name}.parquet")
        monkeypatch.setattr(pq.ParquetFile, "read", None)
    with pytest.raises(DataError, match="0 bytes of numbers where the shape"):
        read_embeddings(tmp_path / "huge.npy")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
@pytest.mark.fault("E9", "a command that had read Parquet aborted now and then when it ended, by a thread of Arrow's")
def test_reading_parquet_leaves_no_thread(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.parquet", rows())
    script = (
        "import os, sys; from facessl.inference.embedding_formats import read_embeddings;"
        "before = os.listdir('/proc/self/task'); read_embeddings(sys.argv[1]);"
        "sys.exit(os.listdir('/proc/self/task') != before)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "e.parquet")], check=True)


@pytest.mark.fault("E9", "a zip or a deep header as .npy, a column that is there twice and dates ended in tracebacks")
def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    for name in ("zip", "deep"):
        (tmp_path / f"{name}.names.csv").write_text("path\na\nb\n")
    with open(tmp_path / "zip.npy", "wb") as file:
        np.savez(file, a=np.zeros((2, 3), np.float32))
    head = b"-" * 9000 + b"1\n"
    (tmp_path / "deep.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    (tmp_path / "twice.csv").write_text("path,label,label,e0\na,1,1,0.5\n")
    dates = pa.array([2**31 - 1] * 2, pa.int32()).cast(pa.date32())
    pq.write_table(table(np.ones((2, 3), np.float32), label=dates), tmp_path / "dates.parquet")
    for name in ("zip.npy", "deep.npy", "twice.csv", "dates.parquet"):
        with pytest.raises(DataError, match=rf"{name} is not a file that `facessl embed` wrote, or is damaged"):
            read_embeddings(tmp_path / name)


def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "other.csv").write_text("name,score\na,1\n")
    pq.write_table(pa.table({"path": ["a"], "embedding": ["1 2 3"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "columns.parquet")
    kind = pa.list_(pa.float32(), 2)
    empty = pa.table({"path": pa.array([], pa.string()), "embedding": pa.array([], kind)})
    pq.write_table(empty, tmp_path / "empty.parquet")
    write_embeddings(tmp_path / "short.npy", rows())
    np.save(tmp_path / "short.npy", np.zeros((2, 3), np.float32))
    np.save(tmp_path / "alone.npy", np.zeros((2, 3), np.float32))
    (tmp_path / "object.names.csv").write_text("path\na\n")
    np.save(tmp_path / "object.npy", np.array([{}], object))
    (tmp_path / "two.csv").write_text("path,network,e0\na,fp32:1,0\nb,fp32:2,0\n")
    for name in ("text.parquet", "other.csv", "other.parquet", "columns.parquet", "short.npy", "object.npy", "two.csv"):
        with pytest.raises(DataError, match=rf"{name} is not a file that `facessl embed` wrote, or is damaged"):
            read_embeddings(tmp_path / name)
    for name, says in (("empty.parquet", "has no rows"), ("alone.npy", "alone.names.csv does not exist"),
                       ("none.csv", "does not exist"), ("e.txt", "is not a file of embeddings")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            read_embeddings(tmp_path / name)
