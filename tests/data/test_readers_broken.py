"""Readers of data sets on broken layouts: one sentence each, with the file, what is there, and what is expected."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from facessl.core.errors import DataError, FaceSSLError
from facessl.data.skipped import ImageError
from facessl.data.source import open_source
from tests.data import layouts_labels as layouts
from tests.data import layouts_marks as marks
from tests.data import make
from tests.data.make import edit, remove

pytestmark = pytest.mark.filterwarnings("ignore:LaPa's training images", "ignore:.*has no .txt")

READERS = sorted(name.removeprefix("build_") for name in vars(layouts) if name.startswith("build_"))


def build(name: str, root: Path, options: str = "") -> str:
    """The spec of a data set in miniature in `root`."""
    known = vars(layouts) | vars(marks)
    spec: str = (known.get(f"build_{name}") or known[name])(root)
    return spec + (("&" if "?" in spec else "?") + options if options else "")


def copy(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (shutil.copytree if (root / old).is_dir() else shutil.copy)(root / old, root / new)

    return change


def unchanged(root: Path) -> None:
    """What is wrong is the option."""


def uncaptioned(root: Path) -> None:
    (root / "split_00001/00000.tar").unlink()
    make.shard(root / "split_00001/00000.tar", {"0.jpg": layouts.encoded(0)})


def longer(relative: str, text: str) -> Callable[[Path], None]:
    """Add values to the last line of a file."""

    def apply(root: Path) -> None:
        (root / relative).write_text((root / relative).read_text().rstrip("\n") + text)

    return apply


def fewer(relative: str) -> Callable[[Path], None]:
    """Leave out a point of a .pts file."""

    def apply(root: Path) -> None:
        rows = (root / relative).read_text().replace("n_points: 68", "n_points: 67").splitlines()
        (root / relative).write_text("\n".join([*rows[:3], *rows[4:]]))

    return apply


def mat(**changes: Any) -> Callable[[Path], None]:
    """Change arrays of AFLW's file; None leaves one out."""

    def apply(root: Path) -> None:
        file = root / "AFLWinfo_release.mat"
        info = {k: v for k, v in loadmat(file).items() if not k.startswith("__")}
        info |= {name: change(info[name]) if change else None for name, change in changes.items()}
        savemat(file, {k: v for k, v in info.items() if v is not None})

    return apply


def painted(relative: str, value: int | None) -> Callable[[Path], Any]:
    """A mask of another class, or of another size (None)."""
    return lambda root: marks.save(root / relative, np.full((48, 48) if value else (30, 30), value or 0, np.uint8))


COUNTED = (
    *("vggface2", "ferplus", "fer2013", "rafdb", "affectnet", "celeba", "lfw"),
    *("wflw", "w300", "aflw19", "lapa", "celebamaskhq"),
)
VOTES = "data/FER2013Train/label.csv"
AFFECT = "Manually_Annotated_file_lists/training.csv"
CELEBA, PARTS, POINTS = "list_attr_celeba.txt", "list_eval_partition.txt", "list_landmarks_align_celeba.txt"
UTK = "61_1_20170109150557335.jpg.chip.jpg"
RAW = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"
HRNET = "face_landmarks_wflw_train.csv"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
#: Source, what is broken, the sentence, options of the source.
BROKEN = [
    ("vggface2", remove("train"), r"train is missing \(vggface2 expects in its folder train/n000002/", ""),
    ("vggface2", remove("train/n000012", "train/n000022"), r"train has .* a single person \(vggface2 expects", ""),
    ("vggface2", copy("train/n000002", "train/Ann"), r"train/Ann is not a person's folder: .* n000001 \(", ""),
    ("laionface", remove("split_00001/00000.tar"), r"split_00001 is missing or holds no tar \(laionface expects", ""),
    ("laionface", uncaptioned, r"split_00001 has images without captions: let img2dataset save them", ""),
    ("ferplus", remove(VOTES), r"label\.csv is missing \(ferplus expects in .* FER2013\{Train,Valid,Test\}/", ""),
    ("ferplus", edit(VOTES, ",1,6,", ",1,-6,"), r"line 2: the number of votes is '-6', not a whole .* 0 to 100", ""),
    ("fer2013", remove("fer2013.csv"), r"train is missing \(fer2013 expects in its folder fer2013\.csv", ""),
    ("fer2013", edit("fer2013.csv", "Training", "Training,1"), r"line 2: 4 values where 3 are expected", ""),
    ("fer2013", edit("fer2013.csv", " ", ""), r"line 2: 2303 pixels where 48 x 48 are expected", ""),
    ("fer2013", edit("fer2013.csv", "\n3,", "\n7,"), r"line 5: the emotion is '7', not a whole number from 0 to 6", ""),
    ("rafdb", edit("EmoLabel/list_patition_label.txt", " 5\n", " 0\n"), "line 1: the label is '0', .* from 1 to 7", ""),
    ("affectnet", edit(AFFECT, "4.0,10,", "4.0,11,"), "line 10: the expression is '11', .* number from 0 to 10", ""),
    ("celeba", edit(CELEBA, "000002.jpg  -1", "000002.jpg  2"), r"line 4: Attribute_0 is '2', not -1 or 1", ""),
    ("celeba", edit(CELEBA, "10\n", "11\n"), r"has 10 rows where its first line says 11", ""),
    ("celeba", edit(CELEBA, "000003.jpg", "000333.jpg"), r"has no row for 000003\.jpg, which the partition", ""),
    ("celeba", edit(PARTS, "000002.jpg  0", "000002.jpg  3"), r"line 2: the partition is '3'", ""),
    ("celeba", edit(POINTS, " 113 ", " nan "), r"line 3: the righteye_y is 'nan', not a number", ""),
    ("utkface", copy(UTK, "61_1_2_3_20170109.jpg"), r"do not say age, .*: 61_1_2_3_20170109\.jpg; .* strict=false", ""),
    ("utkface", copy(UTK, "61_1_5_20170109.jpg"), r"race \(0 to 4\): 61_1_5_20170109\.jpg; rename them", ""),
    ("lfw", remove("pairs.txt"), r"pairs\.txt is missing \(lfw expects in its folder pairs\.txt", ""),
    ("lfw", edit("pairs.txt", "Bob\t1\t2", "Bob\t1\t2\t3"), r"pairs\.txt, line 3: 4 values where 3 are expected", ""),
    ("lfw", edit("pairs.txt", "Bob\t1\t2", "Bob\t0\t2"), "line 3: the number of the image is '0', .* 1 to 9999", ""),
    ("lfw", edit("pairs.txt", "2\t2\n", "2\t3\n"), r"line 4: 4 values where 3 are expected", ""),
    ("lfw", edit("pairs.txt", "2\t2\n", "3\t2\n"), r"has 8 pairs where its first line says 2 x 3 x 2", ""),
    ("lfw", edit("pairs.txt", "2\t2\n", "1\t2\n"), r"has 8 pairs where its first line says 2 x 1 x 2", ""),
    ("labels_csv", remove("table.csv"), r"cannot read .*table\.csv: No such file .*\(labels-csv expects a CSV", ""),
    ("labels_csv", edit("table.csv", ",p0,", ",p0,1,"), r"table\.csv, line 2: 12 values where 11 are expected", ""),
    ("labels_csv", remove("img/0.jpg"), r"names .*img/0\.jpg, which is missing \(say with root= where paths", ""),
    ("labels_csv", edit("table.csv", ",calm,2,", ",calm,-2,"), "line 4: the region is '-2', .* number from 0 to", ""),
    ("pairs_csv", remove("pairs.csv"), r"cannot read .*pairs\.csv: No such file .*\(pairs-csv expects a CSV", ""),
    ("pairs_csv", edit("pairs.csv", ",1,0\n", ",2,0\n"), "line 2: the column same is '2', .* number from 0 to 1", ""),
    ("wflw", remove(HRNET), r"face_landmarks_wflw_train.csv is missing \(wflw expects", "format=hrnet"),
    ("wflw", remove(RAW), r"list_98pt_rect_attr_train.txt is missing \(wflw expects", "format=raw"),
    ("wflw", longer(RAW, " 1"), "line 6: 208 values where 207", "format=raw"),
    ("wflw", edit(RAW, " 5 6 40 41 1", " 5 6 40 41 7"), "line 1: the six flags", "format=raw"),
    ("wflw", longer(HRNET, ",1"), "line 7: 201 values where 200", ""),
    ("wflw", edit(HRNET, "image_name", "name"), "begins with 'name, scale", ""),
    ("wflw", edit(HRNET, "0--Event/train_0.jpg,0.", "0--Event/train_0.jpg,x0."), "line 2: .*not a number", ""),
    ("wflw", remove("WFLW_images/0--Event/train_0.jpg"), "train_0.jpg, which is missing", ""),
    ("wflw", edit("face_landmarks_wflw_test_largepose.csv", "test_0", "other"), "other.jpg that", "split=test"),
    ("w300", remove("afw/a_1.jpg"), "a_1.pts has no image", ""),
    ("w300", longer("afw/a_1.pts", "\n1 2"), "is not a .pts file: ", ""),
    ("w300", edit("afw/a_1.pts", "n_points:  68", "n_points:  29"), "is not a .pts file: ", ""),
    ("w300", edit("afw/a_1.pts", "{\n", "{\nnan "), "line 4: 3 values where 2", ""),
    ("points", remove("train/a/face0.jpg"), "face0.pts has no image", ""),
    ("points", fewer("train/b/face1.pts"), "face1.pts has 67 points where 68 are expected", ""),
    ("points", unchanged, "has 68 landmarks, but the layout wflw98 has 98", "layout=wflw98"),
    ("points", remove("test"), "test is missing", "split=test"),
    ("points", unchanged, r"start=2 cannot be used: it must be one of 0, 1", "start=2"),
    ("w300_tables", remove("face_landmarks_300w_valid_challenge.csv"), "challenge.csv is missing", "split=full"),
    ("aflw19", remove("AFLWinfo_release.mat"), "AFLWinfo_release.mat is missing", ""),
    ("aflw19", lambda root: (root / "AFLWinfo_release.mat").write_bytes(b"x" * 200), "MATLAB", ""),
    ("aflw19", mat(mask_new=None), "has no mask_new", ""),
    ("aflw19", mat(data=lambda a: a[:, :-1]), r"data is \(7, 37\) where \(7, 38\)", ""),
    ("aflw19", mat(ra=lambda a: a * 0 + 1), "ra is not a permutation of 1 to 7", ""),
    ("aflw19", mat(bbox=lambda a: a[:, [0, 2, 1, 3]]), "not left, right, top, bottom", ""),
    ("lapa", remove("train/labels/face3.png"), "face3.png is missing", ""),
    ("lapa", remove("train/landmarks/face3.txt"), "face3.txt is missing", ""),
    ("lapa", painted("train/labels/face0.png", 11), r"face0.png has the class 11, but lapa names 11 \(0 to 10\)", ""),
    ("lapa", painted("train/labels/face0.png", None), "has 48x48 pixels, but its mask .*30x30", ""),
    ("lapa", longer("train/landmarks/face0.txt", " 4"), "214 values and begins with '106'", ""),
    ("celebamaskhq", remove(MAPPING), "mapping.txt is missing", ""),
    ("celebamaskhq", longer(MAPPING, " 4"), "line 11: 4 values where 3", ""),
    ("celebamaskhq", edit(MAPPING, "1 7 ", "1 999999 "), "line 3: the original index is '999999'", ""),
    ("celebamaskhq", edit(MAPPING, "1 7 ", "0 7 "), "lists an index twice", ""),
    ("celebamaskhq", remove("list_eval_partition.txt"), "list_eval_partition.txt is missing", "partition=celeba"),
    ("celebamaskhq", edit("list_eval_partition.txt", "000008", "000009"), "000008.jpg, which", "partition=celeba"),
    ("landmarks_csv", remove("faces.csv"), "cannot read .*faces.csv", ""),
    ("landmarks_csv", edit("faces.csv", "x0,y0", "a,b"), "no columns x0, y0", ""),
    ("landmarks_csv", edit("faces.csv", ",x67,y67", ",u,v"), "has 67 landmarks, but the layout ibug68 has 68", ""),
    ("landmarks_csv", longer("faces.csv", ",1"), "line 9: 140 values where 139", ""),
    ("landmarks_csv", remove("images/face0.jpg"), "face0.jpg, which is missing", ""),
    ("masks_folder", remove("classes.txt"), "classes.txt is missing", ""),
    ("masks_folder", remove("masks/face2.png"), "face2.jpg has no mask", ""),
    ("masks_folder", edit("classes.txt", "mouth", "skin"), "must name 2 to 255 different classes", ""),
    ("masks_folder", painted("masks/face0.png", 12), r"class 12, but .*classes.txt names 11 \(0 to 10\)", ""),
    ("masks_folder", unchanged, "pairs of different classes from 0 to 10", "flip=4:50"),
    ("masks_folder", unchanged, "it is not divided", "split=val"),
]


def refused(spec: str, sentence: str, root: Path) -> None:
    with pytest.raises(FaceSSLError, match=sentence) as error:
        open_source(spec)[0]
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(root), "")) < 350


@pytest.mark.parametrize(
    ("name", "change", "sentence", "options"), BROKEN, ids=[f"{row[0]}-{i}" for i, row in enumerate(BROKEN)]
)
def test_a_broken_layout_is_one_sentence(
    name: str, change: Callable[[Path], Any], sentence: str, options: str, tmp_path: Path
) -> None:
    spec = build(name, tmp_path, options)
    change(tmp_path)
    refused(spec, sentence, tmp_path)


@pytest.mark.parametrize("name", COUNTED)
def test_a_part_of_a_published_set_is_refused(name: str, tmp_path: Path) -> None:
    spec = build(name, tmp_path).replace("strict=false", "strict=true")
    refused(spec, r"has \d+ .* where the published set has \d+.*: get the whole set, or .* with strict=false", tmp_path)


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
