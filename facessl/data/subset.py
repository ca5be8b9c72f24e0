"""Some images of a source, and the values of one field of a source without decoding an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data.source import Source, trait

#: Members that mean the same in every part of a source.
_UNCHANGED = ("layout", "mask_names", "mask_flip", "group_names")


class Subset:
    """Some images of a source, in the order of `positions`.

    Optional members of the source (`facessl.data.source.trait`) come along: `subsets` and `pairs` in positions of this
    part, `pairs` (with `same` and `folds`) without those of which a member is not in it. `splits` does not: a part is
    not split again by name.
    """

    def __init__(self, source: Source, positions: np.ndarray) -> None:
        """
        Args:
            source: any source with random access.
            positions: (n,) indices into it.
        """
        self.source = source
        self.positions = np.asarray(positions, np.int64)
        self.provides = source.provides
        self.label_names = source.label_names
        self.attribute_names = source.attribute_names
        self.streaming = False
        for name in _UNCHANGED:
            setattr(self, name, trait(source, name))
        published = trait(source, "subsets")
        self.subsets = {name: np.flatnonzero(np.isin(self.positions, part)) for name, part in published.items()}
        self.pairs, self.same, self.folds = self._pairs()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.positions[index])]

    def key(self, index: int) -> str:
        return self.source.key(int(self.positions[index]))

    def column(self, field: str) -> np.ndarray:
        """As the function `column`."""
        return column(self.source, field)[self.positions]

    def _pairs(self) -> tuple[Any, Any, Any]:
        pairs = trait(self.source, "pairs")
        if pairs is None:
            return None, None, None
        place = np.full(len(self.source), -1, np.int64)
        place[self.positions] = np.arange(len(self.positions))
        inside = place[np.asarray(pairs)]  # (P, 2)
        kept = (inside >= 0).all(1)
        rest = (trait(self.source, name) for name in ("same", "folds"))
        same, folds = (None if value is None else np.asarray(value)[kept] for value in rest)
        return inside[kept], same, folds


def column(source: Source, field: str) -> np.ndarray:
    """Values of one numeric field of every image, in the order of the source; no image is decoded.

    A source that knows them says so with a method `labels()` (for the field label) or `column(field)`; of any other
    each sample is read.

    Args:
        source: with random access, providing `field`.
        field: label, identity or group.

    Returns:
        (N,) int64; -1 where the image cannot be read.

    Raises:
        ConfigError: a stream, or a source without the field.
    """
    if source.streaming:
        raise ConfigError(f"a stream has no {field}s by position: use shards on a disk, a folder or a list")
    if field not in source.provides:
        raise ConfigError(f"the source has no {field} of its images, which is needed here")
    known = _known(source, field)
    values = _read(source, field) if known is None else np.asarray(known, np.int64)
    return values


def _known(source: Any, field: str) -> np.ndarray | None:
    if field == "label" and hasattr(source, "labels"):
        found: np.ndarray = source.labels()
        return found
    return source.column(field) if hasattr(source, "column") else None


def _read(source: Source, field: str) -> np.ndarray:
    values = np.full(len(source), -1, np.int64)
    for i in range(len(source)):
        try:
            values[i] = getattr(source[i], field)
        except DataError:  # an unreadable image is skipped later, whichever part it is in
            continue
    return values
