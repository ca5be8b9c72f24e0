"""Progress of a command: a bar of rich, or plain lines if the output is not a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

#: Seconds between two plain lines.
EVERY_S = 10.0


class ProgressLine:
    """Context manager that shows progress on standard error, with the ETA from the second call on."""

    def __init__(self, unit: str, *, enabled: bool = True) -> None:
        self.unit = unit
        self.enabled = enabled
        self._console = Console(stderr=True, highlight=False)
        self._live: Progress | None = None
        self._task: Any = None
        self._began: tuple[float, int] | None = None
        self._shown = -EVERY_S

    def __enter__(self) -> ProgressLine:
        if self.enabled and self._console.is_terminal:
            columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._live = Progress(*columns, console=self._console)
            self._live.start()
            self._task = self._live.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def due(self) -> bool:
        """Whether the last output is `EVERY_S` seconds old."""
        return self.enabled and self._began is not None and time.monotonic() - self._shown >= EVERY_S

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` units are done, with `text` or the units per second."""
        if not self.enabled:
            return
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
        if fresh := done - self._began[1]:
            seconds = (now - self._began[0]) / fresh
            text = text or f"{1 / max(seconds, 1e-9):.3g} {self.unit}s/s"
            text += f"  ETA {_duration(seconds * (total - done))}"
        if self._live is not None:
            self._shown = now
            self._live.update(self._task, completed=done, total=total, description=text)
        elif now - self._shown >= EVERY_S or done == total:
            self._shown = now
            self._console.print(f"{self.unit} {done}/{total}  {text}".rstrip())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
