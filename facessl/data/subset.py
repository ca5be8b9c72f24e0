"""Some images of a source."""

import numpy as np

from facessl.core.types import Sample
from facessl.data.source import Source

#: Members that mean the same in every part of a source.
_SHARED = (
    *("provides", "columns", "label_names", "attribute_names", "group_names"),
    *("layout", "mask_names", "mask_flip", "classes_may_be_people"),
)


class Subset(Source):
    """Some images of a source, in the order of `positions`.

    `subsets` and `pairs` become positions of this part, without images and pairs that are not in it. `splits` does not
    come along: a part is not split again by name.
    """

    def __init__(self, source: Source, positions: np.ndarray) -> None:
        self.source = source
        self.positions = np.asarray(positions, np.int64)
        for name in _SHARED:
            setattr(self, name, getattr(source, name))
        self.subsets = {n: np.flatnonzero(np.isin(self.positions, part)) for n, part in source.subsets.items()}
        if source.pairs is not None:
            place = np.full(len(source), -1, np.int64)
            place[self.positions] = np.arange(len(self.positions))
            inside = place[source.pairs]  # (P, 2)
            complete = (inside >= 0).all(1)
            self.pairs = inside[complete]
            self.same = None if source.same is None else source.same[complete]
            self.folds = None if source.folds is None else source.folds[complete]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.positions[index])]

    def name(self, index: int) -> str:
        return self.source.key(int(self.positions[index]))

    def inner_name(self, index: int) -> str:
        return self.source.inner_name(int(self.positions[index]))

    def image(self, index: int) -> bytes | np.ndarray:
        return self.source.image(int(self.positions[index]))

    def size(self, index: int) -> int:
        return self.source.size(int(self.positions[index]))

    def values(self, field: str) -> np.ndarray:
        return self.source.values(field)[self.positions]
