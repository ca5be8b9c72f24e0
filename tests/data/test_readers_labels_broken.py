"""The same readers on broken layouts: one sentence each, with the file, what is there, and what is expected."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from facessl.core.errors import DataError, FaceSSLError
from facessl.data.decode import ImageError
from facessl.data.source import open_source

from . import layouts_labels as layouts
from . import make
from .make import edit, remove

READERS = sorted(name.removeprefix("build_") for name in vars(layouts) if name.startswith("build_"))


def build(name: str, root: Path) -> str:
    """The spec of a data set in miniature in `root`."""
    spec: str = getattr(layouts, f"build_{name}")(root)
    return spec


def copy(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (shutil.copytree if (root / old).is_dir() else shutil.copy)(root / old, root / new)

    return change


def uncaptioned(root: Path) -> None:
    (root / "split_00001/00000.tar").unlink()
    make.shard(root / "split_00001/00000.tar", {"0.jpg": layouts.encoded(0)})


COUNTED = ("vggface2", "ferplus", "fer2013", "rafdb", "affectnet", "celeba", "lfw")
BROKEN = [
    ("vggface2", remove("train"), r"train is missing \(vggface2 expects in its folder train/n000002/"),
    ("vggface2", remove("train/n000012", "train/n000022"), r"train has .* a single person \(vggface2 expects"),
    ("vggface2", copy("train/n000002", "train/Ann"), r"train/Ann is not a person's folder: .* n000001 \("),
    ("laionface", remove("split_00001/00000.tar"), r"split_00001 is missing or holds no tar \(laionface expects"),
    ("laionface", uncaptioned, r"split_00001 has images without captions: let img2dataset save them"),
    (
        "ferplus",
        remove("data/FER2013Train/label.csv"),
        r"FER2013Train/label\.csv is missing \(ferplus expects in its folder FER2013\{Train,Valid,Test\}/ with",
    ),
    (
        "ferplus",
        edit("data/FER2013Train/label.csv", ",1,6,", ",1,-6,"),
        r"label\.csv, line 2: the number of votes is '-6', not a whole number from 0 to 100",
    ),
    ("fer2013", remove("fer2013.csv"), r"train is missing \(fer2013 expects in its folder fer2013\.csv"),
    ("fer2013", edit("fer2013.csv", "Training", "Training,1"), r"line 2: 4 values where 3 are expected"),
    ("fer2013", edit("fer2013.csv", " ", ""), r"line 2: 2303 pixels where 48 x 48 are expected"),
    (
        "fer2013",
        edit("fer2013.csv", "\n3,", "\n7,"),
        r"fer2013\.csv, line 5: the emotion is '7', not a whole number from 0 to 6",
    ),
    (
        "rafdb",
        edit("EmoLabel/list_patition_label.txt", " 5\n", " 0\n"),
        r"label\.txt, line 1: the label is '0', not a whole number from 1 to 7",
    ),
    (
        "affectnet",
        edit("Manually_Annotated_file_lists/training.csv", "4.0,10,", "4.0,11,"),
        r"training\.csv, line 10: the expression is '11', not a whole number from 0 to 10",
    ),
    (
        "celeba",
        edit("list_attr_celeba.txt", "000002.jpg  -1", "000002.jpg  2"),
        r"list_attr_celeba\.txt, line 4: Attribute_0 is '2', not -1 or 1",
    ),
    (
        "utkface",
        copy("61_1_20170109150557335.jpg.chip.jpg", "61_1_2_3_20170109150557335.jpg"),
        r"has names that do not say age, .*: 61_1_2_3_20170109150557335\.jpg; rename them, .* strict=false",
    ),
    (
        "utkface",
        copy("61_1_20170109150557335.jpg.chip.jpg", "61_1_5_20170109150557335.jpg"),
        r"race \(0 to 4\): 61_1_5_20170109150557335\.jpg; rename them",
    ),
    ("lfw", remove("pairs.txt"), r"pairs\.txt is missing \(lfw expects in its folder pairs\.txt"),
    ("lfw", edit("pairs.txt", "Bob\t1\t2", "Bob\t1\t2\t3"), r"pairs\.txt, line 3: 4 values where 3 are expected"),
    (
        "lfw",
        edit("pairs.txt", "Bob\t1\t2", "Bob\t0\t2"),
        r"line 3: the number of the image is '0', not a whole number from 1 to 9999",
    ),
    ("labels_csv", remove("table.csv"), r"cannot read .*table\.csv: No such file .*\(labels-csv expects a CSV"),
    ("labels_csv", edit("table.csv", ",p0,", ",p0,1,"), r"table\.csv, line 2: 12 values where 11 are expected"),
    ("labels_csv", remove("img/0.jpg"), r"names .*img/0\.jpg, which is missing \(say with root= where paths"),
    (
        "labels_csv",
        edit("table.csv", ",calm,2,", ",calm,-2,"),
        r"table\.csv, line 4: the region is '-2', not a whole number from 0 to",
    ),
    ("pairs_csv", remove("pairs.csv"), r"cannot read .*pairs\.csv: No such file .*\(pairs-csv expects a CSV"),
    (
        "pairs_csv",
        edit("pairs.csv", ",1,0\n", ",2,0\n"),
        r"pairs\.csv, line 2: the column same is '2', not a whole number from 0 to 1",
    ),
    ("celeba", edit("list_attr_celeba.txt", "10\n", "11\n"), r"has 10 rows where its first line says 11"),
    (
        "celeba",
        edit("list_attr_celeba.txt", "000003.jpg", "000333.jpg"),
        r"has no row for 000003\.jpg, which the partition",
    ),
    ("celeba", edit("list_eval_partition.txt", "000002.jpg  0", "000002.jpg  3"), r"line 2: the partition is '3'"),
    (
        "celeba",
        edit("list_landmarks_align_celeba.txt", " 113 ", " nan "),
        r"line 3: the righteye_y is 'nan', not a number",
    ),
    ("lfw", edit("pairs.txt", "2\t2\n", "2\t3\n"), r"line 4: 4 values where 3 are expected"),
    ("lfw", edit("pairs.txt", "2\t2\n", "3\t2\n"), r"has 8 pairs where its first line says 2 x 3 x 2"),
    ("lfw", edit("pairs.txt", "2\t2\n", "1\t2\n"), r"has 8 pairs where its first line says 2 x 1 x 2"),
]


def refused(spec: str, sentence: str, root: Path) -> None:
    with pytest.raises(FaceSSLError, match=sentence) as error:
        open_source(spec)
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(root), "")) < 350


@pytest.mark.filterwarnings("ignore:.*have no .txt")
@pytest.mark.parametrize(("name", "change", "sentence"), BROKEN, ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)])
def test_a_broken_layout_is_one_sentence(
    name: str, change: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    spec = build(name, tmp_path)
    change(tmp_path)
    refused(spec, sentence, tmp_path)


@pytest.mark.parametrize("name", COUNTED)
def test_a_part_of_a_published_set_is_refused(name: str, tmp_path: Path) -> None:
    spec = build(name, tmp_path).replace("strict=false", "strict=true")
    refused(spec, r"has \d+ .* where the published set has \d+: get the whole set, or .* with strict=false", tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_no_such_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*\(" + name.replace("_", "-") + " expects"):
        open_source(f"{name}:{tmp_path}/nowhere")


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
    assert len(open_source(f"{name}:{tmp_path}?strict=false")) == 1
    layouts.face(tmp_path / "train" / "a.jpg")
    with pytest.raises(DataError, match=r"train/a\.jpg lies outside the class folders of .*train \("):
        open_source(f"{name}:{tmp_path}?strict=false")
