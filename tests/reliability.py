"""docs/reliability.md from the tests that are marked `fault(id, before)`: `python tests/reliability.py [--check]`."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
KINDS = {
    "A": "Silent wrong results, lost data",
    "B": "Tracebacks, wrong words",
    "C": "What a new user stumbled over",
    "D": "Fidelity to papers and released code",
    "E": "Attacks and accidents",
}
HEAD = """# Reliability

Faults that were found by using and attacking the library, and the test that holds each one that is fixed; *open* means
that no test holds it yet. `make reliability` writes this page from the tests' marks. `make fuzz` gives damaged files to
every reader of files that others may have written; a short part of it is in `make test`.
"""


class Collected:
    """Plug-in of pytest: rows (before, now, test) by fault, of the tests that carry its mark."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[str, str, str]]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("fault"):
                name = getattr(item, "originalname", item.name)
                said = (getattr(item, "obj", None).__doc__ or name.removeprefix("test_").replace("_", " ")).strip()
                file = item.path.relative_to(ROOT).as_posix()
                row = mark.args[1], mark.kwargs.get("now") or said.splitlines()[0], f"{file}::{name}"
                if row not in self.rows.setdefault(mark.args[0], []):
                    self.rows[mark.args[0]].append(row)


def page() -> str:
    """The page as it should be. ValueError: a mark of a fault that is not in the list."""
    tests = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.fault(" in p.read_text(encoding="utf-8")]
    found, said = Collected(), io.StringIO()
    with contextlib.redirect_stdout(said):
        if pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *map(str, sorted(tests))], [found]):
            raise ValueError(f"the tests cannot be collected:\n{said.getvalue()}")
    faults = yaml.safe_load((ROOT / "tests" / "faults.yaml").read_text(encoding="utf-8"))
    if unknown := found.rows.keys() - faults.keys():
        raise ValueError(f"not in tests/faults.yaml: {', '.join(sorted(unknown))}")
    out = [HEAD]
    for kind, title in KINDS.items():
        out += [f"## {kind}. {title}\n", "| fault | before | now | test |", "| --- | --- | --- | --- |"]
        for fault, words in faults.items():
            if fault.startswith(kind):
                rows = found.rows.get(fault) or [(words, "*open*", "")]
                out += [f"| {fault} | {before} | {now} | {test and f'`{test}`'} |" for before, now, test in rows]
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not what the tests say: make reliability")
