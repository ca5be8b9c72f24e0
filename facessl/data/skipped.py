"""How many images may be skipped. Skipped are those that `facessl.data.decode` refuses (`ImageError`)."""

import contextlib
import math

from facessl.core.errors import ConfigError, DataError, many
from facessl.data.decode import ImageError, pixels
from facessl.data.source import Source

#: (key, reason) of every image that was skipped.
Skipped = list[tuple[str, str]]
#: Unreadable images one after the other that mean that something other than the images is wrong.
MAX_BAD_IN_ROW = 100


def readable(source: Source, index: int) -> bool:
    """Whether an image of a source can be decoded."""
    with contextlib.suppress(ImageError):
        pixels(source[index])
        return True
    return False


def most_skipped(max_bad: float, total: int) -> int:
    """How many of `total` images may be skipped: the fraction `max_bad`, rounded up."""
    return math.ceil(max_bad * total)


def check_skipped(skipped: int, total: int, max_bad: float, last: tuple[str, str]) -> None:
    """Raise DataError if more than the fraction `max_bad` of `total` images were skipped; above 0 it allows one.

    `last` is (key, reason) of the last one. ConfigError: not a fraction.
    """
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"max_bad = {max_bad} is out of range: give a fraction from 0 to 1")
    allowed = most_skipped(max_bad, total)
    if skipped > allowed:
        raise DataError(
            f"{many(skipped, 'image')} of {total} cannot be read, more than the {allowed} that max_bad "
            f"allows (the last: {last[0]}: {last[1]}): correct or remove them, or raise --max-bad"
        )
