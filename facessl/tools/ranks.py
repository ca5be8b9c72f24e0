"""Jobs on folders under torchrun or srun: each rank computes blocks of images, and the last one writes the output."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from facessl.core.blocks import Blocks, RecordWithData, record, remove_blocks
from facessl.core.distributed import launched
from facessl.data.source import Source
from facessl.tools.jobs import BLOCKS, in_order, output_folder

T = TypeVar("T")
#: One image's result as plain values and bytes.
Result = tuple[dict[str, Any], Sequence[bytes]]
#: Images passed to a process at once.
_PIECE = 4


def over_ranks(
    out: str | Path,
    source: Source,
    manifest: str,
    job: str,
    settings: object,
    left: Callable[[Path], Sequence[int]],
    work: Callable[[int], Result],
    write: Callable[[Path, Callable[[int], Result], int], T],
    *,
    valid: Callable[[dict[str, Any], int], bool],
    failed: Callable[[dict[str, Any]], bool],
    workers: int,
    progress: Callable[[int, int], None],
) -> T | None:
    """Do a job in one process, or this rank's part of it; the last rank also writes the output.

    Args:
        out, source, manifest, job: as in `output_folder`.
        settings: that change the output.
        left: ascending positions of images that are not written yet.
        work: position -> result.
        write: writes the remaining images, given `work` or a function like it, called with ascending positions, and a
            number of worker processes.
        valid: values and number of byte strings -> whether they could come from `work`.
        failed: values -> whether the image is unreadable; it is then tried again.

    Returns:
        The result of `write` on the rank that ends last; None on the others.
    """
    alone = launched()[1] == 1
    folder = functools.partial(output_folder, out, source, manifest, job, wait=not alone)
    if alone:
        with folder() as path:
            return write(path, work, workers)

    def compute(pieces: Iterator[Sequence[int]]) -> Iterator[list[RecordWithData]]:
        for results in in_order(functools.partial(_each, work), pieces, workers):
            yield [record([i], [i] if failed(values) else [], values, data) for i, values, data in results]

    with folder() as path:
        if not (todo := left(path)):
            written = write(path, work, 0)
            remove_blocks(path / BLOCKS)
            return written
        blocks = Blocks(
            path / BLOCKS,
            (settings, source.fingerprint()),
            len(source),
            todo,
            compute,
            valid=lambda head: len(head["positions"]) == 1 and valid(head["values"], len(head["sizes"])),
            readable=lambda index: not failed(work(index)[0]),
            piece=_PIECE,
        )
        blocks.begin()
    blocks.work(progress)
    with folder() as path, blocks.joined() as records:
        if records is None:
            return None

        def computed(index: int) -> Result:
            for head, data in records:
                if head["positions"] == [index]:
                    return head["values"], data
            return work(index)  # a crop was removed meanwhile

        return write(path, computed, 0)


def wait_for_others(path: Path) -> None:
    """Wait until the last rank has written the output in the folder `path`."""
    while any(path.glob(f".{BLOCKS}.*.parts")):
        time.sleep(0.5)


def _each(work: Callable[[int], Result], positions: Sequence[int]) -> list[tuple[int, dict[str, Any], Sequence[bytes]]]:
    return [(index, *work(index)) for index in positions]
