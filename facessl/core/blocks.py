"""Work on a numbered list by one or several processes: each does blocks of it, and the last one joins the results.

The result of a block is a file in a hidden folder beside the output, which appears when it is complete: a line for what
the work is, then a line of JSON and some bytes for each record. The same command, on any number of ranks, goes on with
the files that are there, whatever stopped the one before.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import operator
import os
import shutil
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypedDict

from facessl.core.distributed import launched
from facessl.core.errors import ConfigError, DataError
from facessl.core.files import open_own, open_regular, sync, writing
from facessl.core.lock import InUse, only_writer
from facessl.core.schema import misfit

#: Positions of a block at most: what is lost where a process is killed. Short lists are split into about so many.
_LONGEST, _BLOCKS = 4096, 32
#: Bytes of the longest line; the last line.
_LINE, _END = 1 << 24, b"null\n"


class Record(TypedDict):
    """What is kept of some positions, as plain values; `sizes` are those of the byte strings that belong to it."""

    positions: list[int]
    unreadable: list[int]
    values: dict[str, Any]
    sizes: list[int]


#: A record with its bytes.
RecordWithData = tuple[Record, Sequence[bytes]]


def record(
    positions: Sequence[int], unreadable: list[int], values: dict[str, Any], data: Sequence[bytes]
) -> RecordWithData:
    """What `Blocks` is given."""
    sizes = [len(part) for part in data]
    return {"positions": list(positions), "unreadable": unreadable, "values": values, "sizes": sizes}, data


class Blocks:
    """The blocks of a list, as this process sees them."""

    def __init__(
        self,
        output: Path,
        about: object,
        count: int,
        todo: Sequence[int],
        compute: Callable[[Iterator[Sequence[int]]], Iterator[Sequence[RecordWithData]]],
        *,
        valid: Callable[[Record], bool],
        readable: Callable[[int], bool],
        piece: int,
    ) -> None:
        """
        Args:
            output: the file that is to be written, or any name in the folder; the blocks lie in `.NAME.*.parts`.
            about: all that decides about the results; its `repr` is compared.
            count: length of the list.
            todo: positions that are asked for, rising.
            compute: lists of positions -> the records of each, in order; it may read some lists ahead.
            valid: whether `compute` gives such records.
            readable: whether a position that was unreadable can be read by now.
            piece: positions that `compute` is given at once.
        """
        self._output, self._compute, self._valid, self._readable, self._piece = output, compute, valid, readable, piece
        size = piece * max(1, min(_LONGEST, -(-count // _BLOCKS)) // piece)
        self._size = size
        about = repr((about, size)).encode(errors="surrogateescape")
        self._head = hashlib.blake2b(about, digest_size=16).hexdigest().encode() + b"\n"
        self._folder = output.with_name(f".{output.name}.{self._head[:12].decode()}.parts")
        self._begun = self._folder / "begun"
        cuts = [bisect_left(todo, start) for start in (*range(0, count, size), count)]
        self._blocks = {  # number -> file and positions
            number: (self._folder / f"{number * size:012d}", todo[first:end])
            for number, (first, end) in enumerate(itertools.pairwise(cuts))
            if first < end
        }

    def begin(self) -> None:
        """Make the folder; not after another process has joined the blocks. ConfigError: it is a link. DataError."""
        if self._folder.is_symlink():
            raise ConfigError(f"{self._folder} is a link, which is not written through: remove it")
        with writing(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._begun.touch()

    def work(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Do the blocks of this rank that are not there; `progress` gets the numbers of positions done and in total."""
        rank, world = launched()
        self._do([block for number, block in self._blocks.items() if number % world == rank], progress)

    @contextlib.contextmanager
    def joined(self) -> Iterator[Iterator[RecordWithData] | None]:
        """The records of all blocks in order for the process that comes last, None for others; then removes them."""
        with only_writer(self._begun, folder=False, wait=True):
            begun, blocks = self._begun.exists(), list(self._blocks.values())
            # What was changed, or can be read by now, is done here, unless its own rank is at it.
            if begun and not (all(file.exists() for file, _ in blocks) and self._do(blocks)):
                yield None
                return
            parts = ((r, [file.read(size) for size in r["sizes"]]) for b, _ in blocks for r, file in self._read(b))
            yield parts if begun else None
            self._begun.unlink(missing_ok=True)  # first: it says that the blocks are still to be joined
        remove_blocks(self._output)

    def _do(self, blocks: list[tuple[Path, Sequence[int]]], progress: Callable[[int, int], None] | None = None) -> bool:
        """Compute the blocks that are not there and that no other process is at. Returns whether all are there."""
        done, total = 0, sum(len(positions) for _, positions in blocks)
        given: deque[tuple[Path, int, bool]] = deque()  # to `compute`: file, number of positions, end of the file
        own: dict[Path, tuple[contextlib.ExitStack, IO[bytes]]] = {}

        def count(more: int) -> None:
            nonlocal done
            done += more
            if progress:
                progress(done, total)

        def pieces() -> Iterator[Sequence[int]]:
            for file, positions in blocks:
                if self._known(file, positions):
                    count(len(positions))
                elif claimed := self._claimed(file):
                    own[file] = claimed
                    for at in range(0, len(positions), self._piece):
                        piece = positions[at : at + self._piece]
                        given.append((file, len(piece), at + len(piece) == len(positions)))
                        yield piece

        count(0)
        rest = pieces()
        try:
            first = list(itertools.islice(rest, 1))
            for found in self._compute(itertools.chain(first, rest)) if first else ():
                file, number, last = given.popleft()
                release, out = own[file]
                with writing(self._folder):
                    for head, data in found:
                        out.write(b"".join([json.dumps(head).encode(), b"\n", *data]))
                    if last:
                        out.write(_END)
                        sync(out)
                        out.close()
                        os.replace(out.name, file)
                        del own[file]
                        release.close()
                count(number)
        finally:
            for release, _ in own.values():
                release.close()
        return done == total

    def _claimed(self, file: Path) -> tuple[contextlib.ExitStack, IO[bytes]] | None:
        """The lock of a block and a file to write to; None where another process has it, or has joined all."""
        with contextlib.ExitStack() as stack, writing(self._folder), contextlib.suppress(InUse):
            stack.enter_context(only_writer(file, folder=False))
            if self._begun.exists():
                out = stack.enter_context(open_own(file.with_suffix(".unfinished"), "wb"))
                out.write(self._head)
                return stack.pop_all(), out
        return None

    def _known(self, file: Path, positions: Sequence[int]) -> bool:
        """Whether a block is there, complete, and would become the same again."""
        try:
            records = [found for found, _ in self._read(file)]
        except (OSError, DataError):
            return False
        there = {position for found in records for position in found["positions"]}
        unreadable = [position for found in records for position in found["unreadable"]]
        return there.issuperset(positions) and not any(map(self._readable, unreadable))

    def _read(self, file: Path) -> Iterator[tuple[Record, IO[bytes]]]:
        """Each record, and the file, open where its bytes begin. DataError where the block was changed."""
        with open_regular(file, most=None) as opened:
            size, line = os.fstat(opened.fileno()).st_size, opened.readline(_LINE)
            right, rest = line == self._head, range(int(file.name), int(file.name) + self._size)
            while right and (line := opened.readline(_LINE)) != _END:
                try:
                    found: Record = json.loads(line)
                except (ValueError, RecursionError):
                    break
                if misfit(found, Record) or min(found["sizes"], default=0) < 0:
                    break
                positions, unreadable = found["positions"], found["unreadable"]
                if not (_rising(positions, rest) and _rising(unreadable, {*positions}) and self._valid(found)):
                    break
                rest = range(positions[-1] + 1, rest.stop) if positions else rest
                end = opened.tell() + sum(found["sizes"])
                if end > size:
                    break
                yield found, opened
                opened.seek(end)
        if line != _END:
            raise DataError(f"{file} was changed: remove it, and run the same command again")


def _rising(positions: list[int], of: Container[int]) -> bool:
    return all(itertools.starmap(operator.lt, itertools.pairwise(positions))) and all(p in of for p in positions)


def remove_blocks(output: Path) -> None:
    """Remove the blocks of an output, also those of other images or settings."""
    for left in output.parent.glob(f".{glob.escape(output.name)}.*.parts"):
        shutil.rmtree(left, ignore_errors=True)
