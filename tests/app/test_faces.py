"""What the page keeps: embeddings and thumbnails are made once, names survive, and refusals are one sentence."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from facessl.app.faces import Faces, open_faces
from facessl.app.people_table import People
from facessl.app.serve import prepare
from facessl.app.thumbnails import Thumbnails
from facessl.core.errors import ConfigError, DataError
from facessl.inference.embed import load_embedder
from facessl.inference.groups import Groups

SOURCE = "synthetic:?n=12&size=32"
NETWORK = "timm:test_resnet?pretrained=false"


@pytest.fixture(scope="module")
def network() -> Any:
    return load_embedder(NETWORK)


@pytest.fixture
def faces(network: Any, tmp_path: Path) -> Faces:
    return open_faces(SOURCE, lambda: network, tmp_path / "app")


def test_a_source_is_embedded_and_thumbnailed_once(
    faces: Faces, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpegs = faces.thumbnails.jpegs(range(12))  # asked for before they are made
    faces.thumbnails.make(lambda: True)  # the page ends at once
    assert not faces.thumbnails.complete
    faces.thumbnails.make()
    monkeypatch.setattr("facessl.inference.embed_file.embed_to_file", lambda *_, **__: pytest.fail("embedded again"))
    monkeypatch.setattr(Thumbnails, "_made", lambda *_: pytest.fail("thumbnails made again"))
    again = open_faces(SOURCE, lambda: network, tmp_path / "app")
    again.thumbnails.make()
    np.testing.assert_array_equal(again.rows.array, faces.rows.array)
    assert again.thumbnails.jpegs(range(12)) == faces.thumbnails.jpegs(range(12)) == jpegs
    (picture,) = faces.thumbnails.pictures([3])
    assert np.abs(np.asarray(picture.resize((32, 32)), float) - faces.source[3].image).mean() < 12  # type: ignore[index]
    table = open_faces(str(faces.file("parquet")), lambda: pytest.fail("no network is needed"), tmp_path)
    assert table.classes == faces.classes


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_what_the_page_writes_is_its_owners(faces: Faces, network: Any, tmp_path: Path) -> None:
    faces.thumbnails.make()
    People.of(faces).rename([0], "Ada")
    assert stat.S_IMODE(faces.folder.stat().st_mode) == 0o700
    own = faces.folder / "mine"
    own.mkdir(mode=0o755)
    open_faces(SOURCE, lambda: network, own)
    assert stat.S_IMODE(own.stat().st_mode) == 0o755
    written = [file for file in faces.folder.rglob("*") if file.is_file()]
    assert {file.name.partition(".")[2] for file in written} == {"parquet", "thumbnails.parquet", "people.csv"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o600}


def test_embeddings_are_opened_without_the_libraries_of_networks(faces: Faces, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    code = f"""
import sys
from facessl.app.serve import prepare
prepare({str(tmp_path)!r})
from facessl.app.page import build
from facessl.app.workspace import open_workspace
options = dict(models=(), cache=None, batch_size=4, workers=None, device=None)
build(open_workspace({str(tmp_path)!r}, {str(faces.file("parquet"))!r}, **options))
print({{"torch", "timm", "sklearn", "plotly.graph_objects"}} & set(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_thumbnails_of_other_embeddings_are_made_anew(faces: Faces, network: Any, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for shade in (20, 200):
        Image.new("RGB", (32, 32), (shade, shade, shade)).save(pictures / "one.png")
        Image.new("RGB", (32, 32)).save(pictures / "two.png")
        other = open_faces(str(pictures), lambda: network, tmp_path / "app")
        other.thumbnails.make()
        assert abs(int(np.asarray(other.thumbnails.pictures([0])[0])[64, 64, 0]) - shade) < 5


@pytest.mark.parametrize("forged", ["large", "no JPEG", "missing", "of another type", "compressed"])
def test_forged_thumbnails_are_made_anew(faces: Faces, network: Any, tmp_path: Path, forged: str) -> None:
    faces.thumbnails.make()
    file, jpegs = faces.file("thumbnails.parquet"), faces.thumbnails.jpegs(range(12))
    large = simplejpeg.encode_jpeg(np.zeros((4000, 4000, 3), np.uint8))
    first = {"large": large, "no JPEG": b"\xff\xd8", "missing": None}.get(forged, jpegs[0])
    kind = pa.binary() if forged == "of another type" else pa.large_binary()
    schema = pa.schema([("jpeg", kind)], metadata=pq.read_schema(file).metadata)
    table = pa.table([pa.array([first, *jpegs[1:]], kind)], schema=schema)
    packed = {"compression": "zstd"} if forged == "compressed" else {"compression": "none", "use_dictionary": False}
    pq.write_table(table, file, **packed)
    again = open_faces(SOURCE, lambda: network, tmp_path / "app").thumbnails
    assert not again.complete
    again.make()
    assert pq.read_table(file)["jpeg"].to_pylist() == again.jpegs(range(12)) == jpegs


def test_names_survive_a_restart_and_new_groups(faces: Faces) -> None:
    people = People.of(faces)
    labels = np.array([0] * 6 + [1] * 4 + [-1] * 2)
    people.regroup(Groups(faces.rows.keys, labels, np.ones(12)))
    people.rename(people.members(1).tolist(), "=Ada, <b>")
    again = People.of(faces)
    assert (again.groups, again.name(0), again.name(1)) == ([0, 1], "", "=Ada, <b>")
    again.regroup(Groups(faces.rows.keys, np.where(labels == 0, 1, np.where(labels == 1, 0, -1)), np.ones(12)))
    assert People.of(faces).name(0) == "=Ada, <b>"
    people.rename(people.members(0).tolist(), "Bob")  # of a browser that has not seen the new groups
    assert sorted(set(People.of(faces).names)) == ["", "=Ada, <b>", "Bob"]


def test_groups_keep_their_numbers_where_one_has_lost_its_faces(faces: Faces) -> None:
    people = People.of(faces)
    people.regroup(Groups(faces.rows.keys, np.array([0] * 6 + [2] * 4 + [-1] * 2), np.ones(12)))
    assert people.groups == [0, 2]
    assert [len(people.members(number)) for number in people.groups] == [6, 4]


def test_browsers_that_name_and_look_at_once_lose_nothing(faces: Faces) -> None:
    people = People.of(faces)

    def named(row: int) -> None:
        people.rename([row], f"name {row}")
        people.read()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(named, range(12)))
    assert People.of(faces).names == [f"name {row}" for row in range(12)]
    with pytest.raises(ConfigError, match="1,000,000 characters"):
        people.rename([0], 1_000_000 * "x")
    assert People.of(faces).names[0] == "name 0"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("path,who\na,b\n", "lacks the column group"),
        ("path,group,probability,name\na,999999999999,1,\n", "group 999999999999"),
        ("path,group,probability,name\na,-2,1,\n", "group -2"),
        ("path,group,probability,name\na,0,nan,\n", "probability nan"),
    ],
)
def test_a_table_of_names_that_is_not_one_is_left_alone(faces: Faces, table: str, sentence: str) -> None:
    file = faces.file("people.csv")
    file.write_text(table)
    with pytest.raises(DataError, match=sentence):
        People.of(faces)
    assert file.read_text() == table


def test_a_cache_that_cannot_be_made_is_one_sentence(network: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"keeps thumbnails in .*file.* --cache"):
        open_faces(SOURCE, lambda: network, tmp_path / "file" / "app")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'facessl\[app\]'"):
        prepare(str(tmp_path))
