"""Names of files in tables: what is written is read back, whatever the bytes."""

import csv
import itertools
from pathlib import Path

import pytest

from facessl.core.escape import csv_row, from_csv, printable
from facessl.data.sources.imagelist import ImageList
from tests.data import make


@pytest.mark.fault("B1", "names that are not UTF-8 ended in tracebacks of embed, probe, crop and predict")
@pytest.mark.fault("E16", "a cell that begins with = + - @ ran as a formula in spreadsheets")
def test_every_text_comes_back_from_a_cell() -> None:
    for letters in itertools.product(
        ["\\", "x", "fc", "'", "=", "-1", "\udcfc", "\x1b", "\u202e", "u202e", " ", ";"], repeat=4
    ):
        text = "".join(letters)
        (cell,) = next(csv.reader([csv_row(text).decode()]))
        assert from_csv(cell) == text
    assert printable("caf\udce9/\\xfc.jpg") == r"caf\xe9/\\xfc.jpg"
    assert printable("\x1b]0;a\x07\x9b2J\u202e\n\x7f\u00a0ü") == r"\x1b]0;a\x07\u009b2J\u202e\x0a\x7f" + "\u00a0ü"
    for text in ("=1", " =1", "\u00a0@a", "＝1", "'+a"):
        assert csv_row(text) == f"'{text}\n".encode()
    for text in ("\n=1", "\t=1", "\r=1"):
        assert csv_row(text)[:2] == rb"\x"
    assert csv_row("a;=1+1", 1) == b'"a;=1+1",1\n'
    assert csv_row("=1+1.jpg", "@a", "-1.5", -2) == b"'=1+1.jpg,'@a,-1.5,-2\n"


@pytest.mark.fault("B10", "tables with other separators, UTF-16 or backslashes were refused with misleading words")
@pytest.mark.fault("A15", "blanks at the ends of a name in faces.csv were lost")
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("label;image\n1; in.jpg\n0;a\\b.jpg\n", "utf-16"),
        ("image\tlabel\n in.jpg\t1\na\\b.jpg\t0\n", "utf-8-sig"),
        ('"image"|"label, of it"\n in.jpg|1\na/b.jpg|0\n', "utf-8"),
        ('image,label\n in.jpg,1\n"a/b.jpg",0\n', "utf-8"),
    ],
)
def test_tables_as_other_programs_write_them(tmp_path: Path, text: str, encoding: str) -> None:
    make.folder(tmp_path, " in.jpg", "a/b.jpg", "in.jpg")
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    source = ImageList(tmp_path / "l.csv")
    assert [source.inner_name(i) for i in range(2)] == [" in.jpg", "a/b.jpg"]


@pytest.mark.fault("B10", "a name with accents written otherwise than on the disk was missing")
def test_a_name_is_found_as_it_was_written(tmp_path: Path) -> None:
    stored = ("'=1.jpg", "=1.jpg", "cafe\u0301.jpg", "o\udcfc.jpg")
    make.folder(tmp_path, *stored)
    rows = b"".join(
        [b"image\n", csv_row(stored[0]), csv_row(stored[1]), "caf\u00e9.jpg\n".encode(), csv_row(stored[3])]
    )
    (tmp_path / "l.csv").write_bytes(rows)
    source = ImageList(tmp_path / "l.csv")
    assert tuple(source.inner_name(i) for i in range(4)) == stored
