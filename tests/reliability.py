"""docs/reliability.md from the tests that are marked `fault(id, before)`: `python tests/reliability.py [--check]`."""

import ast
import json
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
KINDS = {
    "A": "Silent wrong results, lost data",
    "B": "Tracebacks, misleading messages",
    "C": "Obstacles for new users",
    "D": "Fidelity to papers and released code",
    "E": "Attacks and accidents",
}
HEAD = """# Reliability

Faults that were found by using and attacking the library. Each fault that is fixed has the test that covers it; a
fault of the documentation has the file and the sentence that was added. *Open* means that there is neither yet.
`make reliability` writes this page from tests/faults.yaml (the list of faults), from the marks of the tests, and from
docs/reliability.json (the results of the two benchmarks at its end). `make fuzz` feeds damaged files to every reader
of files that others may have written; `make test` includes a short part of it.
"""
KILLS = """## Processes killed at random moments

`python benchmarks/kills.py --write` kills (SIGKILL) each job at random moments of its work. Then it runs the command
that a user would type next to its end: `--resume` for a run, otherwise the same command. *Same result*: weights are
bit-identical, tables and files equal those of an undisturbed job, and nothing is lost or repeated. *Whole files*:
after the kill, no incomplete file had its final name. *Nothing left behind*: no processes, shared memory
or temporary files at the end. *One sentence*: a job whose worker was killed reports it in one sentence, without a
traceback, and does not hang.

| killed | command | seconds | moments | same result | whole files | nothing left behind | one sentence |
| --- | --- | --- | --- | --- | --- | --- | --- |"""
ENVIRONMENTS = """## Restricted environments

`python benchmarks/environments.py --write` runs each command with names beyond ASCII, and with two workers if it has
them. *result*: the same as elsewhere. *sentence*: a message of one sentence that says what is wrong, and a non-zero
exit status. No command ends in a traceback or hangs.
"""


def marked() -> dict[str, list[tuple[str, str, str]]]:
    """Rows (before, now, test) by fault, of the tests that carry its mark."""
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        named = {
            node.targets[0].id: node.value for node in body if isinstance(node, ast.Assign) and _is_mark(node.value)
        }
        for test in body:
            if not isinstance(test, ast.FunctionDef):
                continue
            said = ast.get_docstring(test) or test.name.removeprefix("test_").replace("_", " ")
            for node in (node for decorator in reversed(test.decorator_list) for node in ast.walk(decorator)):
                mark = named.get(node.id) if isinstance(node, ast.Name) else node
                if mark is not None and _is_mark(mark):
                    fault, before = map(ast.literal_eval, mark.args)
                    now = ast.literal_eval(mark.keywords[0].value) if mark.keywords else said.splitlines()[0]
                    row = before, now, f"{path.relative_to(ROOT).as_posix()}::{test.name}"
                    if row not in rows.setdefault(fault, []):
                        rows[fault].append(row)
    return rows


def _is_mark(node: ast.AST) -> bool:
    """Whether it is `pytest.mark.fault(...)`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault"


def page() -> str:
    """The page as it should be. ValueError: a mark of a fault that is not in the list."""
    found = marked()
    faults = yaml.safe_load((ROOT / "tests" / "faults.yaml").read_text(encoding="utf-8"))
    if unknown := found.keys() - faults.keys():
        raise ValueError(f"not in tests/faults.yaml: {', '.join(sorted(unknown))}")
    out = [HEAD]
    texts = {fault: words for fault, words in faults.items() if isinstance(words, dict)}
    for name, said in ((words["page"], words["says"]) for words in texts.values()):
        if said not in " ".join((ROOT / name).read_text(encoding="utf-8").split()):
            raise ValueError(f"{name} does not say: {said}")
    for kind, title in KINDS.items():
        out += [f"## {kind}. {title}\n", "| fault | before | now | test |", "| --- | --- | --- | --- |"]
        for fault, words in faults.items():
            if fault.startswith(kind):
                rows = found.get(fault, [])
                if fault in texts:
                    rows = [*rows, (words["fault"], f"the text says: {words['says']}", words["page"])]
                rows = rows or [(words, "*open*", "")]
                out += [f"| {fault} | {before} | {now} | {test and f'`{test}`'} |" for before, now, test in rows]
        out.append("")
    return "\n".join([*out, *measured(), ""])


def measured() -> list[str]:
    """The tables of kills and of environments."""
    found = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    out = [KILLS]
    for name, row in found["kills"].items():
        n = row["moments"]
        clean = "-" if row["killed"] == "command" else n - max(row["hung"], row["tracebacks"])
        killed = name if row["killed"] != "command" else f"`{name}`"
        out.append(
            f"| {killed} | `{row['command']}` | {row['seconds']} | {n} | {row['equal']} | {n - row['torn']} | "
            f"{n - row['left']} | {clean} |"
        )
    commands = list(next(iter(found["environments"].values())))
    out += ["", ENVIRONMENTS, f"| | {' | '.join(commands)} |", "| --- |" + " --- |" * len(commands)]
    out += [f"| {name} | {' | '.join(row.values())} |" for name, row in found["environments"].items()]
    return out


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not what the tests say: make reliability")
