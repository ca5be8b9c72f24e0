"""AFLW-19: 24386 faces with 19 landmarks and their visibility."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from facessl.core.errors import DataError
from facessl.data.source import TRAIN_TEST, Source
from facessl.data.sources._lists import choice, counted, expected, find, root_folder

FILE = "AFLWinfo_release.mat"
LAYOUT = expected("aflw19", f"{FILE} (bbox, data, mask_new, nameList, ra)", "data/flickr/{0,2,3}/image00002.jpg")
POINTS = 19
FACES, TRAIN, FRONTAL = 24386, 20000, 1314
_WIDTHS = {"bbox": 4, "data": 2 * POINTS, "mask_new": POINTS}


class AFLW19(Source):
    """AFLW with the 19 landmarks of Zhu et al. (CVPR 2016), without the ears.

    License: AFLW is for non-commercial research, on request; see the data set's own terms. Photographs of real people.
    Expected: `AFLWinfo_release.mat` and the images in `data/flickr/{0,2,3}/`. In the file `bbox` is left, right, top,
    bottom (in this order), `data` x1..x19, y1..y19, `mask_new` 1 if a point is visible, and `ra` a permutation that
    counts from 1: its first 20000 faces are train, the other 4386 test. Asserted: shapes, the permutation, 24386 faces
    and 1314 frontal ones. Coordinates are taken as they are, as FaRL does. There is no validation part.

    `box` is the file's, as left, top, right, bottom: the units "box" sqrt(w h) and "diagonal" of NME are its.

    Attributes:
        layout: "aflw19".
        subsets: of the test split: frontal, the faces with all 19 points visible. The whole split is "full".
    """

    splits = TRAIN_TEST
    layout = "aflw19"

    def __init__(self, path: str | Path, *, split: str = "train", strict: bool = True) -> None:
        """`strict` false: a part of the set, which is cut in the published proportion."""
        choice("aflw19", "split", split, ("train", "test"))
        root = root_folder(path, LAYOUT)
        file = find(root, [FILE], LAYOUT)
        info = _load(file)
        counted(file, "faces", len(info["bbox"]), FACES, strict)
        cut = round(TRAIN * len(info["bbox"]) / FACES)
        rows = info["ra"][:cut] if split == "train" else info["ra"][cut:]
        visible = info["mask_new"][rows]
        if split == "test":
            self.subsets = {"frontal": np.flatnonzero((visible == 1).all(1))}
            if strict:
                counted(file, "frontal test faces", len(self.subsets["frontal"]), FRONTAL, strict)
        columns = {
            "landmarks": info["data"][rows].reshape(-1, 2, POINTS).transpose(0, 2, 1),  # x.. y.. -> (N, 19, 2)
            "visible": visible == 1,
            "box": info["bbox"][rows][:, [0, 2, 1, 3]],  # left, right, top, bottom -> left, top, right, bottom
        }
        names = [info["names"][row] for row in rows.tolist()]
        images = find(root, ["data/flickr"], LAYOUT)
        super().__init__(names, columns, folder=images, file=file, hint=LAYOUT)


def _load(file: Path) -> dict[str, Any]:
    """The file's arrays: bbox (N, 4), data (N, 38), mask_new (N, 19), ra (N,) from 0, and N names."""
    try:
        raw = loadmat(file)
    except Exception as error:  # scipy raises nearly any class on damaged bytes, NotImplementedError on MATLAB 7.3
        raise DataError(f"{file} cannot be read as a MATLAB file: {error}") from None
    for name in (*_WIDTHS, "nameList", "ra"):
        if name not in raw:
            raise DataError(f"{file} has no {name} ({LAYOUT})")
    faces = len(raw["bbox"])
    for name, width in _WIDTHS.items():
        if raw[name].shape != (faces, width):
            raise DataError(f"{file}: {name} is {raw[name].shape} where ({faces}, {width}) is expected")
        if not np.isfinite(raw[name]).all():
            raise DataError(f"{file}: {name} has a value that is not a number")
    order = raw["ra"].astype(np.int64).reshape(-1) - 1
    if not np.array_equal(np.sort(order), np.arange(faces)):
        raise DataError(f"{file}: ra is not a permutation of 1 to {faces}")
    try:
        names = [cell[0][0] for cell in raw["nameList"]]
    except (IndexError, TypeError):
        names = []
    if len(names) != faces or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: nameList has {len(raw['nameList'])} entries, not {faces} names of images")
    left, right, top, bottom = raw["bbox"].T
    x, y = (half.mean(1) for half in np.split(raw["data"], 2, axis=1))
    outside = np.flatnonzero((x < left) | (x > right) | (y < top) | (y > bottom))
    if len(outside) > faces / 10:  # not single slips, but another order of the columns
        box = raw["bbox"][outside[0]].tolist()
        raise DataError(f"{file}: bbox {outside[0] + 1} is {box}, not left, right, top, bottom of its landmarks")
    return {**{name: raw[name] for name in _WIDTHS}, "ra": order, "names": names}
