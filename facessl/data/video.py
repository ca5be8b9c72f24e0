"""Videos -> frames: which times there are, and the frame of a time, upright RGB. PyAV (FFmpeg) decodes them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.files import open_regular
from facessl.data.decode import DAMAGED
from facessl.data.skipped import ImageError, check_size

#: File name endings (lower case) that are taken for videos.
FILMS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".3gp")
#: FFmpeg's readers of these; others open files that a video names, or fetch them.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf"
#: Seconds by which a frame may be later than requested. AVI's times are not exact.
_TOLERANCE = 0.2
#: Seconds that are decoded rather than jumped over.
_NEAR = 4.0
#: Seconds before a time from which it is sought again, where the file's index leads behind it.
_EARLIER = (10.0, 60.0)
#: A video whose last frame lies further before its end, in seconds and as a fraction, has been cut off.
_CUT_SECONDS, _CUT_FRACTION = 2.0, 0.05
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "min": 60.0}


class Frame(NamedTuple):
    """A frame of a video: its time stamp in the video's units, and its seconds from the video's start."""

    stamp: int
    seconds: float


def interval(every: str) -> float:
    """Seconds of "1s", "0.5s", "200ms" or "2min". ConfigError for anything else."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|min|)", every.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not seconds:
        raise ConfigError(f"every={every} is not an interval: give one such as 1s, 0.5s, 200ms or 2min")
    return seconds


def clock(seconds: float) -> str:
    """83.5 -> 00h01m23s500."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}h{minutes % 60:02d}m{rest // 1000:02d}s{rest % 1000:03d}"


def frames_of(path: str, every: float) -> tuple[list[Frame], str]:
    """The first frame of each interval of `every` seconds of a video, by time, without decoding it.

    With what is wrong with it ("" if nothing is): it then ends with what it has. ConfigError: PyAV is not installed.
    DataError: the file cannot be read as a video.
    """
    film = _Film(path)
    stamps, broken = film.stamps()
    film.close()
    stamps.sort()
    if not stamps:
        raise DataError(f"cannot read the video {path}: it is damaged, and has no frame: copy it anew, or leave it out")
    start, unit = stamps[0], film.unit
    chosen, following = [], 0.0
    for stamp in stamps:
        seconds = (stamp - start) * unit
        if seconds >= following - unit / 2:
            chosen.append(Frame(stamp, seconds))
            following = ((seconds + unit / 2) // every + 1) * every
    last, length, wrong = (stamps[-1] - start) * unit, film.length, ""
    if broken or length - last > max(_CUT_SECONDS, _CUT_FRACTION * length):
        total = f" of {clock(length)}" if length > last else ""
        wrong = f"the video {path} is damaged, and ends at {clock(last)}{total}"
    return chosen, wrong


def read_frame(path: str, stamp: int, key: str) -> np.ndarray:
    """The frame with a time stamp, (H, W, 3) uint8 RGB, upright. Times that rise are read fastest.

    ImageError: it cannot be decoded. DataError: the video cannot be read any more.
    """
    return _opened(path, os.getpid()).at(stamp, key)


@functools.lru_cache(maxsize=1)
def _opened(path: str, process: int) -> _Film:
    """The video of this process; a forked one opens it again, as both would share the position in the file."""
    return _Film(path)


class _Film:
    """The first video stream of a file.

    `unit`: seconds of one unit of its time stamps; `length`: seconds of all as the file says, 0 if it does not.
    """

    def __init__(self, path: str) -> None:
        try:
            import av
        except ImportError:
            raise ConfigError(f"reading the video {path} needs PyAV: pip install 'facessl[video]'") from None
        self._errors = (av.FFmpegError, ValueError, EOFError, OSError)  # the last where it seeks beyond the file
        try:
            self._file = open_regular(path, most=None)
        except OSError as error:
            raise DataError(f"cannot read the video {path}: {error.strerror or error}") from None
        options: dict[str, Any] = {"container_options": {"format_whitelist": _FORMATS}, "buffer_size": 1 << 20}
        if int(av.__version__.split(".")[0]) < 19:  # later ones take metadata of any encoding, and no such option
            options["metadata_errors"] = "replace"
        try:
            self._container: Any = av.open(self._file, **options)
            self._stream: Any = self._container.streams.best("video")
        except self._errors:
            self._stream = None
        if self._stream is None or not self._stream.time_base:
            self._file.close()
            kinds = ", ".join(ending[1:] for ending in FILMS)
            raise DataError(
                f"cannot read the video {path}: it is damaged, has no pictures, or is not one of {kinds}: "
                "copy it anew, or leave it out"
            )
        self._stream.codec_context.thread_count = 1  # there are as many processes as are wanted
        self.unit = float(self._stream.time_base)
        if self._stream.duration is not None:
            self.length = self._stream.duration * self.unit
        else:
            self.length = (self._container.duration or 0) / av.time_base
        self._frames: Iterator[tuple[int, Any]] = iter(())
        self._place: int | None = None

    def close(self) -> None:
        self._container.close()
        self._file.close()

    def stamps(self) -> tuple[list[int], bool]:
        """Time stamps of all frames, in the file's order, and whether the file breaks off with an error."""
        stamps: list[int] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    return stamps, True
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is not None and packet.size and not packet.is_discard:
                    stamps.append(stamp)
        except self._errors:
            return stamps, True
        return stamps, False

    def at(self, stamp: int, key: str) -> np.ndarray:
        """See `read_frame`."""
        ahead = None if self._place is None else (stamp - self._place) * self.unit
        if ahead is None or not 0 < ahead <= _NEAR:
            self._frames = self._from_before(stamp)
        self._place = None
        for place, frame in self._frames:
            if place < stamp:
                continue
            if (place - stamp) * self.unit > _TOLERANCE or (frame.is_corrupt and DAMAGED != "use"):
                break
            check_size(frame.width, frame.height, key, 6)
            self._place = place
            image = frame.to_ndarray(format="rgb24", threads=1)  # a forked process waits for ever for threads to end
            return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
        raise ImageError(key, "the video is damaged here")

    def _from_before(self, stamp: int) -> Iterator[tuple[int, Any]]:
        """Frames from a key frame on that lies before the time stamp, where the file has one."""
        frames: Iterator[tuple[int, Any]] = iter(())
        for earlier in (0.0, *_EARLIER):
            with contextlib.suppress(*self._errors):
                self._container.seek(stamp - round(earlier / self.unit), stream=self._stream)
            frames = self._decoded()
            first = next(frames, None)
            if first is not None:
                frames = itertools.chain([first], frames)
                if first[0] <= stamp:
                    break
        return frames

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """Time stamps and frames from where the video was sought; packets that cannot be decoded are left out."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                frames = next(packets).decode()
            except StopIteration:
                return
            except self._errors:
                continue
            for frame in frames:
                place = frame.dts if frame.pts is None else frame.pts
                if place is not None:
                    yield place, frame
