"""Frames of videos: the right ones in any order, upright, from damaged videos as far as they go."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facessl.cli import main
from facessl.core.errors import ConfigError, DataError, DataWarning
from facessl.data.detect import Face
from facessl.data.skipped import ImageError
from facessl.data.source import Source, open_source
from facessl.data.video import clock, interval
from facessl.tools import crop as crop_module
from tests.data.make import film, folder, jpeg, shades
from tests.helpers import read_table


def shade(source: Source, index: int) -> float:
    image = source[index].image
    return (float(image.mean()) - 10) / 20


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts"])
def test_the_frame_of_each_interval_in_any_order(ending: str, tmp_path: Path) -> None:
    path = film(tmp_path / f"a.{ending}", shades(12))
    source = open_source(str(path))
    assert [source.key(i) for i in (0, 11)] == [f"{path}/00h00m{time}s000" for time in ("00", "11")]
    for index in (*range(12), 11, 3, 4, 9, 0):
        assert shade(source, index) == pytest.approx(index, abs=0.3)
    source = open_source(f"video:{path}?every=400ms")
    assert len(source) == 30
    assert source.key(4).endswith("/00h00m01s600")
    assert shade(source, 4) == pytest.approx(1, abs=0.3)


def test_intervals_and_times() -> None:
    assert [interval(text) for text in ("1s", "0.5s", "200ms", "2min", "3")] == [1, 0.5, 0.2, 120, 3]
    assert clock(3723.0456) == "01h02m03s046"
    for text in ("0s", "-1s", "1h", "", "s", "nan"):
        with pytest.raises(ConfigError, match=r"every=.* is not an interval: give one such as 1s"):
            interval(text)


def test_a_film_of_a_phone_is_upright(tmp_path: Path) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16, 0] = 255  # red at the upper left
    path = film(tmp_path / "a.mp4", [image])
    one, end = 1 << 16, (0, 0, 0, 1 << 30)
    whole, turned = (struct.pack(">9i", *rows, *end) for rows in ((one, 0, 0, 0, one), (0, one, 0, -one, 0)))
    data = path.read_bytes()
    at = data.index(whole, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + 36 :])
    shown = open_source(str(path)).image(0)
    assert shown.shape == (64, 48, 3)
    assert shown[8, 40, 0] > 200  # clockwise by a quarter: at the upper right
    assert shown[8, 8, 0] < 50


def test_a_folder_of_films_and_images_has_its_labels(tmp_path: Path) -> None:
    folder(tmp_path, "anna/1.jpg", "ben/2.jpg")
    film(tmp_path / "ben" / "film.mp4", shades(2))
    source = open_source(f"video:{tmp_path}")
    assert [source.inner_name(i) for i in range(len(source))] == [
        "anna/1.jpg", "ben/2.jpg", "ben/film.mp4/00h00m00s000", "ben/film.mp4/00h00m01s000",
    ]  # fmt: skip
    assert source.column("label").tolist() == [0, 1, 1, 1]
    assert source[0].image == jpeg(0)
    assert shade(source, 3) == pytest.approx(1, abs=0.3)
    with pytest.warns(DataWarning, match=r"left out 1 file ending in \.mp4: write video:.*\?every=1s for frames"):
        assert len(open_source(str(tmp_path))) == 2


def test_a_film_that_was_cut_off_ends_with_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", shades(12), movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(DataWarning, match=r"a\.mp4 is damaged, and ends at 00h00m0\ds\d+ of 00h00m12s000"):
        source = open_source(str(path))
    assert 3 <= len(source) <= 9
    assert [round(shade(source, i)) for i in range(len(source))] == list(range(len(source)))


def test_what_is_no_film_is_one_sentence_and_left_out_of_a_folder(tmp_path: Path) -> None:
    whole = film(tmp_path / "good.mp4", shades(2)).read_bytes()
    fetched = f"#EXTM3U\n#EXTINF:9,\nfile://{tmp_path}/good.mp4\n#EXT-X-ENDLIST\n"
    for name, data in (("cut", whole[:200]), ("empty", b""), ("text", b"hello" * 99), ("list", fetched.encode())):
        (tmp_path / f"{name}.mp4").write_bytes(data)
        with pytest.raises(DataError, match=rf"^cannot read the video .*{name}\.mp4: it is damaged, has no pictures"):
            open_source(str(tmp_path / f"{name}.mp4"))
    with pytest.warns(DataWarning, match=r"left out: cannot read the video") as told:
        assert len(open_source(f"video:{tmp_path}")) == 2
    assert sum(issubclass(warning.category, DataWarning) for warning in told) == 4


def test_frames_that_cannot_be_decoded_are_unreadable_images(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", shades(12), movflags="faststart")
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half))
    source = open_source(str(path))
    with pytest.raises(ImageError, match="the video is damaged here"):
        [source[index] for index in range(12)]
    assert [round(shade(source, index)) for index in range(3)] == [0, 1, 2]


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"a\.mp4 needs PyAV: pip install 'facessl\[video\]'"):
        open_source(f"video:{tmp_path}")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_crops_of_a_film_are_called_after_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setattr(crop_module, "detect", lambda *_, **__: [Face(np.array([10, 5, 50, 45], np.float32), 0.9)])
    (tmp_path / "films").mkdir()
    path = film(tmp_path / "films" / "a.mp4", shades(4))
    out = tmp_path / "faces"
    words = ["crop", str(path.parent), "--every", "2s", "--out", str(out), "--size", "32", "--workers", workers]
    assert main(words) == 0
    rows = {row["image"]: row["original"] for row in read_table(out / "faces.csv")}
    assert rows == {f"a.mp4/00h00m{time}s000.jpg": f"{path}/00h00m{time}s000" for time in ("00", "02")}
    assert np.asarray(Image.open(out / "a.mp4/00h00m02s000.jpg")).mean() == pytest.approx(50, abs=4)
    assert main(["crop", "synthetic:?n=2", "--every", "1s", "--out", str(out)]) == 2
