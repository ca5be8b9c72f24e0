"""Readers of landmark and mask sets on broken layouts: one clear sentence each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from facessl.core.errors import FaceSSLError
from facessl.data.source import open_source
from tests.data import layouts_marks as marks

from .make import edit, remove

pytestmark = pytest.mark.filterwarnings("ignore:LaPa's training images")


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


def painted(relative: str, value: int | None) -> Callable[[Path], None]:
    """A mask of another class, or of another size (None)."""
    return lambda root: marks.save(root / relative, np.full((48, 48) if value else (30, 30), value or 0, np.uint8))


RAW = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"
HRNET = "face_landmarks_wflw_train.csv"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
BROKEN = [
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
    ("points", lambda root: None, "has 68 landmarks, but the layout wflw98 has 98", "layout=wflw98"),
    ("points", remove("test"), "test is missing", "split=test"),
    ("points", lambda root: None, r"start=2 cannot be used: it must be one of 0, 1", "start=2"),
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
    ("masks_folder", lambda root: None, "pairs of different classes from 0 to 10", "flip=4:50"),
    ("masks_folder", lambda root: None, "it is not divided", "split=val"),
]


@pytest.mark.parametrize(
    ("name", "breaks", "message", "options"),
    [
        pytest.param(name, breaks, message, options, id=f"{name}-{i}")
        for i, (name, breaks, message, options) in enumerate(BROKEN)
    ],
)
def test_broken_layouts_are_one_sentence(
    name: str, breaks: Callable[[Path], Any], message: str, options: str, tmp_path: Path
) -> None:
    spec = (getattr(marks, f"build_{name}", None) or getattr(marks, name))(tmp_path)
    breaks(tmp_path)
    if options:
        spec += ("&" if "?" in spec else "?") + options
    with pytest.raises(FaceSSLError, match=message) as caught:
        open_source(spec)[0]
    assert "\n" not in str(caught.value)
