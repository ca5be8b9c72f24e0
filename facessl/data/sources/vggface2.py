"""VGGFace2: 3.31 million loosely cropped faces of 9131 persons, the images that FRA is trained on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.sources._lists import choice, counted, expected, find, root_folder
from facessl.data.sources.folder import Folder

LAYOUT = expected("vggface2", "train/n000002/0001_01.jpg", "test/n000001/0001_01.jpg")

#: Persons in the published splits.
PERSONS = {"train": 8631, "test": 500}


class VGGFace2:
    """VGGFace2 (Cao et al., FG 2018), one folder per person; label and identity are the place of the person's folder.

    Licence: for research; the official site is gone, see the data set's own terms. Photographs of real people.
    Expected: `train|test/n000001/0001_01.jpg`. Asserted: names of the folders, and 8631 / 500 persons. The list of
    images is kept in the user's cache (see `folder`), so that later starts are quick. `test` has other persons.

    Attributes:
        label_names: folder names of the split's persons.
    """

    provides = frozenset({"label", "identity"})
    attribute_names: tuple[str, ...] = ()
    streaming = False
    splits: ClassVar = {"train": "train", "test": "test"}

    def __init__(self, path: str | Path, *, split: str = "train", strict: bool = True, cache: bool = True) -> None:
        """
        Args:
            path: folder that holds `train` and `test`.
            split: train or test.
            strict: refuse a part of the persons.
            cache: keep the list of files in the user's cache folder.

        Raises:
            ConfigError: no such split.
            DataError: another layout, or another number of persons.
        """
        choice("vggface2", "split", split, PERSONS)
        folder = find(root_folder(path, LAYOUT), [split], LAYOUT)
        self._folder = Folder(folder, cache=cache)
        self.label_names = self._folder.label_names
        if not self.label_names:
            raise DataError(f"{folder} has images outside persons' folders, or a single person ({LAYOUT})")
        odd = next((name for name in self.label_names if not re.fullmatch(r"n\d{6}", name)), None)
        if odd is not None:
            raise DataError(f"{folder / odd} is not a person's folder: they are called n000001 ({LAYOUT})")
        counted(folder, "persons", len(self.label_names), PERSONS[split], strict)

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes. Raises ImageError where the file cannot be read."""
        sample = self._folder[index]
        sample.identity = sample.label
        return sample

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        return self._folder.key(index)

    def column(self, field: str) -> np.ndarray:
        """(N,) labels, which are the identities too; no image is read."""
        return self._folder.labels()
