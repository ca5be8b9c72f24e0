"""Jobs on folders under torchrun or srun: each rank does blocks of images, and the last one to end writes the output.

One process writes straight to the output, which is its own record of what is done.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from facessl.core.blocks import Blocks, RecordWithData, record, remove_blocks
from facessl.tools.jobs import BLOCKS, in_order

T = TypeVar("T")
#: One image's result as plain values and bytes.
Result = tuple[dict[str, Any], Sequence[bytes]]
#: Images that a process is given at once.
_PIECE = 4


def over_ranks(
    folder: Callable[[], AbstractContextManager[Path]],
    about: object,
    count: int,
    left: Callable[[Path], Sequence[int]],
    work: Callable[[int], Result],
    write: Callable[[Path, Callable[[int], Result]], T],
    *,
    valid: Callable[[dict[str, Any], int], bool],
    failed: Callable[[dict[str, Any]], bool],
    workers: int,
    progress: Callable[[int, int], None],
) -> T | None:
    """Do a job's part of this rank; the last rank also writes the output.

    Args:
        folder: the output folder with this process as its only writer, once the others have left it.
        about: the settings and images of the job.
        count, left: number of images of the source, and positions of those that are not written yet, rising.
        work: position -> result.
        write: writes the images that are left, given a function as `work` that is called with rising positions.
        valid: values and number of byte strings -> whether `work` gives such.
        failed: values -> whether the image could not be read; it is then tried again.

    Returns:
        What `write` does, on the rank that ended last; None on the others.
    """

    def compute(pieces: Iterator[Sequence[int]]) -> Iterator[list[RecordWithData]]:
        for results in in_order(functools.partial(_each, work), pieces, workers):
            yield [record([i], [i] if failed(values) else [], values, data) for i, values, data in results]

    with folder() as path:
        if not (todo := left(path)):
            written = write(path, work)
            remove_blocks(path / BLOCKS)
            return written
        blocks = Blocks(
            path / BLOCKS,
            about,
            count,
            todo,
            compute,
            valid=lambda found: len(found["positions"]) == 1 and valid(found["values"], len(found["sizes"])),
            readable=lambda index: not failed(work(index)[0]),
            piece=_PIECE,
        )
        blocks.begin()
    blocks.work(progress)
    with folder() as path, blocks.joined() as records:
        if records is None:
            return None

        def known(index: int) -> Result:
            one = next((one for one in records if one[0]["positions"] == [index]), None)
            return (one[0]["values"], one[1]) if one else work(index)  # a crop that was removed meanwhile

        return write(path, known)


def wait_for_others(path: Path) -> None:
    """Wait until the last rank has written what all have left in the folder `path`."""
    while any(path.glob(f".{BLOCKS}.*.parts")):
        time.sleep(0.5)


def _each(work: Callable[[int], Result], positions: Sequence[int]) -> list[tuple[int, dict[str, Any], Sequence[bytes]]]:
    return [(index, *work(index)) for index in positions]
