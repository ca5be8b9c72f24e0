"""The map of all faces: one page that fetches nothing and runs nothing of what files say."""

import base64
import html
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facessl.core import escape
from facessl.core.errors import ConfigError, DataError, DataWarning
from facessl.data.source import open_source
from facessl.inference.contact_sheet import thumbnails
from facessl.inference.embedding_formats import Embeddings
from facessl.report import face_map
from facessl.report.face_map import write_map
from facessl.tools.pack import pack

HOSTILE = "</script><script>alert(1)</script>&\u2028'\"`${1}"


def rows(names: list[str], labels: list[int] | None = None, label_names: tuple[str, ...] = ()) -> Embeddings:
    array = np.random.default_rng(0).standard_normal((len(names), 4)).astype(np.float32)
    return Embeddings(array, names, np.arange(len(names)), None if labels is None else np.array(labels), label_names)


def data_of(page: str) -> dict[str, object]:
    (text,) = re.findall(r"^const data = (.*);$", page, re.MULTILINE)
    found: dict[str, object] = json.loads(text)
    return found


def test_points_thumbnails_and_names_are_those_of_the_images(tmp_path: Path) -> None:
    shades = [(255, 0, 0), (0, 255, 0)]
    names = [str(tmp_path / "0.png"), str(tmp_path / "gone.png"), str(tmp_path / "2.png"), HOSTILE]
    for name, shade in zip(names[::2], shades, strict=True):
        Image.new("RGB", (40, 40), shade).save(name)
    told = write_map(tmp_path / "map.html", rows(names, [0, 1, -1, 0], (HOSTILE, "b")))
    assert told["images"] == 4
    assert told["classes"] == 2
    page = (tmp_path / "map.html").read_text()
    assert page.count("<script") == 1
    assert "alert(1)</script>" not in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|@import|url\(", page)
    data = data_of(page)
    assert data["paths"] == names
    assert data["own"] == [HOSTILE, "b", "", HOSTILE]
    assert data["names"] == [HOSTILE, "b", "others", "none"]
    assert data["counts"] == [2, 1, 0, 1]
    assert np.frombuffer(base64.b64decode(str(data["classes"])), "<u2").tolist() == [0, 1, 3, 0]
    points = np.frombuffer(base64.b64decode(str(data["points"])), "<u2").reshape(-1, 2)
    assert points.max() == 65534
    assert points.min() == 0
    (sheet,) = data["sheets"]  # type: ignore[misc]
    sprite = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))))
    side = int(str(data["side"]))
    for place, shade in ((0, shades[0]), (2, shades[1])):
        np.testing.assert_allclose(sprite[side // 2, place * side + side // 2], shade, atol=12)
    assert HOSTILE not in html.unescape(page.split("<script")[0])


@pytest.mark.fault("C8", "images of shards were gray tiles with the word missing")
def test_thumbnails_of_packed_images(tmp_path: Path) -> None:
    for i, shade in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), shade).save(tmp_path / "photos" / f"{i}.png")
    pack(str(tmp_path / "photos"), tmp_path / "shards", shard_size=2, workers=0)
    shards = open_source(str(tmp_path / "shards"))
    keys = [shards.key(i) for i in range(3)]
    middles = [image.getpixel((28, 28)) for image in thumbnails([*keys, f"{keys[0]}.gone", __file__ + "/x.jpg"], 56)]
    np.testing.assert_allclose(middles[:3], np.eye(3) * 255, atol=12)
    gray = thumbnails([str(tmp_path / "gone.png")], 56)[0]
    assert thumbnails([f"{keys[0]}.gone"], 56)[0] == gray
    with (tmp_path / "shards" / "shard-000000.tar").open("r+b") as shard:
        shard.truncate(700)
    assert thumbnails(keys[:1], 56)[0].getcolors() is not None


@pytest.mark.fault("E12", "the page of a million images was some gigabytes")
def test_a_map_of_many_images_has_no_pictures_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_map, "PICTURES", 2)
    with pytest.warns(DataWarning, match="no pictures, as there are more than 2 images"):
        write_map(tmp_path / "map.html", rows(["a.png", "b.png", "c.png"]))
    page = (tmp_path / "map.html").read_text()
    assert data_of(page)["sheets"] == []
    assert "no pictures, as there are more than 2 images" in page.split("<script")[0]


def test_colors_come_from_the_table_of_groups(tmp_path: Path) -> None:
    names = ["=a.png", "b\udce9.png", "c.png", "d.png"]
    lines = [escape.csv_row("path", "group"), escape.csv_row(names[0], 0), escape.csv_row(names[1], 7), b"c.png,-1\n"]
    (tmp_path / "g.csv").write_bytes(b"".join(lines))
    write_map(tmp_path / "map.html", rows(names, [0] * 4, ("x",)), color=tmp_path / "g.csv")
    assert data_of((tmp_path / "map.html").read_text())["own"] == ["group 0", "group 7", "", ""]
    (tmp_path / "g.csv").write_text("path,group\nelsewhere.png,1\n")
    with pytest.raises(DataError, match="names none of the images"):
        write_map(tmp_path / "map.html", rows(names), color=tmp_path / "g.csv")
    (tmp_path / "g.csv").write_text("image,group\nc.png,1\n")
    with pytest.raises(DataError, match="needs the columns path and"):
        write_map(tmp_path / "map.html", rows(names), color=tmp_path / "g.csv")


def test_one_image_is_in_the_middle(tmp_path: Path) -> None:
    assert write_map(tmp_path / "map.html", rows(["a.png"])) == {"images": 1, "classes": 0, "variance": 1.0}
    points = str(data_of((tmp_path / "map.html").read_text())["points"])
    assert np.frombuffer(base64.b64decode(points), "<u2").tolist() == [32767, 32767]


def test_umap_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"pip install 'facessl\[umap\]'"):
        write_map(tmp_path / "map.html", rows(["a.png"]), projection="umap")
