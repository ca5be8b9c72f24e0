"""Jobs on folders under torchrun or srun: each rank works on a part, and the last one to end writes the output.

Rank K of N leaves what it found in the file `.rank-K-of-N` of the output folder, a line of JSON and some bytes for each
image. Once all ranks have come to their end, the files are read in the source's order and written as those of a single
process. A rank that was stopped goes on where it was, with the same command.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, Any, TypeVar

from facessl.core.distributed import launched
from facessl.core.errors import ConfigError, DataError
from facessl.core.files import open_own, open_regular, sync
from facessl.core.lock import only_writer
from facessl.tools.jobs import in_order, remove_parts

T = TypeVar("T")
#: One image's result as plain values and bytes.
Record = tuple[dict[str, Any], Sequence[bytes]]
#: Images that a process is given at once; bytes of the longest line.
_PIECE, _LINE = 8, 1 << 24


def over_ranks(
    folder: Callable[[], AbstractContextManager[Path]],
    about: str,
    left: Callable[[Path], Sequence[int]],
    work: Callable[[int], Record],
    write: Callable[[Path, Callable[[int], Record]], T],
    *,
    valid: Callable[[dict[str, Any], int], bool],
    failed: Callable[[dict[str, Any]], bool],
    workers: int,
    progress: Callable[[int, int], None],
) -> T | None:
    """Do a job's part of this rank; the last rank also writes the output.

    Args:
        folder: the output folder with this process as its only writer, once the others have left it.
        about: the settings and images of the job, on one line.
        left: positions of the images that are not written yet, rising.
        work: position -> result.
        write: writes the images that are left, given a function as `work`.
        valid: values and number of byte strings -> whether `work` gives such; a file counts up to those that are not.
        failed: values -> whether the image could not be read; it is then read again when the output is written.

    Returns:
        What `write` does, on the rank that ended last; None on the others.

    Raises:
        ConfigError: files of other settings or images are in the folder.
    """
    rank, world = launched()
    with ExitStack() as own:
        with folder() as path:
            files = [path / _part_name(number, world) for number in range(world)]
            todo = left(path)
            if not todo:
                written = write(path, work)
                remove_parts(path)
                return written
            # In the folder's lock: a complete file that is not there any more has been written, and `todo` says so.
            own.enter_context(only_writer(files[rank], folder=False))
            last, end, complete = _resumed(files[rank], about, valid)
        if not complete:
            mine = [index for index in todo if index % world == rank]
            _compute(files[rank], about, mine, last, end, work, workers, progress)
    with folder() as path, ExitStack() as stack:
        opened = [stack.enter_context(open_regular(file, most=None)) for file in files if file.is_file()]
        parts = [_Part(file, about, valid) for file in opened]
        if [part.complete for part in parts] != [True] * world:
            return None

        def found(index: int) -> Record:
            record = parts[index % world].result(index)
            return work(index) if failed(record[0]) else record

        written = write(path, found)
        remove_parts(path)
        return written


def _resumed(file: Path, about: str, valid: Callable[[dict[str, Any], int], bool]) -> tuple[int, int, bool]:
    """The last position in a rank's file, where its result ends, and whether the file is complete."""
    if not file.is_file():
        return -1, 0, False
    with open_regular(file, most=None) as before:
        part = _Part(before, about, valid)
        return part.last, part.end, part.complete


def wait_for_others(path: Path) -> None:
    """Wait until the last rank has written what this one, which has come to its end, left in the folder `path`."""
    while (path / _part_name(*launched())).exists():
        time.sleep(0.5)


def _part_name(rank: int, world: int) -> str:
    return f".rank-{rank}-of-{world}"


def _compute(
    file: Path,
    about: str,
    todo: Sequence[int],
    last: int,
    end: int,
    work: Callable[[int], Record],
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    """Append the results after position `last`, which ends at byte `end`, and a last line: the file is complete."""
    missing = [index for index in todo if index > last]
    done = len(todo) - len(missing)
    progress(done, len(todo))
    pieces = [missing[at : at + _PIECE] for at in range(0, len(missing), _PIECE)]
    with open_own(file, "ab") as out:
        out.truncate(end)
        if not end:
            out.write(about.encode() + b"\n")
        for piece, results in zip(pieces, in_order(functools.partial(_each, work), pieces, workers), strict=True):
            for index, (values, data) in zip(piece, results, strict=True):
                line = json.dumps({"index": index, "sizes": [len(part) for part in data], "values": values})
                out.write(b"".join([line.encode(), b"\n", *data]))
            out.flush()
            done += len(piece)
            progress(done, len(todo))
        out.write(b"null\n")
        sync(out)


def _each(work: Callable[[int], Record], piece: Sequence[int]) -> list[Record]:
    return [work(index) for index in piece]


class _Part:
    """The results of one rank; `last` of them, and where the whole ones `end`."""

    def __init__(self, file: IO[bytes], about: str, valid: Callable[[dict[str, Any], int], bool]) -> None:
        self._valid = valid
        self._file, self.last, self.end, self.complete = file, -1, 0, False
        size, head = os.fstat(file.fileno()).st_size, file.readline(_LINE)
        if not head.endswith(b"\n"):  # stopped before the first result
            return
        if head != about.encode() + b"\n":
            raise ConfigError(f"{file.name} is of other settings or images: remove it, or name another folder")
        self._records = self._read(size)
        self.end = file.tell()
        for index, *_, end in self._read(size):
            self.last, self.end = index, end
        file.seek(len(about.encode()) + 1)

    def _read(self, size: int) -> Iterator[tuple[int, dict[str, Any], list[int], int]]:
        """Position, values, sizes of the data and end of every whole record; `complete` is set by the last line."""
        while line := self._file.readline(_LINE):
            try:
                head = json.loads(line)
                if head is None:
                    self.complete = True
                    return
                index, values, sizes = head["index"], head["values"], [int(number) for number in head["sizes"]]
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                return
            end = self._file.tell() + sum(sizes)
            if end > size or min(sizes, default=0) < 0 or type(index) is not int or not self._valid(values, len(sizes)):
                return
            yield index, values, sizes, end
            self._file.seek(end)

    def result(self, index: int) -> Record:
        """Of a position that is larger than those that were asked for before."""
        for found, values, sizes, _ in self._records:
            if found == index:
                return values, [self._file.read(size) for size in sizes]
        raise DataError(f"{self._file.name} lacks image {index}: remove it, and run the same command again")
