"""Class folders whose labels have a fixed order, on top of the folder source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.sources.folder import Folder


class ClassFolders:
    """The images of the sub-folders of a folder; the sub-folder's name says the label.

    The folder source numbers sub-folders by the alphabet and by those that are there; a published class order
    needs neither to change a label.
    """

    provides = frozenset({"label"})

    def __init__(self, folder: Path, classes: Mapping[str, int | None], layout: str) -> None:
        """
        Args:
            folder: holds one sub-folder per class.
            classes: label by lower-case name of the sub-folder; None leaves the sub-folder out.
            layout: of `_lists.expected`, for errors.

        Raises:
            DataError: no image, images outside sub-folders, fewer than two sub-folders, or a name not in `classes`.
        """
        self._folder = Folder(folder)
        names = self._folder.label_names
        if not names:
            raise DataError(f"{folder} has images outside class folders, or a single class ({layout})")
        for name in names:
            if name.lower() not in classes:
                raise DataError(f"{folder / name} is not a class: valid are {', '.join(classes)} ({layout})")
        labels = [classes[name.lower()] for name in names]
        by_image = np.array([-1 if label is None else label for label in labels])[self._folder.labels()]
        self._kept = np.flatnonzero(by_image >= 0)
        self._label = by_image[self._kept]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes, with its label. ImageError where the file cannot be read."""
        self.key(index)
        sample = self._folder[int(self._kept[index])]
        sample.label = int(self._label[index])
        return sample

    def key(self, index: int) -> str:
        """Path of image `index`, without reading it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._folder.key(int(self._kept[index]))

    def column(self, field: str) -> np.ndarray:
        """(N,) labels; there is no other field."""
        return self._label
