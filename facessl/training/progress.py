"""The progress line of a run, drawn by rich; plain lines where the output is not a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

#: A line is shown so often at the latest, as soon as a step ends.
EVERY_S = 10.0


class ProgressLine:
    """Context manager; `update(step, row)` shows the numbers of the last log line."""

    def __init__(self, total: int, enabled: bool) -> None:
        self.total = total
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
            self._task = self._live.add_task("", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def due(self) -> bool:
        """Whether nothing was shown for `EVERY_S` seconds."""
        return self.enabled and self._began is not None and time.monotonic() - self._shown >= EVERY_S

    def update(self, step: int, row: dict[str, float]) -> None:
        """Show `row` (loss, images_per_second, data_wait) at `step`, with the time left once two steps tell it."""
        if not self.enabled or not row:
            return
        now = time.monotonic()
        if self._began is None:
            self._began = (now, step)
        done = step - self._began[1]
        speed = row["images_per_second"]
        text = (
            f"loss {row['loss']:.4f}  {speed:.{0 if speed >= 10 else 1}f} images/s  "
            f"waiting for data {100 * row['data_wait']:.0f} %"
        )
        if done:
            text += f"  left {_duration((now - self._began[0]) / done * (self.total - step))}"
        if self._live is not None:
            self._shown = now
            self._live.update(self._task, completed=step, description=text)
        elif now - self._shown >= EVERY_S or step == self.total:
            self._shown = now
            self._console.print(f"step {step}/{self.total}  {text}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
