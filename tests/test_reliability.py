"""docs/reliability.md is what the marks of the tests say."""

import subprocess
import sys
from pathlib import Path


def test_the_page_is_current() -> None:
    script = Path(__file__).with_name("reliability.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, cwd=script.parents[1])
    assert done.returncode == 0, done.stderr
