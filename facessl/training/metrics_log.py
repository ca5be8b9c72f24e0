"""Where a run's numbers go: metrics.csv, TensorBoard, skipped.csv."""

import contextlib
import csv
import importlib.util
import io
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lightning_fabric.loggers import TensorBoardLogger

from facessl.core.errors import TrainingError
from facessl.core.files import open_own, write_atomic
from facessl.core.tables import csv_row


class MetricsLog:
    """Rows of numbers by step; a new column rewrites the file. TrainingError where a file cannot be written.

    A resumed run drops the rows that it will redo, and those that a crash or a full disk has torn.
    """

    def __init__(self, folder: Path) -> None:
        """Without the package tensorboard the run's `tb/` is not written, which is said here, once."""
        self.folder = folder
        self.path = folder / "metrics.csv"
        self._rows = _read(self.path)
        self._columns = list(self._rows[0]) if self._rows else []
        self._began = time.monotonic() - _seconds(self._rows)
        self._board: TensorBoardLogger | None = None
        if importlib.util.find_spec("tensorboard") is not None:
            self._board = TensorBoardLogger(folder, name="tb", version="")
        else:
            print("no TensorBoard log: pip install 'facessl[tensorboard]' for one", file=sys.stderr, flush=True)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row with at least `step`; `seconds` of training so far, over all resumed parts, is added."""
        values = {"step": row["step"], "seconds": round(time.monotonic() - self._began, 3), **row}
        self._rows.append({name: str(v) if isinstance(v, int) else f"{v:.8g}" for name, v in values.items()})
        fresh = [name for name in values if name not in self._columns]
        self._columns += fresh
        if fresh:
            self._rewrite()
        else:
            _append(self.path, [[self._rows[-1].get(name, "") for name in self._columns]])
        if self._board is not None:
            with _told(self.folder / "tb"):
                self._board.log_metrics({k: float(v) for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def cut_after(self, step: int, skipped: Mapping[str, str]) -> None:
        """Forget rows of later steps; `skipped` (key -> reason) are the unreadable images before."""
        self._rows = [row for row in self._rows if float(row["step"]) <= step]
        self._began = time.monotonic() - _seconds(self._rows)
        if self._columns:
            self._rewrite()
        (self.folder / "skipped.csv").unlink(missing_ok=True)
        if skipped:
            self.skipped(skipped)

    def skipped(self, fresh: Mapping[str, str]) -> None:
        """Append unreadable images to skipped.csv."""
        path = self.folder / "skipped.csv"
        _append(path, [*([] if path.is_file() else [("key", "reason")]), *fresh.items()])

    def flush(self) -> None:
        """Hand the TensorBoard events to the disk."""
        if self._board is not None:
            with _told(self.folder / "tb"):
                self._board.save()

    def close(self) -> None:
        """Flush and release the files."""
        if self._board is not None:
            with _told(self.folder / "tb"):
                self._board.finalize("success")

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self.path, text.getvalue().encode())


def _read(path: Path) -> list[dict[str, str]]:
    """Whole rows of a table with a step; a row that is not is left out."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        head, *rows = [_cells(line) for line in file] or [[]]
    whole = [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
    return [row for row in whole if all(_is_number(row.get(name)) for name in ("step", "seconds"))]


def _cells(line: str) -> list[str]:
    """The cells of one line, none of a torn one: a stray quote in it takes no other line along."""
    try:
        return next(csv.reader([line]), []) if line.endswith("\n") else []
    except csv.Error:
        return []


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


def _seconds(rows: Iterable[Mapping[str, str]]) -> float:
    return max((float(row["seconds"]) for row in rows), default=0.0)


def _append(path: Path, rows: Iterable[Iterable[str]]) -> None:
    with _told(path), open_own(path, "ab") as file:
        file.write(b"".join(csv_row(*row) for row in rows))


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """One sentence where a file cannot be written; TensorBoard reports it as a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else (error.__cause__ or error)
        raise TrainingError(
            f"cannot write {path}: {reason}; the last checkpoint is untouched: free space, or put the folder back, "
            "then --resume"
        ) from None
