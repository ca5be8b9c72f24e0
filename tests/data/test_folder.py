"""A folder of photos: what is found, what is a label, and when the cached list is trusted."""

import os
import pickle
from pathlib import Path

import pytest

from facessl.core.errors import DataError, DataWarning
from facessl.data.label_fractions import usable
from facessl.data.sources import folder as module
from facessl.data.sources.folder import Folder

from . import make

NAMES = ("b/2.jpg", "a/1.JPEG", "a/deep/0.PNG", "b/1.webp", "c/x.bmp")


def keys(source: Folder) -> list[str]:
    return [os.path.relpath(source[i].key, source.root) for i in range(len(source))]


def test_finds_every_image_once_in_order(tmp_path: Path) -> None:
    make.folder(tmp_path, *NAMES, ".hidden.jpg", ".git/a.jpg", "__MACOSX/a.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    source = Folder(tmp_path)
    assert keys(source) == ["a/1.JPEG", "a/deep/0.PNG", "b/1.webp", "b/2.jpg", "c/x.bmp"]
    assert source[3].image == (tmp_path / "b/2.jpg").read_bytes()
    assert keys(Folder(make.folder(tmp_path / "b", "z.jpg", "in/y.jpg"), recursive=False)) == [
        "1.webp",
        "2.jpg",
        "z.jpg",
    ]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("b/1.jpg", "a/x/1.jpg", "a/2.jpg"), ("a", "b")),
        (("10/1.jpg", "9/1.jpg", "0/1.jpg"), ("0", "9", "10")),
        (("a/1.jpg", "a/2.jpg"), ("a",)),
        (("a/1.jpg", "b/1.jpg", "loose.jpg"), ("a", "b")),
        (("a/1.jpg", "loose.jpg"), ()),
    ],
    ids=["names", "numbers", "one folder", "images beside folders", "images beside one folder"],
)
def test_first_level_folders_are_labels(tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    source = Folder(make.folder(tmp_path, *names))
    assert source.label_names == labels
    assert source.provides == ({"label"} if labels else frozenset())
    for i in range(len(source)):
        top = keys(source)[i].split("/")[0]
        assert source[i].label == ((labels.index(top) if top in labels else -1) if labels else None)


def lists(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders whose content is listed from here on."""
    listed: list[str] = []
    real = module._list
    monkeypatch.setattr(
        module, "_list", lambda full, endings: (listed.append(os.fsdecode(full)), real(full, endings))[1]
    )
    return listed


def test_second_start_lists_nothing_and_a_change_only_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make.folder(tmp_path / "photos", *NAMES)
    make.aged(root)
    first = keys(Folder(root))
    listed = lists(monkeypatch)
    assert keys(Folder(root)) == first
    assert listed == []

    (root / "a/deep/new.jpg").write_bytes(make.jpeg(9))
    assert keys(Folder(root)) == sorted([*first, "a/deep/new.jpg"])
    assert listed == [str(root / "a/deep")]

    (root / "b/1.webp").unlink()
    (root / "c/x.bmp").unlink()
    (root / "c").rmdir()
    assert keys(Folder(root)) == ["a/1.JPEG", "a/deep/0.PNG", "a/deep/new.jpg", "b/2.jpg"]
    assert Folder(root).label_names == ("a", "b")


def test_a_file_added_right_after_the_scan_is_noticed(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "photos", "a.jpg")
    before = root.stat()
    assert len(Folder(root)) == 1
    (root / "b.jpg").write_bytes(make.jpeg(1))
    os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))  # within one tick of a coarse clock
    assert len(Folder(root)) == 2


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = make.folder(tmp_path / "photos", "a/1.jpg")
    make.folder(tmp_path / "elsewhere", "2.jpg")
    (root / "a/up").symlink_to(root, target_is_directory=True)
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    (root / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    make.aged(root)
    for _ in range(2):
        assert keys(Folder(root)) == ["a/1.jpg", "b/2.jpg"]
    (root / "b").unlink()
    assert keys(Folder(root)) == ["a/1.jpg", "c/2.jpg"]


@pytest.mark.parametrize("damage", ["unwritable", "garbage", "truncated"])
def test_works_without_a_usable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    root = make.folder(tmp_path / "photos", *NAMES)
    make.aged(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if damage == "unwritable":
        (tmp_path / "cache").write_text("a file where a folder should be")
    else:
        Folder(root)
        (file,) = (tmp_path / "cache/facessl").iterdir()
        file.write_bytes(b"garbage" if damage == "garbage" else file.read_bytes()[:-3])
    assert len(Folder(root)) == len(NAMES)


def test_workers_get_the_name_of_the_index_not_the_list(tmp_path: Path) -> None:
    few = make.folder(tmp_path / "few", "a.jpg")
    many = tmp_path / "many"
    many.mkdir()
    for i in range(2000):
        (many / f"{i:05d}.jpg").touch()
    assert abs(len(pickle.dumps(Folder(many))) - len(pickle.dumps(Folder(few)))) < 100
    assert keys(pickle.loads(pickle.dumps(Folder(few)))) == ["a.jpg"]


def test_names_of_any_bytes(tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9 ?:\n.jpg")
    with open(odd, "wb") as file:
        file.write(make.jpeg(7))
    assert Folder(tmp_path)[0].image == make.jpeg(7)


def test_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder: .*missing"):
        Folder(tmp_path / "missing")
    with pytest.raises(DataError, match=r"no image in the folder .*\.jpg, \.jpeg, \.png, \.webp, \.bmp"):
        Folder(tmp_path)
    make.shard(tmp_path / "x.tar", {})
    with pytest.raises(DataError, match=r"holds tar files and no images: name them as .*\*\.tar"):
        Folder(tmp_path)


@pytest.mark.fault("B5", "one image beside the class folders dropped the labels of all")
@pytest.mark.fault("B12", "a folder per identity was refused for verification")
def test_folders_are_classes_or_identities_and_an_image_beside_them_is_left_out(tmp_path: Path) -> None:
    source = Folder(make.folder(tmp_path, "a/1.jpg", "b/1.jpg", "loose.jpg"))
    with pytest.warns(DataWarning, match=r"they have no identity: .*/loose\.jpg \(of 3\): put images"):
        people = usable(source, {"identity"})
    assert [people[i].identity for i in range(2)] == people.column("identity").tolist() == [0, 1]


@pytest.mark.fault("B12", "a single photo was refused")
def test_a_single_image(tmp_path: Path) -> None:
    path = make.folder(tmp_path, "a.jpg", "b.jpg") / "b.jpg"
    source = Folder(path)
    assert (len(source), source.key(0), source.inner_name(0)) == (1, str(path), "b.jpg")


@pytest.mark.fault("B1", "a class called in Latin-1 ended in a traceback of the report, after training")
def test_a_class_of_any_bytes_has_a_name_that_can_be_written(tmp_path: Path) -> None:
    for name in (b"a", b"caf\xe9"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        with open(os.path.join(folder, b"1.jpg"), "wb") as file:
            file.write(make.jpeg(7))
    assert Folder(tmp_path).label_names == ("a", r"caf\xe9")


@pytest.mark.fault("A11", "30 HEIC photos beside 10 JPEGs were left out without a word")
def test_pictures_that_are_not_read_are_counted(tmp_path: Path) -> None:
    """A folder tells how many pictures of which endings it leaves out, also from its cache."""
    make.folder(
        tmp_path, "a.jpg", "b.JPE", "c.jfif", "in/d.jpeg", "in/e.tif", "x.jxl", "in/y.JXL", "z.cr2", "faces.csv"
    )
    make.aged(tmp_path)
    for _ in range(2):
        with pytest.warns(DataWarning, match=r"left out 2 files ending in \.jxl, 1 file ending in \.cr2: convert"):
            assert len(Folder(tmp_path)) == 5
