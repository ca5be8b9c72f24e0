"""How a source is written on the command line."""

import os
from pathlib import Path

import numpy as np
import pytest

from facessl.core.errors import ConfigError, DataError, FaceSSLError, PluginError, UnknownName
from facessl.data.loader import EvalLoader
from facessl.data.source import Source, open_source, parse
from facessl.views.augment import Augment
from facessl.views.supervised import Supervised

from . import make


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make.folder(tmp_path / "photos", "a.jpg")
    make.folder(tmp_path / "odd:name?x=1", "a.jpg")
    make.folder(tmp_path / "folder", "a.jpg")
    make.shard(tmp_path / "x.tar", {"a.jpg": make.jpeg(1)})
    (tmp_path / "list.csv").write_text("image\nphotos/a.jpg\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("photos", ("folder", "photos", {})),
        ("photos/?recursive=false&cache=no", ("folder", "photos/", {"recursive": "false", "cache": "no"})),
        ("folder:photos?cache=no", ("folder", "photos", {"cache": "no"})),
        ("photos/a.jpg", ("folder", "photos/a.jpg", {})),
        ("odd:name?x=1", ("folder", "odd:name?x=1", {})),
        ("folder:odd:name?x=1", ("folder", "odd:name?x=1", {})),
        ("folder:odd:name?x=1?cache=no", ("folder", "odd:name?x=1", {"cache": "no"})),
        ("x.tar", ("webdataset", "x.tar", {})),
        ("s-{000..002}.tar?cache=no", ("webdataset", "s-{000..002}.tar", {"cache": "no"})),
        ("s-*.tar", ("webdataset", "s-*.tar", {})),
        ("pipe:cat x.tar", ("webdataset", "pipe:cat x.tar", {})),
        ("https://h.org/x.tar?token=abc", ("webdataset", "https://h.org/x.tar?token=abc", {})),
        ("https://h.org/x.tar?shuffle=5", ("webdataset", "https://h.org/x.tar", {"shuffle": "5"})),
        ("webdataset:pipe:cat x.tar?shuffle=5", ("webdataset", "pipe:cat x.tar", {"shuffle": "5"})),
        ("list.csv?image=image", ("imagelist", "list.csv", {"image": "image"})),
        ("synthetic", ("synthetic", "", {})),
        ("synthetic:?n=8", ("synthetic", "", {"n": "8"})),
        ("synthetic?n=8", ("synthetic", "", {"n": "8"})),
    ],
)
def test_parse(spec: str, parsed: tuple[str, str, dict[str, str]]) -> None:
    assert parse(spec) == parsed


@pytest.mark.parametrize("path", ["C:\\photos", "C:/photos"])
def test_a_drive_letter_is_no_source_name(path: str) -> None:
    with pytest.raises(DataError, match="no such file or folder: C:"):
        parse(path)


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_source("~/photos")) == len(open_source("folder:~/photos")) == 1
    assert len(open_source("~/x.tar")) == len(open_source("~/list.csv")) == 1


@pytest.mark.parametrize("spec", ["photos", "x.tar", "list.csv", "synthetic:?n=1"])
def test_opens_a_source(spec: str) -> None:
    source = open_source(spec)
    assert isinstance(source, Source)
    assert source[0].key
    assert open_source(source) is source


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        ("fodler:photos", UnknownName, "unknown source 'fodler': did you mean 'folder'"),
        ("photos?recursve=no", UnknownName, "'recursve': did you mean 'recursive'"),
        ("photos?recursive", ConfigError, "'recursive' is not an option: write it as option=value"),
        ("photos?recursive=maybe", ConfigError, r"folder\?recursive=maybe cannot be used: it must be true or false"),
        ("x.tar?shuffle=many", ConfigError, r"webdataset\?shuffle=many cannot be used: it must be a whole number"),
        ("missing", DataError, "no such file or folder: missing"),
        ("folder:missing", DataError, "no such folder: missing"),
        ("webdataset:missing.tar", DataError, "no such shard: missing.tar"),
        ("imagelist:missing.csv", DataError, "cannot read missing.csv"),
        ("folder:", DataError, "needs a path"),
        ("", ConfigError, "the source is empty"),
    ],
)
def test_mistakes_are_named(spec: str, error: type[FaceSSLError], reason: str) -> None:
    with pytest.raises(error, match=reason):
        open_source(spec)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "faces.parquet").touch()
    with pytest.raises(DataError, match=r"faces\.parquet is not a folder, tar or list: name what it is as NAME:"):
        open_source("faces.parquet")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.ones((16, 16, 3)), r"\(16, 16, 3\) float64"),
        (np.ones((16, 16), np.uint8), r"\(16, 16\) uint8"),
        (np.ones((16, 16, 4), np.uint8), r"\(16, 16, 4\) uint8"),
    ],
)
def test_an_array_that_is_no_image_ends_the_run(image: np.ndarray, said: str) -> None:
    """Floats in 0..1 were trained on as black images."""

    class Own(Source):
        def image(self, index: int) -> np.ndarray:
            return image

    view = Supervised(Augment(), 16, train=False)
    with pytest.raises(PluginError, match=rf"the source's image a is {said}: it must be \(H, W, 3\) uint8 RGB, or"):
        next(iter(EvalLoader(Own(["a"]), view, batch_size=1)))


def test_a_source_with_a_mistake_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Positional(Source):
        def __init__(self, path: str, limit: int = 0) -> None: ...

    class Untyped(Source):
        def __init__(self, path: str, *, limit=0) -> None: ...  # type: ignore[no-untyped-def]

    for kind in (Positional, Untyped):
        monkeypatch.setattr("facessl.core.plugins.find", lambda folder, name, kind=kind: kind)
        with pytest.raises(PluginError, match=f"{kind.__name__}: its option 'limit' must be keyword-only and have a"):
            open_source("synthetic:?limit=3")
    with pytest.raises(PluginError, match=r"cannot be called 'age': name a field of Sample, attributes, box, "):
        Source(["a"], {"age": [3]})


def test_options_reach_the_source_in_their_types(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.csv").write_text("image\na.jpg\n")
    assert len(open_source(f"elsewhere.csv?root={tmp_path / 'photos'}&split=none")) == 1
    stream = open_source("x.tar?streaming=true&shuffle=0")
    assert stream.streaming
    assert os.path.basename(open_source("x.tar?streaming=none")[0].key) == "a.jpg"


def test_a_fingerprint_follows_names_sizes_classes_and_labels(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "set", *(f"{name}/{i:02d}.jpg" for name in "ab" for i in range(20)))
    seen = [open_source(str(root)).fingerprint()]

    def changed(spec: str = str(root)) -> None:
        seen.append(open_source(f"{spec}?cache=false" if spec == str(root) else spec).fingerprint())
        assert len(set(seen)) == len(seen)

    (root / "a/07.jpg").write_bytes(make.jpeg(7) + b"longer")  # none of the few that are looked at
    changed()
    (root / "a/07.jpg").rename(root / "a/07b.jpg")
    changed()
    (root / "b").rename(root / "c")
    changed()
    rows = [f"set/a/0{i}.jpg,{i % 2}" for i in range(4)]
    for table in (rows, [*rows[1:], rows[0]], [row.replace(",0", ",2") for row in rows]):
        (tmp_path / "t.csv").write_text("\n".join(["image,label", *table]))
        changed(f"imagelist:{tmp_path / 't.csv'}")
    for label in b"01":
        make.shard(tmp_path / "t.tar", {"a.jpg": make.jpeg(0), "a.cls": bytes([label])})
        changed(f"{tmp_path / 't.tar'}")
