"""WFLW: 10000 faces with 98 landmarks, from the raw lists or HRNet's tables."""

from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.data.source import TRAIN_TEST, Source
from facessl.data.sources._annotations import hrnet_table, numbers
from facessl.data.sources._lists import choice, counted, expected, find, find_any, root_folder, text_rows

POINTS = 98
RAW = "list_98pt_rect_attr_train_test/list_98pt_rect_attr_{}.txt"
LAYOUT = expected(
    "wflw",
    "face_landmarks_wflw_train.csv and face_landmarks_wflw_test.csv (HRNet)"
    f" or WFLW_annotations/{RAW.format('train')} and its test (raw)",
    "WFLW_images/ or images/",
)
SIZES = {"train": 7500, "test": 2500}
#: Subsets in the order of the raw list's flags, their names in HRNet's files, and their published sizes.
SUBSETS = {
    "pose": ("largepose", 326),
    "expression": ("expression", 314),
    "illumination": ("illumination", 698),
    "makeup": ("makeup", 206),
    "occlusion": ("occlusion", 736),
    "blur": ("blur", 773),
}
_RAW_WIDTH = 2 * POINTS + 4 + len(SUBSETS) + 1

_Part = tuple[list[str], np.ndarray, np.ndarray, dict[str, np.ndarray]]


class WFLW(Source):
    """Wider Facial Landmarks in-the-Wild (Wu et al., CVPR 2018).

    License: research use, images of WIDER FACE; see the data set's own terms. Photographs of real people.
    Expected: images in `WFLW_images/` (or `images/`), and either HRNet's `face_landmarks_wflw_{train,test}.csv` with
    `face_landmarks_wflw_test_{largepose,expression,illumination,makeup,occlusion,blur}.csv`, or the release's
    `WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{train,test}.txt` (196 coordinates, box left
    top right bottom, six flags, path). Asserted: 7500 / 2500 faces and the sizes of the subsets, which also asserts the
    order of the flags. The set has no validation part. Coordinates are taken as they are, as FaRL does.

    The formats differ in `box`: the raw list's rectangle, or HRNet's square of side 200 `scale` around the center, from
    which the published crops are made.

    Attributes:
        subsets: the six subsets of the test split; of HRNet's those whose file is there.
    """

    splits = TRAIN_TEST
    layout = "wflw98"

    def __init__(self, path: str | Path, *, split: str = "train", format: str = "auto", strict: bool = True) -> None:
        """`format` is raw, hrnet, or auto: HRNet's tables if they are there."""
        choice("wflw", "split", split, SIZES)
        choice("wflw", "format", format, ("auto", "raw", "hrnet"))
        root = root_folder(path, LAYOUT)
        table = f"face_landmarks_wflw_{split}.csv"
        if format == "auto":
            format = "hrnet" if find_any(root, [table]) else "raw"
        if format == "hrnet":
            file = find(root, [table], LAYOUT)
            names, points, boxes, subsets = _hrnet(file)
        else:
            raw = RAW.format(split)
            file = find(root, [f"WFLW_annotations/{raw}", raw], LAYOUT)
            names, points, boxes, subsets = _raw(file)
        counted(file, f"{split} faces", len(names), SIZES[split], strict)
        self.subsets = subsets if split == "test" else {}
        for name, positions in self.subsets.items() if strict else ():
            counted(file, f"faces of the subset {name}", len(positions), SUBSETS[name][1], strict)
        images = find(root, ["WFLW_images", "images"], LAYOUT)
        super().__init__(names, {"landmarks": points, "box": boxes}, folder=images, file=file, hint=LAYOUT)


def _raw(file: Path) -> _Part:
    """Names, landmarks (N, 98, 2), boxes (N, 4) and subsets of a raw list."""
    names, values = [], []
    for where, cells in text_rows(file, _RAW_WIDTH, LAYOUT):
        names.append(cells[-1])
        values.append(numbers(cells[:-1], where, "value"))
        flags = values[-1][-len(SUBSETS) :]
        if not np.isin(flags, (0, 1)).all():
            raise DataError(f"{where}: the six flags before the path are {cells[-7:-1]}, not 0 or 1 each")
    table = np.array(values).reshape(-1, _RAW_WIDTH - 1)
    flags = table[:, -len(SUBSETS) :]
    subsets = {name: np.flatnonzero(flags[:, i]) for i, name in enumerate(SUBSETS)}
    return names, table[:, : 2 * POINTS].reshape(-1, POINTS, 2), table[:, 2 * POINTS : 2 * POINTS + 4], subsets


def _hrnet(file: Path) -> _Part:
    """Return as `_raw` from a table, with the subsets from the tables beside it."""
    names, points, boxes = hrnet_table(file, POINTS, LAYOUT)
    # One image may show several faces, so a face is known by its image and its box.
    place = {(name, *box): i for i, (name, box) in enumerate(zip(names, boxes.round(2).tolist(), strict=True))}
    subsets = {}
    for subset, (called, _) in SUBSETS.items():
        subset_file = file.with_name(f"{file.stem}_{called}.csv")
        if not subset_file.exists():
            continue
        table = hrnet_table(subset_file, POINTS, LAYOUT)
        faces = [(name, *box) for name, box in zip(table[0], table[2].round(2).tolist(), strict=True)]
        unknown = next((face for face in faces if face not in place), None)
        if unknown is not None:
            raise DataError(
                f"{subset_file} has a face of {unknown[0]} that {file} does not have: take both from one release"
            )
        subsets[subset] = np.array(sorted(place[face] for face in faces), np.int64)
    return names, points, boxes, subsets
