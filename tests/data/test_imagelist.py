"""Lists of images as people have them: CSV with columns, text files, other folders, mistakes."""

from pathlib import Path

import numpy as np
import pytest

from facessl.core.errors import ConfigError, DataError, DataWarning, UnknownName
from facessl.data.label_fractions import usable
from facessl.data.sources.imagelist import ImageList

from . import make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make.folder(tmp_path, "img/a.jpg", "img/b c.jpg", "img/d.jpg")


def listed(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def names(source: ImageList) -> list[str]:
    return [Path(source[i].key).name for i in range(len(source))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "image,label\nimg/a.jpg,sad\nimg/b c.jpg,happy\nimg/d.jpg,sad\n"),
        ("l.csv", '\ufeffLABEL, File\nsad,img/a.jpg\nhappy,"img/b c.jpg"\n\nsad,img/d.jpg\n'),
        ("l.tsv", "path\tclass\nimg/a.jpg\tsad\nimg/b c.jpg\thappy\nimg/d.jpg\tsad\n"),
        ("l.txt", "img/a.jpg sad\nimg/b c.jpg happy\n\nimg/d.jpg   sad\n"),
        ("l.lst", "img/a.jpg,sad\r\nimg/b c.jpg,happy\r\nimg/d.jpg,sad\r\n"),
    ],
)
def test_paths_and_labels(photos: Path, name: str, text: str) -> None:
    source = ImageList(listed(photos, name, text))
    assert names(source) == ["a.jpg", "b c.jpg", "d.jpg"]
    assert [source[i].label for i in range(3)] == [1, 0, 1]
    assert source.label_names == ("happy", "sad")
    assert source.provides == {"label"}
    assert source[1].image == make.jpeg(1)


def test_one_path_per_line(photos: Path) -> None:
    source = ImageList(listed(photos, "l.txt", "img/b c.jpg\nimg/a.jpg"))
    assert (names(source), source.provides) == (["b c.jpg", "a.jpg"], frozenset())


def test_every_column(photos: Path) -> None:
    rows = "img/a.jpg,3,p1,a smile,1.5,2,3,4\nimg/d.jpg,0,p2,no smile,5,6,7,8\n"
    source = ImageList(listed(photos, "l.csv", "image,label,identity,caption,x0,y0,x1,y1\n" + rows))
    assert source.provides == {"label", "identity", "text", "landmarks"}
    sample = source[1]
    assert (sample.label, sample.identity, sample.text) == (0, 1, "no smile")
    assert source.label_names == ("0", "1", "2", "3")  # a number means itself, also where a class is absent
    np.testing.assert_array_equal(sample.landmarks, np.array([[5, 6], [7, 8]], np.float32))


@pytest.mark.fault("B5", "one empty cell dropped the labels of the whole list")
@pytest.mark.fault("A15", "labels from 1 made an empty class 0, and the text nan was a class")
def test_empty_cells_drop_no_labels_and_numbers_may_count_from_1(photos: Path) -> None:
    text = "image,label,caption,x0,y0\nimg/a.jpg,2,,,\nimg/d.jpg,nan,bye,1,2\nimg/b c.jpg,1,ah,1,2\n"
    with pytest.warns(DataWarning, match=r"l\.csv, line 2: no value of (caption|landmarks) \(1 of 3 rows have none\)"):
        source = ImageList(listed(photos, "l.csv", text))
    assert source.provides == {"label"}
    assert [source[i].label for i in range(3)] == [1, -1, 0]
    assert source.label_names == ("1", "2")
    with pytest.warns(DataWarning, match=r"left out, because they have no label: .*img/d\.jpg \(of 3\)"):
        assert names(usable(source, ["label"])) == ["a.jpg", "b c.jpg"]  # type: ignore[arg-type]


def test_root_column_and_split(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = "which,who,split\na.jpg,x,train\nb c.jpg,y,test\nd.jpg,x,train\n"
    path = listed(tmp_path_factory.mktemp("other"), "l.csv", text)
    source = ImageList(path, root=photos / "img", image="which", label="who", split="train")
    assert names(source) == ["a.jpg", "d.jpg"]
    assert source.label_names == ("x", "y")  # numbered over the whole list, so that the parts agree


@pytest.mark.parametrize(
    ("text", "options", "error", "reason"),
    [
        (None, {}, DataError, r"cannot read .*l\.csv: No such file .*\(imagelist expects a CSV"),
        ("", {}, DataError, r"l\.csv is empty"),
        ("name,age\nimg/a.jpg,3\n", {}, DataError, r"no column image, path.*it has name, age.*image="),
        ("image\nimg/a.jpg\n", {"label": "mood"}, UnknownName, r"unknown column of .*l\.csv 'mood': valid are image"),
        ("image\n", {}, DataError, r"has no row below its header"),
        (
            "image,split\nimg/a.jpg,a\n",
            {"split": "b"},
            ConfigError,
            r"imagelist\?split=b cannot be used: it must be one of a",
        ),
        ("image\na.jpg\n", {}, DataError, r"names .*a\.jpg, which is missing.*root="),
        ("image,label\nimg/a.jpg\n", {}, DataError, r"l\.csv, line 2: 1 values where 2 are expected"),
        ("image,label\nimg/a.jpg,-1\n", {}, DataError, r"l\.csv, line 2: the label is '-1', not a whole number from 0"),
        ("image,x0,y0\nimg/a.jpg,1,two\n", {}, DataError, r"l\.csv, line 2: the y0 is 'two', not a number"),
        ("image,x0,y0,x1,y1\nimg/a.jpg,1,2,3,4\nimg/d.jpg,1,2,,\n", {}, DataError, r"different numbers of landmarks"),
    ],
)
def test_mistakes_are_named(
    photos: Path, text: str | None, options: dict[str, str], error: type[Exception], reason: str
) -> None:
    path = photos / "l.csv" if text is None else listed(photos, "l.csv", text)
    with pytest.raises(error, match=reason):
        ImageList(path, **options)  # type: ignore[arg-type]


def test_a_text_that_lists_no_images_is_told_as_a_list(photos: Path) -> None:
    with pytest.raises(DataError, match=r"notes\.txt names .*hello world, which is missing \(the file is read as a"):
        ImageList(listed(photos, "notes.txt", "hello world\n"))
