"""The commands where something is missing: space, descriptors, shared memory, a locale, a home.

    python benchmarks/environments.py [--cases "no temporary folder"] [--commands crop embed] [--write]

Every command is carried out undisturbed, and then in each environment. It must either give the same result, or end with
one sentence and another exit status than 0; a traceback, a hang or a wrong result is a failure. Images, classes and
output have names beyond ASCII throughout. `--write` puts the table into docs/reliability.json, from which `make
reliability` makes the page. Needs root (mounts in a name space of its own), Linux and ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from kills import NET, PATIENCE, carry_out, contents, import_all, left_behind, start, wait

#: `../run` and `../tuned` are trained before.
COMMANDS = {
    "pretrain": [
        "pretrain", "../faces", *NET, "--workers", "2", "--backbone", "test_resnet", "--method", "byol",
        "--method.hidden", "16", "--method.dim", "8", "--monitor.every", "0", "--out", "out/rün",
    ],
    "finetune": ["finetune", "../run", "../faces", *NET, "--workers", "2", "--out", "out/rün"],
    "probe": ["probe", "../run", "../faces", "--workers", "2", "--device", "cpu", "--out", "out/knn-ş.json"],
    "embed": ["embed", "../run", "../faces", "--workers", "2", "--device", "cpu", "--out", "out/ş.parquet"],
    "predict": ["predict", "../tuned", "../photos", "--device", "cpu", "--out", "out/ş"],
    "crop": ["crop", "../photos", "--size", "32", "--workers", "2", "--out", "out/ş"],
    "pack": ["pack", "../faces", "--size", "24", "--shard-size", "8", "--workers", "2", "--out", "out/ş"],
    "report": ["report", "../run", "../tuned", "--out", "out/ş.html"],
    "convert": ["convert", "../run", "--out", "out/ş.safetensors"],
}  # fmt: skip


def mount(place: str, options: str) -> None:
    """A file system in memory over a folder, for this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True)


def limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


def again(words: list[str], **variables: str | None) -> None:
    """The command in a new interpreter, which reads its environment afresh; None removes a variable."""
    variables["TORCHINDUCTOR_CACHE_DIR"] = None  # set by PyTorch itself
    known = {name: value for name, value in os.environ.items() if variables.get(name, "") is not None}
    known |= {name: value for name, value in variables.items() if value is not None}
    os.execve(sys.executable, [sys.executable, "-m", "facessl", *words], known)


def no_home(words: list[str]) -> None:
    Path("nobody").touch()
    mount("/mnt", "size=4k")
    subprocess.run(["mount", "--bind", "nobody", "/etc/passwd"], check=True)
    again(words, HOME=None, USER=None, LOGNAME=None, XDG_CACHE_HOME=None, HF_HOME=None)


def no_temporary(words: list[str]) -> None:
    mount("/tmp", "ro")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", "/var/tmp"], check=True)
    again(words, TMPDIR="/nowhere")


def turkish(words: list[str]) -> None:
    subprocess.run(["localedef", "-i", "tr_TR", "-f", "UTF-8", str(Path("tr_TR.UTF-8").resolve())], check=True)
    again(words, LC_ALL="tr_TR.UTF-8", LOCPATH=str(Path.cwd()))


#: Options of the file system that holds the output, where it is one of its own.
OUTPUT = {"full disk (16 kB)": "size=16k", "read-only folder": "ro"}
#: What is done to the process before the command.
CASES: dict[str, Callable[[list[str]], None]] = {
    "full disk (16 kB)": lambda words: None,
    "read-only folder": lambda words: None,
    "`ulimit -n 64`": lambda words: limit(resource.RLIMIT_NOFILE, 64),
    "`ulimit -f` (16 kB)": lambda words: limit(resource.RLIMIT_FSIZE, 16 << 10),
    "/dev/shm of 1 MB": lambda words: mount("/dev/shm", "size=1m"),
    "`LC_ALL=C`": lambda words: again(words, LC_ALL="C"),
    "Turkish locale": turkish,
    "no HOME, no passwd entry": no_home,
    "no temporary folder": no_temporary,
}


@contextlib.contextmanager
def output(folder: Path, options: str | None) -> Iterator[None]:
    """The folder of a command's output, in a file system of its own where it has options."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    if options is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder / "out")], check=True)
    try:
        yield
    finally:
        if options is not None:
            subprocess.run(["umount", "-l", str(folder / "out")], check=True)


def tried(words: list[str], folder: Path, before: Callable[[list[str]], None] | None) -> tuple[int | None, str]:
    """Exit status (None: it hung) and what was said."""
    pid = start(words, folder, before=before and (lambda: before(words)))
    if (code := wait(pid, PATIENCE)) is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return code, (folder / "said").read_text(encoding="utf-8", errors="replace")


def measure(name: str, commands: list[str], work: Path, references: dict[str, Any]) -> dict[str, Any]:
    """What every command made of an environment: "result", "sentence", or what was wrong."""
    row: dict[str, Any] = {}
    told = {}
    for command in commands:
        words, folder = COMMANDS[command], work / "tried"
        if command not in references:
            with output(folder, None):
                code, said = tried(words, folder, None)
                if code:
                    sys.exit(f"{command}: {said}")
                references[command] = contents(folder)
        shared = set(os.listdir("/dev/shm"))
        with output(folder, OUTPUT.get(name)):
            code, said = tried(words, folder, CASES[name])
            made = contents(folder) if code == 0 else {}
            different = (
                [n for n in {**made, **references[command]} if made.get(n) != references[command].get(n)]
                if code == 0
                else []
            )
            found = verdict(code, said, not different)
            left = [one for one in left_behind(-1, shared, folder) if code == 0 or not one.endswith(".part")]
        row[command] = found + (", files left" if left else "")
        sentences = [line for line in said.splitlines() if line.startswith("facessl: ")]
        told[command] = [*left, *different, *(sentences if row[command] in ("result", "sentence") else [said[-3000:]])]
        print(f"{name}: {command}: {row[command]}", *told[command], file=sys.stderr, flush=True)
    return row | {"attempts": told}


def verdict(code: int | None, said: str, same: bool) -> str:
    """An exit status and what was said, in a few words."""
    sentences = sum(line.startswith("facessl: ") for line in said.splitlines())
    if code is None:
        return "hangs"
    if "Traceback (most recent" in said:
        return "traceback"
    if code == 0:
        return "result" if same else "another result"
    return "sentence" if code in (1, 2) and sentences == 1 else f"exit status {code}, {sentences} sentences"


def rename(work: Path) -> None:
    """Images and classes with names beyond ASCII."""
    for folder, letter in (("faces", "a"), ("photos", "b")):
        for image in (work / folder / letter).iterdir():
            image.rename(image.with_name(f"Iışü-{image.name}"))
        (work / folder / letter).rename(work / folder / f"çocuk-İ-{letter}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--out", type=Path, default=Path("runs/environments.json"))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    import_all()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(args.out.parent.resolve())  # not below /tmp, which is taken away
    references: dict[str, Any] = {}
    measures = {name: lambda work, name=name: measure(name, args.commands, work, references) for name in args.cases}
    return carry_out(measures, args.out, "environments", args.write, rename)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
