"""Which images a protocol trains on and which it tests on."""

from __future__ import annotations

import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from facessl.batch import Sample
from facessl.data.source import Source, open_source, parse
from facessl.errors import ConfigError, DataError

_TEST_NAMES = ("test", "val", "valid", "validation")


class Subset:
    """Some images of a source, in the order of `positions`."""

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

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.positions[index])]

    def key(self, index: int) -> str:
        return self.source.key(int(self.positions[index]))


def split_source(spec: str, test_spec: str | None = None) -> tuple[Source, Source]:
    """Training and test source of a protocol.

    Args:
        spec: how a source is written on the command line.
        test_spec: the test source, where it is another one.

    Returns:
        `test_spec` as the test source where it is given; else the sub-folders `train` and `test` (or `val`)
        where `spec` is a folder with both; else four fifths and one fifth of `spec`, by a hash of each
        image's key: the last two parts of its path, so that the split survives moving the folder.

    Raises:
        ConfigError: a streaming source, or one so small that a part is empty.
        DataError: a source cannot be opened.
    """
    if test_spec is not None:
        return open_source(spec), open_source(test_spec)
    inner = _inner_folders(spec)
    if inner is not None:
        return open_source(inner[0]), open_source(inner[1])
    source = open_source(spec)
    if source.streaming:
        raise ConfigError(f"{spec} is a stream and cannot be split: name a test source with --test")
    is_test = np.array([_is_test(source, i) for i in range(len(source))], bool)
    if is_test.all() or not is_test.any():
        raise ConfigError(f"{spec} has {len(source)} images, too few to split: name a test source with --test")
    return Subset(source, np.flatnonzero(~is_test)), Subset(source, np.flatnonzero(is_test))


def at_most(source: Source, count: int) -> Source:
    """`source`, or `count` images spread evenly over it where it has more."""
    if source.streaming or len(source) <= count:
        return source
    return Subset(source, np.linspace(0, len(source) - 1, count).round())


def in_test(key: str, *, share: float = 0.2) -> bool:
    """Whether the image called `key` belongs to the held-out `share`; depends on the key alone."""
    name = "/".join(PurePosixPath(key.replace("\\", "/")).parts[-2:])
    return zlib.crc32(name.encode()) < share * 2**32


def _inner_folders(spec: str) -> tuple[str, str] | None:
    """Specs of the train and test folders inside the folder that `spec` names, where both are there."""
    name, path, options = parse(spec)
    root = Path(path).expanduser()
    test = next((root / part for part in _TEST_NAMES if (root / part).is_dir()), None)
    if name != "folder" or test is None or not (root / "train").is_dir():
        return None
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return tuple(f"folder:{part}{'?' if query else ''}{query}" for part in (root / "train", test))  # type: ignore[return-value]


def _is_test(source: Source, index: int) -> bool:
    try:
        return in_test(source[index].key)
    except DataError:  # an unreadable image is skipped later, whichever part it is in
        return False
