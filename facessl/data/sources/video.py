"""Frames of a video, or of the videos of a folder beside its images."""

import os
import warnings
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError, DataWarning
from facessl.data.decode import EXTENSIONS, read_file
from facessl.data.source import Source
from facessl.data.sources.folder import Folder
from facessl.data.video import FILMS, Frame, clock, frames_of, interval, read_frame

#: In the place of a time stamp.
_IMAGE = np.iinfo(np.int64).min


class _Files(Folder):
    endings = (*EXTENSIONS, *FILMS)


class Video(Source):
    """The first frame of each interval of a video; of a folder its images as well, with labels as `folder:` has them.

    The frame at 83.5 s of clips/clip.mp4 is called clips/clip.mp4/00h01m23s500. Every video is read once, without
    decoding it, to learn the times of its frames. A damaged video is used up to the damage, with a warning; one
    without any frame is left out of a folder.

    Attributes:
        root: the folder; None for a single video.
    """

    def __init__(self, path: str | Path, *, every: str = "1s", recursive: bool = True, cache: bool = True) -> None:
        """
        Args:
            path: a video (.mp4, .mov, .mkv, .webm, .avi, .mpg, ...), or a folder.
            every: the interval: 1s, 0.5s, 200ms, 2min.
            recursive: also look into sub-folders.
        """
        step = interval(every)
        files = _Files(path, recursive=recursive, cache=cache)
        self.root = files.root
        rows: list[tuple[str, int, int]] = []  # name, time stamp, index of the file
        for index in range(len(files)):
            name = files.inner_name(index)
            if self.root is None or name.lower().endswith(FILMS):
                frames = self._frames(files.name(index), step)
                rows += [(f"{name}/{clock(frame.seconds)}", frame.stamp, index) for frame in frames]
            else:
                rows.append((name, _IMAGE, index))
        self._stamps = np.array([stamp for _, stamp, _ in rows], np.int64)
        self.label_names = files.label_names
        columns = {"label": files.values("label")[[index for *_, index in rows]]} if files.label_names else None
        super().__init__([name for name, *_ in rows], columns, file=path)
        self._folder = str(files.root or Path(path).expanduser().parent)

    def _frames(self, film: str, step: float) -> list[Frame]:
        try:
            frames, wrong = frames_of(film, step)
        except DataError as error:
            if self.root is None:
                raise
            frames, wrong = [], f"left out: {error}"
        if wrong:
            warnings.warn(wrong, DataWarning, stacklevel=4)
        return frames

    def image(self, index: int) -> bytes | np.ndarray:
        key, stamp = self.key(index), int(self._stamps[index])
        return read_file(key) if stamp == _IMAGE else read_frame(os.path.dirname(key), stamp, key)
