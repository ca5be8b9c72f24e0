"""Where a run's numbers go: metrics.csv, TensorBoard, skipped.csv."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from lightning.fabric.loggers import TensorBoardLogger

from facessl.core.files import csv_row, write_atomic


class MetricsLog:
    """Rows of numbers by step. A new column rewrites the file once; a resumed run drops the rows it will redo."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: of the run. Without the package tensorboard its `tb/` is not written, which is said here, once.
        """
        self.folder = folder
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []
        self._offset = 0.0
        if self.path.is_file():
            with open(self.path, newline="") as file:
                rows = list(csv.DictReader(file))
            self._columns = list(rows[0]) if rows else []
            self._offset = max((float(r["seconds"]) for r in rows if r.get("seconds")), default=0.0)
        self._began = time.monotonic()
        self._board: TensorBoardLogger | None = None
        self._has_board = importlib.util.find_spec("tensorboard") is not None
        if not self._has_board:
            print("no TensorBoard log: pip install 'facessl[tensorboard]' for one", file=sys.stderr, flush=True)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row with at least `step`; `seconds` of training so far, over all resumed parts, is added."""
        values = {"step": row["step"], "seconds": round(self._offset + time.monotonic() - self._began, 3), **row}
        fresh = [k for k in values if k not in self._columns]
        if fresh:
            self._rewrite(lambda _: True, self._columns + fresh)
        with open(self.path, "a", newline="") as file:
            csv.writer(file).writerow([_cell(values.get(c)) for c in self._columns])
        if not self._has_board:
            return
        if self._board is None:
            self._board = TensorBoardLogger(self.folder, name="tb", version="")
        self._board.log_metrics({k: float(v) for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def cut_after(self, step: int) -> None:
        """Forget rows of later steps: the run that wrote them was stopped before its next checkpoint."""
        if self._columns:
            self._rewrite(lambda r: float(r["step"]) <= step, self._columns)
            with open(self.path, newline="") as file:
                seconds = [float(r["seconds"]) for r in csv.DictReader(file) if r.get("seconds")]
            self._offset = max(seconds, default=0.0)

    def skipped(self, fresh: Mapping[str, str]) -> None:
        """Append unreadable images to skipped.csv."""
        path = self.folder / "skipped.csv"
        new = not path.is_file()
        with open(path, "ab") as file:
            file.write(b"".join(csv_row(*row) for row in ([("key", "reason")] if new else []) + [*fresh.items()]))

    def restart_skipped(self, known: Mapping[str, str]) -> None:
        """Make skipped.csv hold just `known`: what the resumed checkpoint had seen."""
        (self.folder / "skipped.csv").unlink(missing_ok=True)
        if known:
            self.skipped(known)

    def flush(self) -> None:
        """Hand the TensorBoard events to the disk."""
        if self._board is not None:
            self._board.save()

    def close(self) -> None:
        """Flush and release the files."""
        if self._board is not None:
            self._board.finalize("success")

    def _rewrite(self, keep: object, columns: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self.path.is_file():
            with open(self.path, newline="") as file:
                rows = [r for r in csv.DictReader(file) if keep(r)]  # type: ignore[operator]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())
        self._columns = columns


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
