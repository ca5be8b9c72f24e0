"""VGGFace2: 3.31 million loosely cropped faces of 9131 persons, the images that FRA is trained on."""

import re
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.source import TRAIN_TEST
from facessl.data.sources._lists import choice, counted, expected, part_folder, root_folder
from facessl.data.sources.folder import Folder

LAYOUT = expected("vggface2", "train/n000002/0001_01.jpg", "test/n000001/0001_01.jpg")

#: Persons in the published splits.
PERSONS = {"train": 8631, "test": 500}


class VGGFace2(Folder):
    """VGGFace2 (Cao et al., FG 2018), one folder per person; label and identity are the place of the person's folder.

    License: for research; the official site is gone, see the data set's own terms. Photographs of real people.
    Expected: `train|test/n000001/0001_01.jpg`. Asserted: names of the folders, and 8631 / 500 persons. The list of
    images is kept in the user's cache (see `folder`), so that later starts are quick. `test` has other persons.
    """

    splits = TRAIN_TEST

    def __init__(self, path: str | Path, *, split: str = "train", strict: bool = True, cache: bool = True) -> None:
        choice("vggface2", "split", split, PERSONS)
        folder = part_folder(root_folder(path, LAYOUT), split, LAYOUT)
        super().__init__(folder, cache=cache)
        self.provides = self.columns = frozenset({"label", "identity"})
        if len(self.label_names) < 2 or (self.values("label") < 0).any():
            raise DataError(f"{folder} has images outside persons' folders, or a single person ({LAYOUT})")
        odd = next((name for name in self.label_names if not re.fullmatch(r"n\d{6}", name)), None)
        if odd is not None:
            raise DataError(f"{folder / odd} is not a person's folder: they are called n000001 ({LAYOUT})")
        counted(folder, "persons", len(self.label_names), PERSONS[split], strict)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample.identity = sample.label
        return sample

    def values(self, field: str) -> np.ndarray:
        return super().values("label")
