"""Lines of progress where the output is not a terminal: by time, from the first step on."""

import pytest

from facessl.core import progress
from facessl.core.progress import ProgressLine


def test_a_line_every_ten_seconds_the_first_and_the_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressLine("step") as line:
        assert not line.due(), "nothing to show before the first step"
        for step in range(1, 101):
            now[0] += 1.0
            if step == 1 or step == 100 or line.due():
                line(step, 100, "loss 1.0")
    lines = capsys.readouterr().err.splitlines()
    steps = [int(text.split("/")[0].removeprefix("step ")) for text in lines]
    assert steps == [*range(1, 100, 10), 100]
    assert "ETA" not in lines[0], "one step does not tell it"
    assert lines[1] == "step 11/100  loss 1.0  ETA 0:01:29"
    with ProgressLine("image") as line:
        line(60, 100)  # of an earlier call
        now[0] += 10
        line(80, 100)
    assert capsys.readouterr().err.splitlines()[1] == "image 80/100  2 images/s  ETA 0:00:10"
