"""The same readers on broken layouts: one sentence each, with the file, what is there, and what is expected."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from facessl.core.errors import DataError, FaceSSLError
from facessl.data.decode import ImageError
from facessl.data.source import open_source

from . import layouts_labels as layouts
from . import make

READERS = sorted(name.removeprefix("build_") for name in vars(layouts) if name.startswith("build_"))


def build(name: str, root: Path) -> str:
    """The spec of a data set in miniature in `root`."""
    spec: str = getattr(layouts, f"build_{name}")(root)
    return spec


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Replace a text that occurs in the file, once."""

    def change(root: Path) -> None:
        content = (root / file).read_text()
        assert old in content
        (root / file).write_text(content.replace(old, new, 1))

    return change


def remove(*files: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for file in files:
            shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()

    return change


def copy(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (shutil.copytree if (root / old).is_dir() else shutil.copy)(root / old, root / new)

    return change


def nothing(root: Path) -> None:
    """The fixture is the fault."""


def uncaptioned(root: Path) -> None:
    (root / "split_00001/00000.tar").unlink()
    make.shard(root / "split_00001/00000.tar", {"0.jpg": layouts.encoded(0)})


NO_LIST = "there is no list"
NO_COLUMNS = "there are no columns"
NO_COUNT = "no count is published"
NO_LABELS = "there are no labels"
WHOLE = r"get the whole set, or use a part of it with strict=false"
#: How to break each layout, and the sentence; or why a fault cannot occur.
FAULTS: dict[str, dict[str, tuple[Callable[[Path], None], str] | str]] = {
    "vggface2": {
        "missing list": (remove("train"), r"train is missing \(vggface2 expects in its folder train/n000002/"),
        "extra column": NO_COLUMNS,
        "wrong count": (nothing, rf"train has 3 persons where the published set has 8631: {WHOLE}"),
        "image missing": (remove("train/n000012", "train/n000022"), r"train has .* a single person \(vggface2 expects"),
        "label out of range": (
            copy("train/n000002", "train/Ann"),
            r"train/Ann is not a person's folder: .* n000001 \(",
        ),
    },
    "laionface": {
        "missing list": (
            remove("split_00001/00000.tar"),
            r"split_00001 is missing or holds no tar \(laionface expects",
        ),
        "extra column": NO_COLUMNS,
        "wrong count": NO_COUNT,
        "image missing": (uncaptioned, r"split_00001 has images without captions: let img2dataset save them"),
        "label out of range": NO_LABELS,
    },
    "ferplus": {
        "missing list": (
            remove("data/FER2013Train/label.csv"),
            r"FER2013Train/label\.csv is missing \(ferplus expects in its folder FER2013\{Train,Valid,Test\}/ with",
        ),
        "extra column": (
            edit("data/FER2013Train/label.csv", ",1,6,", ",1,6,0,"),
            r"label\.csv, line 2: 13 values where 12 are expected",
        ),
        "wrong count": (
            nothing,
            rf"has 6 train images with a majority where the published set has 25045: {WHOLE}",
        ),
        "image missing": (
            remove("data/FER2013Train/fer0000000.png"),
            r"label\.csv names .*fer0000000\.png, which is missing \(ferplus expects",
        ),
        "label out of range": (
            edit("data/FER2013Train/label.csv", ",1,6,", ",1,-6,"),
            r"label\.csv, line 2: the number of votes is '-6', not a whole number from 0 to 100",
        ),
    },
    "fer2013": {
        "missing list": (remove("fer2013.csv"), r"train is missing \(fer2013 expects in its folder fer2013\.csv"),
        "extra column": (edit("fer2013.csv", "Training", "Training,1"), r"line 2: 4 values where 3 are expected"),
        "wrong count": (nothing, rf"fer2013\.csv has 6 train images where the published set has 28709: {WHOLE}"),
        "image missing": (
            edit(
                "fer2013.csv",
                " ",
                "",
            ),
            r"line 2: 2303 pixels where 48 x 48 are expected",
        ),
        "label out of range": (
            edit("fer2013.csv", "\n3,", "\n7,"),
            r"fer2013\.csv, line 5: the emotion is '7', not a whole number from 0 to 6",
        ),
    },
    "rafdb": {
        "missing list": (
            remove("EmoLabel"),
            r"EmoLabel/list_patition_label\.txt is missing \(rafdb expects in its folder EmoLabel/",
        ),
        "extra column": (
            edit("EmoLabel/list_patition_label.txt", " 1\n", " 1 1\n"),
            r"label\.txt, line 2: 3 values where 2 are expected",
        ),
        "wrong count": (nothing, rf"label\.txt has 6 train images where the published set has 12271: {WHOLE}"),
        "image missing": (
            remove("Image/aligned/train_00001_aligned.jpg"),
            r"names .*/aligned/train_00001_aligned\.jpg, which is missing \(rafdb expects",
        ),
        "label out of range": (
            edit("EmoLabel/list_patition_label.txt", " 5\n", " 0\n"),
            r"label\.txt, line 1: the label is '0', not a whole number from 1 to 7",
        ),
    },
    "affectnet": {
        "missing list": (
            remove("Manually_Annotated_file_lists/training.csv"),
            r"training\.csv is missing \(affectnet expects in its folder Manually_Annotated_file_lists",
        ),
        "extra column": (
            edit("Manually_Annotated_file_lists/training.csv", "4.0,1,", "4.0,1,1,"),
            r"training\.csv, line 3: 10 values where 9 are expected",
        ),
        "wrong count": (
            nothing,
            rf"training\.csv has 6 train images of 8 classes where the published set has 287651: {WHOLE}",
        ),
        "image missing": (
            remove("Manually_Annotated_Images/0/0.jpg"),
            r"training\.csv names .*Images/0/0\.jpg, which is missing \(affectnet expects",
        ),
        "label out of range": (
            edit("Manually_Annotated_file_lists/training.csv", "4.0,10,", "4.0,11,"),
            r"training\.csv, line 10: the expression is '11', not a whole number from 0 to 10",
        ),
    },
    "celeba": {
        "missing list": (
            remove("list_attr_celeba.txt"),
            r"list_attr_celeba\.txt is missing \(celeba expects in its folder img_align_celeba/000001\.jpg",
        ),
        "extra column": (
            edit("identity_CelebA.txt", "2881\n", "2881 1\n"),
            r"identity_CelebA\.txt, line 3: 3 values where 2 are expected",
        ),
        "wrong count": (nothing, rf"partition\.txt has 6 train images where the published set has 162770: {WHOLE}"),
        "image missing": (
            remove("img_align_celeba/000001.jpg"),
            r"partition\.txt names .*000001\.jpg, which is missing \(celeba expects",
        ),
        "label out of range": (
            edit("list_attr_celeba.txt", "000002.jpg  -1", "000002.jpg  2"),
            r"list_attr_celeba\.txt, line 4: Attribute_0 is '2', not -1 or 1",
        ),
    },
    "utkface": {
        "missing list": NO_LIST,
        "extra column": (
            copy("61_1_20170109150557335.jpg.chip.jpg", "61_1_2_3_20170109150557335.jpg"),
            r"has names that do not say age, .*: 61_1_2_3_20170109150557335\.jpg; rename them, .* strict=false",
        ),
        "wrong count": NO_COUNT,
        "image missing": NO_LIST,
        "label out of range": (
            copy("61_1_20170109150557335.jpg.chip.jpg", "61_1_5_20170109150557335.jpg"),
            r"race \(0 to 4\): 61_1_5_20170109150557335\.jpg; rename them",
        ),
    },
    "lfw": {
        "missing list": (remove("pairs.txt"), r"pairs\.txt is missing \(lfw expects in its folder pairs\.txt"),
        "extra column": (
            edit("pairs.txt", "Bob\t1\t2", "Bob\t1\t2\t3"),
            r"pairs\.txt, line 3: 4 values where 3 are expected",
        ),
        "wrong count": (nothing, rf"pairs\.txt has 2 folds where the published set has 10: {WHOLE}"),
        "image missing": (
            remove("lfw/Ann_A/Ann_A_0001.jpg"),
            r"names .*Ann_A_0001\.jpg, which is missing \(lfw expects",
        ),
        "label out of range": (
            edit("pairs.txt", "Bob\t1\t2", "Bob\t0\t2"),
            r"line 3: the number of the image is '0', not a whole number from 1 to 9999",
        ),
    },
    "labels_csv": {
        "missing list": (remove("table.csv"), r"cannot read .*table\.csv: No such file .*\(labels-csv expects a CSV"),
        "extra column": (edit("table.csv", ",p0,", ",p0,1,"), r"table\.csv, line 2: 12 values where 11 are expected"),
        "wrong count": NO_COUNT,
        "image missing": (remove("img/0.jpg"), r"names .*img/0\.jpg, which is missing \(say with root= where paths"),
        "label out of range": (
            edit("table.csv", ",calm,2,", ",calm,-2,"),
            r"table\.csv, line 4: the region is '-2', not a whole number from 0 to",
        ),
    },
    "pairs_csv": {
        "missing list": (remove("pairs.csv"), r"cannot read .*pairs\.csv: No such file .*\(pairs-csv expects a CSV"),
        "extra column": (edit("pairs.csv", ",0,0\n", ",0,0,0\n"), r"pairs\.csv, line 3: 5 values where 4 are expected"),
        "wrong count": NO_COUNT,
        "image missing": (remove("img/0.jpg"), r"names .*img/0\.jpg, which is missing \(say with root= where paths"),
        "label out of range": (
            edit("pairs.csv", ",1,0\n", ",2,0\n"),
            r"pairs\.csv, line 2: the column same is '2', not a whole number from 0 to 1",
        ),
    },
}
KINDS = ("missing list", "extra column", "wrong count", "image missing", "label out of range")


def test_every_reader_is_broken_in_every_way() -> None:
    assert set(FAULTS) == set(READERS)
    assert all(set(faults) == set(KINDS) for faults in FAULTS.values())
    impossible = {fault for faults in FAULTS.values() for fault in faults.values() if isinstance(fault, str)}
    assert impossible == {NO_LIST, NO_COLUMNS, NO_COUNT, NO_LABELS}


#: Faults that a layout cannot have (`FAULTS` says why) are no test, neither passed nor skipped.
CASES = [
    pytest.param(name, kind, *fault, id=f"{name}-{kind}")
    for name, faults in FAULTS.items()
    for kind, fault in faults.items()
    if not isinstance(fault, str)
]


@pytest.mark.parametrize(("name", "kind", "change", "sentence"), CASES)
def test_a_broken_layout_is_one_sentence(
    name: str, kind: str, change: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    spec = build(name, tmp_path)
    change(tmp_path)
    with pytest.raises(FaceSSLError, match=sentence) as error:
        open_source(spec.replace("strict=false", "strict=true") if kind == "wrong count" else spec)
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(tmp_path), "")) < 350


@pytest.mark.parametrize("name", READERS)
def test_no_such_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*\(" + name.replace("_", "-") + " expects"):
        open_source(f"{name}:{tmp_path}/nowhere")


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("laionface", "fer2013")])
def test_a_later_image_may_be_missing(name: str, tmp_path: Path) -> None:
    """It is skipped and counted by the loader, as in every source."""
    source = open_source(build(name, tmp_path))
    Path(source.key(3)).unlink()
    with pytest.raises(ImageError, match="No such file"):
        source[3]
    assert len(source) == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (edit("list_attr_celeba.txt", "10\n", "11\n"), r"has 10 rows where its first line says 11"),
        (edit("list_attr_celeba.txt", "000003.jpg", "000333.jpg"), r"has no row for 000003\.jpg, which the partition"),
        (edit("list_eval_partition.txt", "000002.jpg  0", "000002.jpg  3"), r"line 2: the partition is '3'"),
        (edit("list_landmarks_align_celeba.txt", " 113 ", " nan "), r"line 3: the coordinate is 'nan', not a number"),
        (remove("list_eval_partition.txt"), r"list_eval_partition\.txt is missing \(celeba expects"),
    ],
)
def test_celeba_lists_must_agree(tmp_path: Path, change: Callable[[Path], None], sentence: str) -> None:
    spec = build("celeba", tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=sentence):
        open_source(spec)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (edit("pairs.txt", "2\t2\n", "2\t3\n"), r"line 4: 4 values where 3 are expected"),
        (edit("pairs.txt", "2\t2\n", "3\t2\n"), r"has 8 pairs where its first line says 2 x 3 x 2"),
        (edit("pairs.txt", "2\t2\n", "1\t2\n"), r"has 8 pairs where its first line says 2 x 1 x 2"),
    ],
)
def test_lfw_counts_must_agree(tmp_path: Path, change: Callable[[Path], None], sentence: str) -> None:
    spec = build("lfw", tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=sentence):
        open_source(spec)


def test_a_damaged_pixel_of_fer2013_is_one_skipped_image(tmp_path: Path) -> None:
    row = "3," + " ".join(["7"] * 2304) + ",Training"
    layouts.text(
        tmp_path / "fer2013.csv", "emotion,pixels,Usage", row, row.replace("7", "256", 1), row.replace("7", "x", 1)
    )
    source = open_source(f"fer2013:{tmp_path}?strict=false")
    assert len(source) == 3
    for at, reason in ((1, "pixels from 0 to 255"), (2, "a pixel is not a number")):
        with pytest.raises(ImageError, match=rf"fer2013\.csv/{at + 2}: .*{reason}"):
            source[at]


@pytest.mark.parametrize("name", ["fer2013", "affectnet"])
def test_class_folders_have_known_names(name: str, tmp_path: Path) -> None:
    for label in ("1", "mood"):
        layouts.face(tmp_path / "train" / label / "a.jpg")
    with pytest.raises(DataError, match=rf"train/mood is not a class: valid are .* \({name} expects"):
        open_source(f"{name}:{tmp_path}?strict=false")
    shutil.rmtree(tmp_path / "train/mood")
    with pytest.raises(DataError, match=r"train has images outside class folders, or a single class"):
        open_source(f"{name}:{tmp_path}?strict=false")
