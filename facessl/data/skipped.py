"""Which images are skipped, and how many may be: `ImageError` and the limit `max_bad`. The loaders skip and count."""

import errno
import math

from facessl.core.errors import ConfigError, DataError, many

#: (key, reason) of every image that was skipped.
Skipped = list[tuple[str, str]]
#: Unreadable images one after the other that mean that something other than the images is wrong.
MAX_BAD_IN_ROW = 100
#: Largest image that is decoded, in pixels (Pillow's own limit): the header decides, before memory is taken.
MAX_PIXELS = 178_956_970
#: Most bytes that one image may take while it is decoded.
MAX_BYTES = 1 << 30
#: Bytes of the largest image file that is read.
MAX_FILE = 256 << 20
#: Shortest side in pixels that is still an image of something.
MIN_SIDE = 8
# Errors that lie in one file: missing, not allowed, no file, an impossible name. All others are the system's.
_OF_THE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EINVAL, errno.EFBIG, errno.ENXIO),
    }
)


class ImageError(DataError):
    """One image that cannot be used, which the loaders skip and count.

    `key` is the name by which a person finds it, `reason` says why in a few words.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"cannot read the image {self.key}: {self.reason}"


def unreadable(key: str, error: OSError) -> DataError:
    """Return ImageError if the file is to blame, else (an error of the system) DataError, which ends the work."""
    reason = error.strerror or str(error)
    if error.errno in _OF_THE_FILE:
        return ImageError(key, reason)
    cure = "check the disk or the network folder that it lies on, and start again"
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        cure = "use fewer --workers" + ("" if error.errno == errno.ENOMEM else ", or raise the limit (ulimit -n)")
    return DataError(f"cannot read {key}: {reason}, which is an error of the system, not of the image: {cure}")


def check_size(width: int, height: int, key: str, each: int = 3, *, least: int = MIN_SIDE) -> None:
    """ImageError if a side is shorter than `least`, or decoding with `each` bytes per pixel takes too much."""
    if width * height > MAX_PIXELS:
        raise ImageError(key, f"{width}x{height} is more than {MAX_PIXELS:,} pixels: scale it down first")
    if width * height * each > MAX_BYTES:
        needed = f"{width * height * each / 2**30:.1f} GiB of memory, more than the {MAX_BYTES / 2**30:g} GiB allowed"
        raise ImageError(key, f"decoding its {width}x{height} pixels takes {needed}: scale it down first")
    if min(width, height) < least:
        raise ImageError(key, f"{width}x{height} is too small: the shorter side must be {least} pixels or more")


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
        raise DataError(too_many(f"{many(skipped, 'image')} of {total}", allowed, last))


def too_many(images: str, allowed: int, last: tuple[str, str]) -> str:
    """Message of a job that stops because more images were skipped than `allowed`; `last` is (key, reason)."""
    return (
        f"{images} cannot be read, more than the {allowed} that max_bad allows (the last: {last[0]}: {last[1]}): "
        "correct or remove them, or raise --max-bad"
    )
