"""Perceptual hash of an image, and the search for near-duplicates."""

import itertools
from array import array

import cv2
import numpy as np

from facessl.core.errors import ConfigError

BITS = 64
#: Largest distance that can be searched: bands of 64 / 11 bits still exclude most of the images.
MAX_DISTANCE = 10
#: Distance up to which nearly all pairs are copies.
COPIES = 4
#: Table of near-duplicates that jobs leave out.
DUPLICATES, DUPLICATES_COLUMNS = "duplicates.csv", ("key", "duplicate_of", "distance")
_SIDE = 32

_FREQUENCIES, _PIXELS = np.arange(1, 9)[:, None], np.arange(_SIDE)[None]
#: (8, 32): frequencies 1 .. 8 of the DCT-II of 32 values; the hash does not depend on their scale.
_DCT = np.cos(np.pi * _FREQUENCIES * (2 * _PIXELS + 1) / (2 * _SIDE)).astype(np.float32)
_PLACES = np.uint64(1) << np.arange(BITS, dtype=np.uint64)


def phash(image: np.ndarray) -> int:
    """64-bit perceptual hash of an image, (H, W, 3) uint8 RGB.

    The DCT hash of the pHash library (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions,
    2010) without its mean filter: gray, 32 x 32 pixels, DCT-II, a bit for each of the frequencies 1 .. 8 along both
    axes that lies above their median. Cropping, turning and mirroring change many bits, JPEG and brightness few. Among
    23,000 faces, pairs that differ in up to 4 bits were copies and few of more were.
    """
    gray = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = (_DCT @ gray.astype(np.float32) @ _DCT.T).ravel()  # (64,)
    return int(_PLACES[low > np.median(low)].sum())


class Near:
    """Index of hashes that finds the nearest one within `distance` bits.

    Two hashes that differ in at most d bits agree in at least one of d + 1 bands of the 64 bits, so only hashes with an
    equal band are compared. Memory: about 12 (d + 1) bytes per hash. ConfigError above `MAX_DISTANCE`.
    """

    def __init__(self, distance: int) -> None:
        if not 0 <= distance <= MAX_DISTANCE:
            raise ConfigError(f"near-duplicates within {distance} bits cannot be searched: use 0 to {MAX_DISTANCE}")
        self.distance = distance
        edges = [BITS * band // (distance + 1) for band in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)]
        # Hashes and their owners, by band and its value.
        self._buckets: list[dict[int, tuple[array[int], array[int]]]] = [{} for _ in self._bands]

    def find(self, value: int) -> tuple[int, int] | None:
        """(owner, distance) of the nearest hash within `distance`, with the smallest owner; None: there is none."""
        best: tuple[int, int] | None = None
        for (low, mask), buckets in zip(self._bands, self._buckets, strict=True):
            if (value >> low & mask) not in buckets:
                continue
            hashes, owners = buckets[value >> low & mask]
            distances = np.bitwise_count(np.frombuffer(hashes, np.uint64) ^ np.uint64(value))
            index = int(distances.argmin())  # the first of several
            nearest = (int(distances[index]), owners[index])
            if nearest[0] <= self.distance and (best is None or nearest < best):
                best = nearest
        return None if best is None else (best[1], best[0])

    def add(self, value: int, owner: int) -> None:
        """Add a hash; owners must ascend."""
        for (low, mask), buckets in zip(self._bands, self._buckets, strict=True):
            hashes, owners = buckets.setdefault(value >> low & mask, (array("Q"), array("I")))
            hashes.append(value)
            owners.append(owner)
