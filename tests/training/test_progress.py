"""Lines of progress where the output is not a terminal: by time, from the first step on."""

from __future__ import annotations

import pytest

from facessl.training import progress
from facessl.training.progress import ProgressLine

ROW = {"loss": 1.0, "images_per_second": 3.25, "data_wait": 0.5}


def test_a_line_every_ten_seconds_the_first_and_the_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressLine(100, enabled=True) as line:
        assert not line.due(), "nothing to show before the first step"
        for step in range(1, 101):
            now[0] += 1.0
            if step == 1 or step == 100 or line.due():
                line.update(step, ROW)
    lines = capsys.readouterr().err.splitlines()
    steps = [int(text.split("/")[0].removeprefix("step ")) for text in lines]
    assert steps == [*range(1, 100, 10), 100]
    assert "left" not in lines[0], "one step does not tell it"
    assert "3.2 images/s" in lines[0]
    assert lines[1].endswith("left 0:01:29")
    assert "?" not in "".join(lines)
