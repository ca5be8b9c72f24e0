"""Logs of a run: metrics.csv, TensorBoard, skipped.csv."""

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
from facessl.core.escape import csv_row
from facessl.core.files import open_own, write_atomic


class MetricsLog:
    """Rows of numbers by step; a new column rewrites the file. TrainingError: a file cannot be written.

    A resumed run drops rows that it repeats, and rows that a crash or a full disk left incomplete.
    """

    def __init__(self, folder: Path) -> None:
        """Print a note if the package tensorboard, which writes `tb/`, is missing."""
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
        """Append a row with at least `step`; adds `seconds` of training, resumed parts included."""
        values = {"step": row["step"], "seconds": round(time.monotonic() - self._began, 3), **row}
        self._rows.append({name: str(v) if isinstance(v, int) else f"{v:.8g}" for name, v in values.items()})
        new_columns = [name for name in values if name not in self._columns]
        self._columns += new_columns
        if new_columns:
            self._rewrite()
        else:
            _append(self.path, [[self._rows[-1].get(name, "") for name in self._columns]])
        if self._board is not None:
            with _writing(self.folder / "tb"):
                self._board.log_metrics({k: float(v) for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def cut_after(self, step: int, skipped: Mapping[str, str]) -> None:
        """Drop rows of later steps; `skipped` (key -> reason) are the unreadable images up to `step`."""
        self._rows = [row for row in self._rows if float(row["step"]) <= step]
        self._began = time.monotonic() - _seconds(self._rows)
        if self._columns:
            self._rewrite()
        (self.folder / "skipped.csv").unlink(missing_ok=True)
        if skipped:
            self.skipped(skipped)

    def skipped(self, images: Mapping[str, str]) -> None:
        """Append unreadable images to skipped.csv."""
        path = self.folder / "skipped.csv"
        _append(path, [*([] if path.is_file() else [("key", "reason")]), *images.items()])

    def flush(self) -> None:
        """Write the TensorBoard events to the disk."""
        if self._board is not None:
            with _writing(self.folder / "tb"):
                self._board.save()

    def close(self) -> None:
        """Flush and release the files."""
        if self._board is not None:
            with _writing(self.folder / "tb"):
                self._board.finalize("success")

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self.path, text.getvalue().encode())


def _read(path: Path) -> list[dict[str, str]]:
    """Complete rows of a table that have a step."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        head, *rows = [_cells(line) for line in file] or [[]]
    whole = [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
    return [row for row in whole if all(_is_number(row.get(name)) for name in ("step", "seconds"))]


def _cells(line: str) -> list[str]:
    """Cells of one line, parsed alone because of stray quotes; none if it is incomplete."""
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
    with _writing(path), open_own(path, "ab") as file:
        file.write(b"".join(csv_row(*row) for row in rows))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors of writing, which TensorBoard reports as a ValueError, into a TrainingError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else (error.__cause__ or error)
        raise TrainingError(
            f"cannot write {path}: {reason}; the last checkpoint is untouched: free space, or put the folder back, "
            "then --resume"
        ) from None
