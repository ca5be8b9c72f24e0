"""Work on a list in blocks, by one or several processes; the last one joins the results.

The result of a block is a file in a hidden folder beside the output, renamed once it is complete: a line identifying
the work, then a line of JSON and some bytes for each record. The same command, on any number of ranks, continues from
these files after any interruption.
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

#: Most positions of a block, which a killed process loses; approximate number of blocks of a short list.
_LONGEST, _BLOCKS = 4096, 32
#: Bytes of the longest line; the last line.
_LINE, _END = 1 << 24, b"null\n"


class Record(TypedDict):
    """Result of some positions as plain values, with the sizes of its byte strings."""

    positions: list[int]
    unreadable: list[int]
    values: dict[str, Any]
    sizes: list[int]


#: A record with its bytes.
RecordWithData = tuple[Record, Sequence[bytes]]


def record(
    positions: Sequence[int], unreadable: list[int], values: dict[str, Any], data: Sequence[bytes]
) -> RecordWithData:
    """Build a record from the result of some positions and its byte strings."""
    sizes = [len(part) for part in data]
    return {"positions": list(positions), "unreadable": unreadable, "values": values, "sizes": sizes}, data


class Blocks:
    """Blocks of a list that processes share."""

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
            output: file to write, or any name in the folder; the blocks lie in `.NAME.*.parts`.
            about: everything that the results depend on; its `repr` is compared.
            count: length of the list.
            todo: positions to compute, ascending.
            compute: lists of positions -> the records of each, in order; it may read some lists ahead.
            valid: whether a record could come from `compute`.
            readable: whether a position that was unreadable can be read now.
            piece: positions passed to `compute` at once.
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
        """Create the folder, before any process joins the blocks. ConfigError: it is a link. DataError."""
        if self._folder.is_symlink():
            raise ConfigError(f"{self._folder} is a link, which is not written through: remove it")
        with writing(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._begun.touch()

    def work(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compute the missing blocks of this rank; `progress` gets the numbers of positions done and in total."""
        rank, world = launched()
        self._compute_missing([block for number, block in self._blocks.items() if number % world == rank], progress)

    @contextlib.contextmanager
    def joined(self) -> Iterator[Iterator[RecordWithData] | None]:
        """Yield the records of all blocks in order to the last process, None to others; then remove the blocks."""
        with only_writer(self._begun, folder=False, wait=True):
            begun, blocks = self._begun.exists(), list(self._blocks.values())
            # Blocks that were changed, or whose images have become readable, are computed again here.
            if begun and not (all(file.exists() for file, _ in blocks) and self._compute_missing(blocks)):
                yield None
                return
            records = ((r, [file.read(size) for size in r["sizes"]]) for b, _ in blocks for r, file in self._read(b))
            yield records if begun else None
            self._begun.unlink(missing_ok=True)  # first: it marks blocks that are not joined yet
        remove_blocks(self._output)

    def _compute_missing(
        self, blocks: list[tuple[Path, Sequence[int]]], progress: Callable[[int, int], None] | None = None
    ) -> bool:
        """Compute the missing blocks that no other process works on. Return whether all are complete."""
        done, total = 0, sum(len(positions) for _, positions in blocks)
        queue: deque[tuple[Path, int, bool]] = deque()  # of `compute`: file, number of positions, end of the file
        claims: dict[Path, tuple[contextlib.ExitStack, IO[bytes]]] = {}

        def count(more: int) -> None:
            nonlocal done
            done += more
            if progress:
                progress(done, total)

        def pieces() -> Iterator[Sequence[int]]:
            for file, positions in blocks:
                if self._is_complete(file, positions):
                    count(len(positions))
                elif claim := self._claim(file):
                    claims[file] = claim
                    for start in range(0, len(positions), self._piece):
                        piece = positions[start : start + self._piece]
                        queue.append((file, len(piece), start + len(piece) == len(positions)))
                        yield piece

        count(0)
        rest = pieces()
        try:
            first = list(itertools.islice(rest, 1))
            for records in self._compute(itertools.chain(first, rest)) if first else ():
                file, number, last = queue.popleft()
                lock, out = claims[file]
                with writing(self._folder):
                    for head, data in records:
                        out.write(b"".join([json.dumps(head).encode(), b"\n", *data]))
                    if last:
                        out.write(_END)
                        sync(out)
                        out.close()
                        os.replace(out.name, file)
                        del claims[file]
                        lock.close()
                count(number)
        finally:
            for lock, _ in claims.values():
                lock.close()
        return done == total

    def _claim(self, file: Path) -> tuple[contextlib.ExitStack, IO[bytes]] | None:
        """Lock of a block and the file to write to; None if another process has it or has joined all."""
        with contextlib.ExitStack() as stack, writing(self._folder), contextlib.suppress(InUse):
            stack.enter_context(only_writer(file, folder=False))
            if self._begun.exists():
                out = stack.enter_context(open_own(file.with_suffix(".unfinished"), "wb"))
                out.write(self._head)
                return stack.pop_all(), out
        return None

    def _is_complete(self, file: Path, positions: Sequence[int]) -> bool:
        """Whether a block has all positions, and none that has become readable."""
        try:
            records = [head for head, _ in self._read(file)]
        except (OSError, DataError):
            return False
        computed = {position for head in records for position in head["positions"]}
        unreadable = [position for head in records for position in head["unreadable"]]
        return computed.issuperset(positions) and not any(map(self._readable, unreadable))

    def _read(self, file: Path) -> Iterator[tuple[Record, IO[bytes]]]:
        """Yield each record and the file, open where its bytes begin. DataError: the block was changed."""
        with open_regular(file, most=None) as opened:
            size, line = os.fstat(opened.fileno()).st_size, opened.readline(_LINE)
            same_work, rest = line == self._head, range(int(file.name), int(file.name) + self._size)
            while same_work and (line := opened.readline(_LINE)) != _END:
                try:
                    head: Record = json.loads(line)
                except (ValueError, RecursionError):
                    break
                if misfit(head, Record) or min(head["sizes"], default=0) < 0:
                    break
                positions, unreadable = head["positions"], head["unreadable"]
                if not (_ascend(positions, rest) and _ascend(unreadable, {*positions}) and self._valid(head)):
                    break
                rest = range(positions[-1] + 1, rest.stop) if positions else rest
                end = opened.tell() + sum(head["sizes"])
                if end > size:
                    break
                yield head, opened
                opened.seek(end)
        if line != _END:
            raise DataError(f"{file} was changed: remove it, and run the same command again")


def _ascend(positions: list[int], allowed: Container[int]) -> bool:
    return all(itertools.starmap(operator.lt, itertools.pairwise(positions))) and all(p in allowed for p in positions)


def remove_blocks(output: Path) -> None:
    """Remove the blocks of an output, also those of other images or settings."""
    for left in output.parent.glob(f".{glob.escape(output.name)}.*.parts"):
        shutil.rmtree(left, ignore_errors=True)
