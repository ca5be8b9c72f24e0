"""Images of the test part that are among the training images."""

import hashlib
import warnings
from collections.abc import Iterator

import numpy as np

from facessl.core.errors import DataError, DataWarning
from facessl.data.source import Source
from facessl.data.splits import at_most
from facessl.data.subset import Subset

#: Most files of a part that are read.
_MAX_FILES = 2000


def warn_of_overlap(train: Source, test: Source) -> None:
    """Warn if files of test images have the content of files of training images.

    Files of equal size are compared, at most `_MAX_FILES` of each part.
    """
    if train.streaming or test.streaming or not len(train):
        return
    test = at_most(test, _MAX_FILES)
    train_sizes = np.array([train.size(i) for i in range(len(train))])
    test_sizes = np.array([test.size(i) for i in range(len(test))])
    common = np.intersect1d(train_sizes, test_sizes[test_sizes > 0])  # images without a file have no size
    train = Subset(train, np.flatnonzero(np.isin(train_sizes, common)))
    test = Subset(test, np.flatnonzero(np.isin(test_sizes, common)))
    known = {content for content, _ in _contents(at_most(train, _MAX_FILES))}
    same = [key for content, key in _contents(test) if content in known]
    if same:
        count = f"{'at least ' if len(train) > _MAX_FILES else ''}{len(same)} of {len(test_sizes)}"
        warnings.warn(
            f"{count} test images are training images as well (the first: {same[0]}): their scores say nothing about "
            "other images; name a test part without them",
            DataWarning,
            stacklevel=2,
        )


def _contents(source: Source) -> Iterator[tuple[bytes, str]]:
    """Hash and key of every image whose file can be read."""
    for index in range(len(source)):
        try:
            image = source.image(index)
        except DataError:
            continue
        if isinstance(image, bytes):
            yield hashlib.blake2b(image, digest_size=16).digest(), source.key(index)
