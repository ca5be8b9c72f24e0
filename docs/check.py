"""Runs every command of the start page and the guides, and compares the output that they show: `make check-docs`.

The ```bash and ```python blocks of a page run in one temporary folder, in their order. A ```text block right behind one
has to come out: each of its lines is found in the output, in this order. `...` stands for anything, within a line or as
a line. Whole numbers, names and words are compared, blanks are not. Numbers with a decimal point may differ by a tenth
of the larger one, or by 0.01: the runs are seeded, but processors round differently. Times, rates, byte sizes, whole
percentages and numbers with an exponent stand for any other. What is not run as it is printed is declared in HTML
comments:

    <!-- check-setup ... -->           Python that runs before the first block, such as making photos
    <!-- check-replace: A => B -->     B runs where the page says A, such as a shorter run
    <!-- check-dry-run -->             the next block, of pretrain and finetune: recipes, flags and values are checked
    <!-- check-skip: REASON -->        the next block is not run
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from _generate import with_rows

from facessl.cli import main as facessl

DOCS = Path(__file__).parent
PAGES = ["index.md", *(f"guides/{name}.md" for name in ("photos", "labels", "product", "reproduce"))]
_BLOCK = re.compile(
    r"(?:<!-- check-(dry-run|skip)[^>]*-->\n+)?^```(bash|python)[^\n]*\n(.*?)^```\n(?:\n*```text\n(.*?)^```\n)?",
    re.M | re.S,
)
#: Numbers that differ from run to run, and those that are compared.
_VARYING = (
    r"(?<![\w.])-?\d+(?:\.\d+)?e[+-]?\d+|\d+:\d\d:\d\d|\d+(?= %)"
    r"|(?<![\w.])\d+(?:\.\d+)?(?= (?:images/s|ms|s|min|h|[kKMG]i?B)\b)"
)
_DECIMAL = r"(?<![\w.])-?\d+\.\d+(?!\w*[./])"
_PLACE = re.compile(rf"(?P<anything>\.\.\.)|(?P<varying>{_VARYING})|(?P<decimal>{_DECIMAL})")


class Block(NamedTuple):
    """A block of a page, and the output that the page shows for it."""

    how: str
    language: str
    code: str
    shown: str


def blocks(page: str) -> tuple[str, list[Block]]:
    """The setup of a page, and its blocks with the replacements that it declares."""
    setup = "\n".join(re.findall(r"<!-- check-setup\n(.*?)-->", page, re.S))
    for said, meant in re.findall(r"<!-- check-replace: (.*?) => (.*?) -->", page):
        body, found = page.replace(f"check-replace: {said}", ""), said
        if found not in body:
            raise SystemExit(f"the page does not say {said!r}, which a check-replace names")
        page = body.replace(found, meant)
    return setup, [Block(*(part or "" for part in found)) for found in _BLOCK.findall(page)]


def difference(shown: str, output: str) -> str | None:
    """The first line of `shown` that `output` lacks behind the lines before it."""
    rest = (" ".join(line.split()) for line in output.replace("\r", "\n").splitlines())
    for line in shown.splitlines():
        if line.strip() in ("", "..."):
            continue
        if not any(_alike(" ".join(line.split()), found) for found in rest):
            return line
    return None


def _alike(shown: str, found: str) -> bool:
    """Whether a line of the output is the one that the page shows."""
    pattern, end, numbers = "", 0, []
    for place in _PLACE.finditer(shown):
        pattern += re.escape(shown[end : place.start()])
        pattern += {"anything": ".*", "varying": f"(?:{_VARYING})", "decimal": f"({_DECIMAL})"}[str(place.lastgroup)]
        numbers += [float(place[0])] if place.lastgroup == "decimal" else []
        end = place.end()
    match = re.fullmatch(pattern + re.escape(shown[end:]), found)
    return match is not None and all(
        math.isclose(one, float(other), rel_tol=0.1, abs_tol=0.01)
        for one, other in zip(numbers, match.groups(), strict=True)
    )


def run(block: Block, place: Path) -> str:
    """The output of a block; SystemExit where it fails."""
    command = (
        ["bash", "-euo", "pipefail", "-c", block.code]
        if block.language == "bash"
        else [sys.executable, "-c", block.code]
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(place / ".cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise SystemExit(f"{block.code}\nends with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def dry_run(block: Block) -> str:
    """Parses the configuration of every command of a block, whose recipe, flags and values have to exist."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"^torchrun .*?-m ", "", line), comments=True)
            if words and facessl([*words[1:], "--print-config"]):
                raise SystemExit(f"{line}\nis refused")
    return said.getvalue()


def check(name: str) -> int:
    """Runs a page; the number of its blocks."""
    setup, found = blocks(with_rows((DOCS / name).read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        run(Block("", "python", setup, ""), Path(folder))
        for block in found:
            if block.how == "skip":
                continue
            start = time.monotonic()
            output = dry_run(block) if block.how == "dry-run" else run(block, Path(folder))
            print(f"{name}  {time.monotonic() - start:5.1f} s  {block.code.strip().splitlines()[0][:90]}", flush=True)
            if line := difference(block.shown, output):
                raise SystemExit(f"{block.code}\ndoes not print the line\n{line}\nbut\n{output}")
    return len(found)


def main(names: Sequence[str]) -> None:
    """Checks the pages named, or all."""
    start = time.monotonic()
    count = sum(check(name) for name in names or PAGES)
    print(f"{count} blocks, {time.monotonic() - start:.0f} s: the guides say what is so")


if __name__ == "__main__":
    main(sys.argv[1:])
