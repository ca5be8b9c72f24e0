"""Commands, their workers and their ranks killed (SIGKILL) at random moments, and what the next call makes of it.

    python benchmarks/kills.py [--cases pretrain crop] [--moments 20] [--seed 0] [--out runs/kills.json] [--write]

Each job is a tiny one on synthetic faces. It is carried out once undisturbed; then it is killed at moments drawn
uniformly over that time, and the command a person would give next runs to its end. Counted are results that equal the
undisturbed one (weights bit-identical, tables and files equal, but for times), files under their final names that were
not whole after the kill, and what was left behind: processes, shared memory, temporary files. A job starts as a fork of
this process, which has imported everything, so that the moments fall into its work. `--write` puts the counts into
docs/reliability.json, from which `make reliability` makes the page. Ten minutes on two cores; Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import facessl
from facessl.cli import main as command_line
from facessl.core.files import is_temporary
from facessl.data.decode import pixels
from facessl.data.source import open_source

PAGE = Path(__file__).parents[1] / "docs" / "reliability.json"
#: Columns of metrics.csv and entries of JSON that hold times.
TIMES = {"seconds", "images_per_second", "data_wait"}
#: Seconds after which a job that was disturbed counts as hanging, and after which its processes must be gone.
PATIENCE, GONE = 120, 15

NET = [
    "--image-size", "32", "--batch-size", "8", "--max-steps", "12", "--log-every", "1", "--checkpoint-every", "2",
    "--device", "cpu",
]  # fmt: skip
PRETRAIN = [
    "pretrain", "../faces", *NET, "--backbone", "test_resnet", "--method", "byol", "--method.hidden", "16",
    "--method.dim", "8", "--monitor.every", "0", "--out", "out/run",
]  # fmt: skip
CROP = ["crop", "../photos", "--size", "32", "--out", "out"]
PACK = ["pack", "../faces", "--size", "24", "--shard-size", "8", "--out", "out"]


@dataclass(frozen=True)
class Case:
    """A job: its words, whom the signal hits ("command", "worker" or "rank"), and which of its files are never torn."""

    words: list[str]
    victim: str = "command"
    whole: str = ""

    def again(self) -> list[str]:
        """What a person types next in the job's folder."""
        if Path("out/run/config.yaml").is_file():
            return [self.words[0], "--resume", "--out", "out/run"]
        return self.words


CASES = {
    "pretrain": Case([*PRETRAIN, "--workers", "0"]),
    "finetune": Case(["finetune", "../run", "../faces", *NET, "--workers", "0", "--out", "out/run"]),
    "crop": Case([*CROP, "--workers", "0"], whole="**/*.jpg"),
    "pack": Case([*PACK, "--workers", "0"], whole="*.tar"),
    "embed": Case(
        [
            "embed",
            "../run",
            "../faces",
            "--batch-size",
            "4",
            "--workers",
            "0",
            "--device",
            "cpu",
            "--out",
            "out/e.parquet",
        ],
        whole="*.parquet",
    ),
    "predict": Case(["predict", "../tuned", "../photos", "--device", "cpu", "--out", "out"], whole="**/*.*"),
    "a loader worker": Case([*PRETRAIN, "--workers", "2"], "worker"),
    "a worker of crop": Case([*CROP, "--workers", "2"], "worker", whole="**/*.jpg"),
    "a worker of pack": Case([*PACK, "--workers", "2"], "worker", whole="*.tar"),
    "one of two ranks": Case([*PRETRAIN, "--workers", "0"], "rank"),
}


def start(words: list[str], folder: Path, *, ranks: int = 0, before: Callable[[], object] | None = None) -> int:
    """Process of a session of its own that carries out a command in a folder; what it says goes to `said`.

    `before` is called in it first, and may replace it by another program.
    """
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if before:
            before()
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        code = torchrun(words, ranks) if ranks else command_line(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def torchrun(words: list[str], ranks: int) -> int:
    """What `torchrun --nproc-per-node RANKS -m facessl WORDS` does, with ranks that are forks."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id="kills", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    codes = elastic_launch(config, command_line)(words)
    return max(codes.values())


def processes() -> Iterator[tuple[int, int, int]]:
    """Process, parent and session of every process that has not ended."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError):
            state, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                yield int(entry.name), int(parent), int(session)


def wait(pid: int, seconds: float) -> int | None:
    """Exit code of a child, minus the signal that ended it; None where it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def kill(pid: int, victim: str, rng: random.Random) -> bool:
    """Send the signal; False where the job has ended before."""
    target = pid
    while victim != "command":
        if children := [child for child, parent, _ in processes() if parent == pid]:
            target = rng.choice(children)
            break
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(target, signal.SIGKILL)
    return True


def left_behind(session: int, shared: set[str], folder: Path) -> list[str]:
    """Processes of a session and files in shared memory that stay, and temporary files."""
    end = time.monotonic() + GONE
    while True:
        found = [f"process {pid}" for pid, _, of in processes() if of == session]
        found += [f"/dev/shm/{name}" for name in set(os.listdir("/dev/shm")) - shared]
        if not found or time.monotonic() > end:
            break
        time.sleep(0.05)
    files = [p for p in (folder / "out").rglob("*") if is_temporary(p.name) or p.name.endswith(".part")]
    return found + [str(p.relative_to(folder)) for p in files]


def content(path: Path) -> Any:
    """What must be the same of a file."""
    if path.suffix == ".ckpt":
        saved = torch.load(path, weights_only=True)
        return plain({name: saved[name] for name in ("step", "method", "optimizer") if name in saved})
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()
    if path.name == "metrics.csv":
        rows = list(csv.DictReader(path.open(newline="")))
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    if path.name in ("results.json", "best.json", "backbone.json", "model.json", "status.json"):
        return {name: value for name, value in json.loads(path.read_text()).items() if name not in TIMES}
    if path.name in ("environment.json", ".lock") or path.name.startswith("report."):
        return ""  # the same names are enough
    return path.read_bytes()


def plain(value: Any) -> Any:
    """Tensors of a checkpoint as their type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def contents(folder: Path) -> dict[str, Any]:
    """Of every file of a job, but for tensorboard's, which have the time in their names."""
    files = [p for p in (folder / "out").rglob("*") if p.is_file() and "tb" not in p.parts]
    return {p.relative_to(folder).as_posix(): content(p) for p in files}


def torn(folder: Path, pattern: str, reference: dict[str, Any]) -> list[str]:
    """Files under their final names that are not the whole ones."""
    files = [p for p in (folder / "out").glob(pattern or "nothing") if p.is_file() and not is_temporary(p.name)]
    found = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            same = content(path) == reference[name]
        except Exception:
            same = False
        if not same and path.suffix in (".jpg", ".png", ".tar", ".parquet", ".json"):
            found.append(name)
    return found


def attempt(
    case: Case, folder: Path, delay: float, rng: random.Random, reference: dict[str, Any]
) -> dict[str, Any] | None:
    """One kill and what came after it; None where the job had ended before."""
    ranks, shared = 2 * (case.victim == "rank"), set(os.listdir("/dev/shm"))
    pid = start(case.words, folder, ranks=ranks)
    time.sleep(delay)
    hit, code = kill(pid, case.victim, rng), wait(pid, PATIENCE)
    if code is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not hit or (code is not None and code >= 0 and case.victim == "command"):
        return None
    said = (folder / "said").read_text(errors="replace") if (folder / "said").exists() else ""
    result: dict[str, Any] = {"after": round(delay, 3), "code": code}
    result["hung"] = code is None
    result["traceback"] = case.victim == "worker" and "Traceback" in said
    result["left"] = [name for name in left_behind(pid, shared, folder) if name.startswith(("process", "/dev"))]
    result["torn"] = torn(folder, case.whole, reference)
    here = Path.cwd()
    os.chdir(folder)
    words = case.again()
    os.chdir(here)
    pid = start(words, folder, ranks=ranks)
    if (code := wait(pid, PATIENCE)) is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    result["then"], result["then_code"] = " ".join(words), code
    result["left"] += left_behind(pid, shared, folder)
    found = contents(folder) if code == 0 else {}
    result["different"] = sorted(n for n in reference.keys() | found.keys() if reference.get(n) != found.get(n))
    if code or result["traceback"] or result["different"]:
        result["said"] = [said[-600:], (folder / "said").read_text(errors="replace")[-600:]]
    return result


def measure(name: str, case: Case, work: Path, moments: int, seed: int) -> dict[str, Any]:
    """A case's counts and its attempts."""
    rng = random.Random(f"{seed} {name}")
    folder = work / "undisturbed"
    seconds = []
    for _ in range(2):  # the first one fills caches
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        began = time.monotonic()
        if wait(start(case.words, folder, ranks=2 * (case.victim == "rank")), 2 * PATIENCE):
            sys.exit(f"{name}: {(folder / 'said').read_text()}")
        seconds.append(time.monotonic() - began)
    reference = contents(folder)
    found: list[dict[str, Any]] = []
    while len(found) < moments:
        folder = work / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if (result := attempt(case, folder, rng.uniform(0, min(seconds)), rng, reference)) is not None:
            found.append(result)
            wrong = {k: result[k] for k in ("hung", "traceback", "left", "torn", "different", "said") if result.get(k)}
            print(f"{name} {len(found)}/{moments} after {result['after']} s", wrong or "", file=sys.stderr, flush=True)
    return {
        "command": " ".join(w.removeprefix("../") for w in case.words),
        "killed": case.victim,
        "seconds": round(min(seconds), 2),
        "moments": moments,
        "equal": sum(not result["different"] for result in found),
        "torn": sum(bool(result["torn"]) for result in found),
        "left": sum(bool(result["left"]) for result in found),
        "hung": sum(result["hung"] for result in found),
        "tracebacks": sum(result["traceback"] for result in found),
        "attempts": found,
    }


def import_all() -> None:
    """Every module of the package, so that a fork of this process begins with its work."""
    for module in pkgutil.walk_packages(facessl.__path__, "facessl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def prepare(work: Path) -> None:
    """Faces, photos, a pre-trained and a fine-tuned run."""
    for name, count, size in (("faces", 40, 48), ("photos", 12, 96)):
        source = open_source(f"synthetic:?n={count}&size={size}")
        for index in range(count):
            path = work / name / "ab"[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(source[index])).save(path)
    for name, case in (("run", CASES["pretrain"]), ("tuned", CASES["finetune"])):
        folder = work / f"of-{name}"
        folder.mkdir()
        if wait(start(case.words, folder), 2 * PATIENCE):
            sys.exit((folder / "said").read_text())
        (folder / "out" / "run").rename(work / name)


def carry_out(
    measures: dict[str, Callable[[Path], dict[str, Any]]],
    out: Path,
    section: str,
    write: bool,
    rename: Callable[[Path], object] | None = None,
) -> int:
    """Measure every case in one folder; the results as JSON, and with `write` the counts into the page's file."""
    found: dict[str, Any] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="facessl-") as place:
        work = Path(place).resolve()
        prepare(work)
        if rename:
            rename(work)
        for name, measured in measures.items():
            found[name] = measured(work)
            out.write_text(json.dumps(found, indent=1) + "\n")
            if write:
                page = json.loads(PAGE.read_text()) if PAGE.is_file() else {}
                page.setdefault(section, {})[name] = {k: v for k, v in found[name].items() if k != "attempts"}
                PAGE.write_text(json.dumps(page, indent=1) + "\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills.json"))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    import_all()
    measures = {
        name: lambda work, name=name: measure(name, CASES[name], work, args.moments, args.seed) for name in args.cases
    }
    return carry_out(measures, args.out, "kills", args.write)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
