"""LaPa: 22176 faces with an 11-class mask and 106 landmarks."""

import functools
import warnings
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.decode import read_file
from facessl.data.layouts import swapped
from facessl.data.source import TRAIN_VAL_TEST, Source
from facessl.data.sources._annotations import give_mask, numbers, square_around
from facessl.data.sources._lists import choice, counted, expected, find, names_by_stem, part_folder, root_folder

POINTS = 106
LAYOUT = expected("lapa", "train, val, test, each with images/NAME.jpg, labels/NAME.png and landmarks/NAME.txt")
CLASSES = (
    *("background", "skin", "left_eyebrow", "right_eyebrow", "left_eye", "right_eye"),
    *("nose", "upper_lip", "inner_mouth", "lower_lip", "hair"),
)
#: The paper says 18176 training faces; 18186 were counted in a copy of the release (JDAI-CV/lapa-dataset, issue 9).
SIZES = {"train": (18176, 18186), "val": (2000,), "test": (2000,)}
#: Pupils on the image's left and right, tip of the nose, mouth corners: the five points of FaRL's crops.
FIVE = (104, 105, 54, 84, 90)


class LaPa(Source):
    """Landmark guided face Parsing (Liu et al., AAAI 2020).

    License: non-commercial research; see the data set's own terms. Photographs of real people.
    Expected: `{train,val,test}/images/NAME.jpg`, `labels/NAME.png` (classes 0..10 in the order of `mask_names`) and
    `landmarks/NAME.txt` (106, then 106 pairs). Asserted: every image has its two files, and 18176 (or 18186) / 2000 /
    2000 images. Left is the image's left: `left_eye` is the eye at small x, the person's right one.

    **The training part contains warped images of Helen (5473), LFPW (2975), AFW (771) and iBUG (251)**, so a network
    that saw it must not be scored on 300-W; opening it warns once.

    Masks and landmarks are read with their image. `five_points` are landmarks 104, 105, 54, 84, 90 (FaRL's crops);
    `box` is the square around the landmarks' bounding box, since the set has no boxes.
    """

    provides = frozenset({"mask", "landmarks", "five_points", "box"})
    splits = TRAIN_VAL_TEST
    layout = "lapa106"
    mask_names = CLASSES
    mask_flip = swapped(len(CLASSES), [(2, 3), (4, 5)])

    def __init__(self, path: str | Path, *, split: str = "train", strict: bool = True) -> None:
        choice("lapa", "split", split, SIZES)
        folder = part_folder(root_folder(path, LAYOUT), split, LAYOUT)
        images = find(folder, ["images"], LAYOUT)
        image_names = names_by_stem(images, (".jpg",))
        counted(images, f"{split} images", len(image_names), SIZES[split], strict)
        for kind, ending in (("labels", ".png"), ("landmarks", ".txt")):
            present = names_by_stem(find(folder, [kind], LAYOUT), (ending,))
            lacking = next((stem for stem in image_names if stem not in present), None)
            if lacking is not None:
                raise DataError(f"{folder / kind / lacking}{ending} is missing ({LAYOUT})")
        self._part = folder
        super().__init__(image_names.values(), folder=images, file=images, hint=LAYOUT)
        if split == "train":
            _warn_of_overlap()

    def __getitem__(self, index: int) -> Sample:
        """Face `index` with its mask and landmarks; DataError if a file holds another class or other landmarks."""
        sample = super().__getitem__(index)
        stem = Path(sample.key).stem
        give_mask(sample, f"{self._part}/labels/{stem}.png", len(CLASSES), "lapa")
        sample.landmarks = _landmarks(f"{self._part}/landmarks/{stem}.txt")
        sample.five_points = sample.landmarks[list(FIVE)]
        sample.box = square_around(sample.landmarks)
        return sample


def _landmarks(file: str) -> np.ndarray:
    """(106, 2) float32 of a file: 106, then x y x y ..."""
    cells = read_file(file).decode("ascii", "replace").split()
    if len(cells) != 1 + 2 * POINTS or cells[0] != str(POINTS):
        raise DataError(
            f"{file} has {len(cells)} values and begins with {cells[0] if cells else 'nothing'!r} where {POINTS} and "
            f"{2 * POINTS} coordinates are expected"
        )
    return numbers(cells[1:], file, "coordinate").reshape(POINTS, 2).astype(np.float32)


@functools.cache
def _warn_of_overlap() -> None:
    """Once in a process."""
    warnings.warn(
        "LaPa's training images contain 300-W's (Helen, LFPW, AFW, iBUG, warped): "
        "do not score a network that was trained on them on 300-W",
        UserWarning,
        stacklevel=3,
    )
