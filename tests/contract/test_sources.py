"""What every source of `facessl list sources` must do."""

import importlib
import inspect
import os
import pickle
import pkgutil
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facessl.core import plugins
from facessl.core.types import FIELDS, Sample
from facessl.data.decode import decode
from facessl.data.source import Source, open_source, parse
from facessl.data.subset import Subset
from tests import data
from tests.conftest import OUTSIDE
from tests.data.make import film, jpeg, shades, shard


def _folder(root: Path) -> str:
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(3):
            (root / name / f"{i}.jpg").write_bytes(jpeg(40 * i))
    return f"folder:{root}"


def _webdataset(root: Path) -> str:
    members = {}
    for i in range(6):
        members |= {f"{i:04d}.jpg": jpeg(40 * i), f"{i:04d}.cls": b"1", f"{i:04d}.txt": b"a face"}
    shard(root / "s-000.tar", members)
    return f"webdataset:{root}/s-{{000..000}}.tar"


def _imagelist(root: Path) -> str:
    _folder(root)
    rows = "\n".join(f"{d}/{i}.jpg,{d}" for d in "ab" for i in range(3))
    (root / "list.csv").write_text("path,label\n" + rows + "\n")
    return f"imagelist:{root / 'list.csv'}"


def _video(root: Path) -> str:
    film(root / "film.mkv", shades(6))
    return f"video:{root / 'film.mkv'}?every=1s"


def _layouts() -> dict[str, Callable[[Path], str]]:
    """`build_NAME` of every `tests/data/layouts_*.py`, by name."""
    modules = [f"tests.data.{m.name}" for m in pkgutil.iter_modules(data.__path__) if m.name.startswith("layouts_")]
    builders = (item for module in modules for item in vars(importlib.import_module(module)).items())
    return {name.removeprefix("build_"): build for name, build in builders if name.startswith("build_")}


def _outside(spec: str) -> tuple[str, Callable[[Path], str]]:
    """Name of a source outside the package (`--source`), and what copies its file or folder and names the copy."""
    name, path, options = parse(spec)

    def copied(root: Path) -> str:
        copy = shutil.copytree if Path(path).is_dir() else shutil.copy
        place = copy(Path(path).absolute(), root / Path(path).name)
        query = "&".join(f"{key}={value}" for key, value in options.items())
        return f"{name}:{place}" + (f"?{query}" if query else "")

    return name, copied


OWN = dict(map(_outside, OUTSIDE))
#: Smallest working example of each source, of 6 images; a data set has its own in `tests/data/layouts_*.py`.
EXAMPLES: dict[str, Callable[[Path], str]] = {
    "folder": _folder,
    "webdataset": _webdataset,
    "imagelist": _imagelist,
    "synthetic": lambda _: "synthetic:?n=6&size=32",
    "video": _video,
    **_layouts(),
    **OWN,
}


def test_every_source_has_an_example() -> None:
    without = set(plugins.names("data.sources")) - set(EXAMPLES)
    assert not without, "give 6 images: in EXAMPLES or as build_NAME in tests/data/layouts_*.py; outside by --source"
    assert set(EXAMPLES) == set(plugins.names("data.sources"))


@pytest.fixture(params=sorted(EXAMPLES))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return open_source(EXAMPLES[request.param](tmp_path))


def test_gives_samples_with_what_it_promises(source: Source) -> None:
    assert len(source) == 6
    assert source.provides <= FIELDS
    assert set(source.splits) <= {"train", "val", "test"}
    assert not source.splits or "split" in inspect.signature(type(source)).parameters
    for i in range(len(source)):
        sample = source[i]
        assert isinstance(sample, Sample)
        assert all(getattr(sample, f) is not None for f in source.provides)
        image = decode(sample.image, key=sample.key) if isinstance(sample.image, bytes) else sample.image
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        if "label" in source.provides and source.label_names:
            assert 0 <= int(sample.label) < len(source.label_names)  # type: ignore[arg-type]
        if "group" in source.provides:
            assert 0 <= int(sample.group) < len(source.group_names)  # type: ignore[arg-type]
        if "attributes" in source.provides:
            assert sample.attributes.shape == (len(source.attribute_names),)  # type: ignore[union-attr]


#: Fields, and the sources that know them of all their images without opening one.
COLUMNS = {
    "label": "affectnet fer2013 ferplus folder imagelist labels_csv rafdb synthetic utkface vggface2 webdataset",
    "identity": "celeba labels_csv lfw synthetic vggface2",
    "attributes": "celeba labels_csv utkface",
    "group": "celeba labels_csv utkface",
    "landmarks": "aflw19 landmarks_csv points w300 wflw",
    "box": "affectnet aflw19 labels_csv landmarks_csv points w300 wflw",
    "five_points": "celeba",
    "visible": "aflw19",
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_promised_columns_are_the_samples_values(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class balance and label subsets ask for them; 300,000 images are not opened for that."""
    source = open_source(EXAMPLES[name](tmp_path))
    promised = {field for field, names in COLUMNS.items() if name in names.split()}
    assert name in OWN or source.columns == promised, "name the source in COLUMNS"
    assert {"label", "identity", "group"} & source.provides <= source.columns
    samples = [source[i] for i in range(6)]
    monkeypatch.setattr(type(source), "__getitem__", lambda self, index: pytest.fail("an image was read"))
    for field in source.columns:
        np.testing.assert_array_equal(source.column(field), [getattr(sample, field) for sample in samples])
        if field in ("label", "identity", "group"):
            assert source.column(field).dtype == np.int64


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_fingerprints_are_the_same_in_every_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    spec = EXAMPLES[name](tmp_path / "one")
    first = open_source(spec)
    again = open_source(EXAMPLES[name](tmp_path / "two"))
    for file in (tmp_path / "two").rglob("*"):
        os.utime(file, (1, 1))
    assert first.fingerprint() == again.fingerprint() == pickle.loads(pickle.dumps(first)).fingerprint()
    monkeypatch.chdir(tmp_path / "one")
    assert open_source(spec.replace(str(tmp_path / "one"), ".")).fingerprint() == first.fingerprint()
    assert Subset(first, np.arange(5)).fingerprint() != first.fingerprint()


@pytest.mark.parametrize("name", ["lapa", "vggface2", "affectnet", "fer2013"])
@pytest.mark.filterwarnings("ignore:LaPa's training images")
def test_folders_of_parts_are_found_whatever_their_case(name: str, tmp_path: Path) -> None:
    if name in ("affectnet", "fer2013"):
        for label in ("0", "1"):
            (tmp_path / "train" / label).mkdir(parents=True)
            (tmp_path / "train" / label / "a.jpg").write_bytes(jpeg(9))
        spec, count = f"{name}:{tmp_path}?strict=false", 2
    else:
        spec, count = EXAMPLES[name](tmp_path), 6
    (tmp_path / "train").rename(tmp_path / "Training")
    assert len(open_source(spec)) == count


@pytest.mark.fault("B6", "`._` files were read as annotations, and `a.JPG` had no image")
@pytest.mark.parametrize("name", ["masks_folder", "w300", "points", "lapa", "folder", "laionface"])
@pytest.mark.filterwarnings("ignore:LaPa's training images")
def test_files_that_macos_leaves_beside_others_do_not_count(name: str, tmp_path: Path) -> None:
    spec = EXAMPLES[name](tmp_path)
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    assert len(open_source(spec)) == 6
    if name == "w300":
        for file in tmp_path.rglob("*.jpg"):
            file.rename(file.with_suffix(".JPG"))
        assert len(open_source(spec)) == 6


def test_pairs_name_items(source: Source) -> None:
    pairs, same, folds = (getattr(source, name) for name in ("pairs", "same", "folds"))
    if pairs is None:
        assert same is None
        assert folds is None
        return
    assert pairs.shape == (len(same), 2)
    assert same.dtype == bool
    assert 0 <= pairs.min() <= pairs.max() < len(source)
    assert folds is None or len(folds) == len(same)


def test_keys_are_unique_and_reading_is_repeatable_also_in_a_worker(source: Source) -> None:
    twin = pickle.loads(pickle.dumps(source))
    keys = [source[i].key for i in range(6)]
    assert len(set(keys)) == 6
    assert [source.key(i) for i in range(6)] == [twin[i].key for i in range(6)] == keys
    first = source[3].image
    assert all(np.array_equal(first, image) for image in (twin[3].image, source.image(3), Subset(source, [3]).image(0)))
    for read in (source.__getitem__, source.key):
        with pytest.raises(IndexError):
            read(6)


@pytest.mark.parametrize("name", plugins.names("data.sources"))
def test_options_are_typed_and_documented(name: str) -> None:
    kind = plugins.find("data.sources", name)
    for parameter in list(inspect.signature(kind).parameters.values())[1:]:
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.annotation is not parameter.empty
        alike = set(re.findall(r"`(\w+)`", Source.__doc__.partition("every source:")[2].partition("\n\n")[0]))
        said = kind.__init__.__doc__ or kind.__doc__  # a list of arguments, or sentences such as "`path` is the folder"
        entry = rf"^ *(\w+, )*{parameter.name}(, \w+)*: \S|`{parameter.name}`"
        assert parameter.name in alike or re.search(entry, said, re.MULTILINE), f"{parameter.name}: say what it is"
