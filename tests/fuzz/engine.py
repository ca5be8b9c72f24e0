"""Damaged files for a reader, each within a budget of time and memory: `python -m tests.fuzz.engine MINUTES`."""

import functools
import itertools
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import facessl
from facessl.core.errors import FaceSSLError
from tests.fuzz.readers import READERS

SECONDS, MEMORY = 5, 1 << 30  # of a processor, and bytes above what the process has at its start, for one input
PACKAGE = str(Path(facessl.__file__).parent) + os.sep
_HEAD = 10_000  # most of what a reader decides by stands there
_WORDS = ("", "-1", "0", "nan", "1e999", "9" * 20, "9" * 5000, "\0", "../x", "a b", "é", "<b>", "null", "[]", "{}")
_VALUES = (None, True, -1, 0, 10**20, 1.5, float("nan"), "", "../x", "<b>", [], {}, [[1]], {"name": "x"}, "9" * 5000)


class Failure(NamedTuple):
    """What came out of a reader instead of a FaceSSLError; its class and the innermost line of facessl; the input."""

    said: str
    key: str
    data: bytes


class OverBudget(BaseException):
    """Not an Exception, so that no reader takes it for a damaged file."""


@st.composite
def inputs(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` with edits of bytes, words, or values of its JSON or YAML; seldom something else altogether."""
    how = draw(st.sampled_from(["bytes", "bytes", "words", "values", "values", "other"]))
    if how == "other":
        return draw(st.binary(max_size=300))
    tree = _tree(valid) if how == "values" else None
    for _ in range(draw(st.integers(1, 3))):
        if tree is not None:
            tree = _changed(draw, tree)
        elif how == "words" and (found := list(re.finditer(rb"[^\s,;:=\"'(){}\[\]]+", valid[:_HEAD]))):
            word = draw(st.sampled_from(found))
            valid = valid[: word.start()] + draw(st.sampled_from(_WORDS)).encode() + valid[word.end() :]
        else:
            valid = _edited(draw, valid)
    if tree is None:
        return valid
    return (json.dumps(tree) if valid[:1] in b"{[" else yaml.safe_dump(tree)).encode("utf-8", "replace")


def _edited(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes cut off, set to zero, removed, doubled from elsewhere, or made a large number."""
    at, other = (draw(st.integers(0, min(len(data), draw(st.sampled_from((100, _HEAD, len(data))))))) for _ in range(2))
    length = draw(st.sampled_from((1, 2, 4, 8, 64, 512)))
    new = [b"", bytes(length), data[other : other + length], b"\xff" * length, b"\x7f" + b"\xff" * (length - 1)]
    removed = draw(st.sampled_from((0, length, length, len(data))))
    return data[:at] + draw(st.sampled_from(new)) + data[at + removed :]


def _tree(data: bytes) -> Any:
    """The JSON or YAML value; None where it is none that has parts."""
    try:
        value = yaml.safe_load(data.decode())
    except (ValueError, yaml.YAMLError):
        return None
    return value if isinstance(value, (dict, list)) else None


def _changed(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one part, at any depth, of another type, removed or doubled."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from([*_VALUES, [value, value]]))
    out, key = value.copy(), draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    out[key] = _changed(draw, value[key])
    if draw(st.integers(0, 9)) == 0:
        del out[key]
    return out


def attack(
    reader: str, count: int, number: int, known: frozenset[str] = frozenset(), *, shrink: bool = False
) -> tuple[int, Failure | None]:
    """Give a reader `count` inputs of seed `number`, in a forked process.

    Returns:
        How many were tried, and the first failure whose `key` is not in `known`.
    """
    _warm()
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("fork").Process(
            target=_attack, args=(reader, Path(folder), count, number, known, shrink)
        )
        child.start()
        child.join(timeout=600)
        child.kill()  # the limit of processor time does not stop what waits
        child.join()
        end = Path(folder) / "end"
        tried, said, key = json.loads(end.read_text()) if end.exists() else (0, "it hung or was killed", "killed")
        return tried, Failure(said, key, (Path(folder) / "input").read_bytes()) if said else None


QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck), "report_multiple_bugs": False}


@functools.cache
def _warm() -> None:
    """Have Hypothesis make its tables here, once: each forked process would make them anew."""
    settings(max_examples=25, phases=[Phase.generate], **QUIET)(given(inputs(bytes(99)))(lambda mutated: None))()


def _attack(reader: str, folder: Path, count: int, number: int, known: frozenset[str], shrink: bool) -> None:
    """Leaves the last `input` in the folder, and in `end` how many there were and what went wrong."""
    (folder / "case").mkdir()
    case, tried, start = READERS[reader](folder / "case"), 0, _limited()

    def end(error: BaseException | None = None) -> NoReturn:
        said = (f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", _key(error)) if error else ("", "")
        (folder / "end").write_text(json.dumps([tried, *said]))
        os._exit(0)

    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]

    @seed(number)
    @settings(max_examples=count, phases=phases, **QUIET)
    @given(inputs(case.valid))
    def check(mutated: bytes) -> None:
        nonlocal tried
        tried += 1
        for file in (folder / "input", case.file):
            file.write_bytes(case.wrap(mutated))
        if start:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            case.read()
            if _kilobytes("VmHWM") - start > MEMORY >> 10:
                raise OverBudget("more memory than allowed")
        except FaceSSLError:
            pass
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            if _key(error) not in known:
                if isinstance(error, OverBudget):  # shrinking would take as long each time
                    end(error)
                raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    try:
        check()
    except BaseException as error:
        end(error)
    end()


def _limited() -> int:
    """Make this process quiet and bounded; the kilobytes that it holds now."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    signal.signal(signal.SIGPROF, _late)
    if data := 1024 * _kilobytes("VmData"):
        resource.setrlimit(resource.RLIMIT_DATA, (data + 4 * MEMORY,) * 2)
    return _kilobytes("VmRSS")


def _late(*_: object) -> NoReturn:
    raise OverBudget(f"more than {SECONDS} s")


def _key(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(PACKAGE)]
    place = f" at {frames[-1].filename.removeprefix(PACKAGE)}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place


def _kilobytes(name: str) -> int:
    """A line of Linux's account of this process; 0 elsewhere."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) if found else 0


def main(minutes: float, out: Path) -> int:
    """Attack every reader in turn until the time is over; write failing inputs to `out`."""
    total, known = dict.fromkeys(READERS, 0), {reader: frozenset[str]() for reader in READERS}
    until = time.monotonic() + 60 * minutes
    for number, reader in itertools.takewhile(
        lambda _: time.monotonic() < until, ((n, r) for n in itertools.count(1) for r in READERS)
    ):
        tried, failure = attack(reader, 50, number, known[reader], shrink=True)
        total[reader] += tried
        if failure:
            known[reader] |= {failure.key}
            file = out / f"{reader.replace(' ', '-')}-{len(known[reader])}.bin"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(failure.data)
            print(f"{reader}: {failure.said} ({failure.key}): {file}", flush=True)
    for reader, tried in total.items():
        print(f"{reader:28}{tried:8,} inputs{len(known[reader]):5} failures")
    return int(any(known.values()))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), Path("runs/fuzz")))
