"""The structure that docs/architecture.md promises: layers, public names, cheap import, file sizes."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import facessl

PACKAGE = Path(facessl.__file__).parent

#: Left to right; a module may import what stands in an earlier group, in its own group, and the leaves.
LEAVES = ("errors", "batch", "plugins", "nn", "losses", "environment")
LAYERS = (
    ("data",),
    ("views", "packing"),
    ("backbones",),
    ("checkpoint",),
    ("methods",),
    ("config",),
    ("finetune_config",),
    ("flags",),
    ("parsing",),
    ("optim", "progress", "stopping"),
    ("tuning_optim",),
    ("metrics_log",),
    ("sharding",),
    ("trainer", "running"),
    ("weights",),
    ("loading",),
    ("converting",),
    ("metrics", "figures"),
    ("inference", "drawing"),
    ("tasks",),
    ("tuned",),
    ("protocols",),
    ("monitors", "evaluation", "region_scores", "predicting", "tuning_plan"),
    ("report",),
    ("pretraining", "finetuning"),
    ("counting",),
    ("planning",),
    ("__init__",),
    ("commandline",),
    ("cli_data",),
    ("cli",),
    ("__main__",),
)

PUBLIC = {
    "embed", "evaluate", "finetune", "list_methods", "list_recipes", "list_sources", "load_backbone", "load_method",
    "predict", "pretrain",
}  # fmt: skip


def modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "facessl.")]
    return ["facessl", *found]


def top(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(name: str) -> set[str]:
    path = PACKAGE.parent.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    out: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "facessl":
            module = str(node.module)
            out |= {f"facessl.{a.name}" for a in node.names} if module == "facessl" else {module}
        elif isinstance(node, ast.Import):
            out |= {a.name for a in node.names if a.name.startswith("facessl.")}
    return out


def rank(part: str) -> int:
    if part in LEAVES:
        return -1
    return next(i for i, group in enumerate(LAYERS) if part in group)


@pytest.mark.parametrize("name", modules())
def test_imports_go_left_to_right(name: str) -> None:
    own = top(name)
    for imported in imports(name):
        other = top(imported)
        if other == own:
            continue
        allowed = rank(other) < rank(own) or rank(own) == rank(other) == -1
        assert allowed, f"{name} imports {imported}, which stands to its right"


def test_public_names_change_on_purpose_only() -> None:
    assert set(facessl.__all__) == PUBLIC
    for name in PUBLIC:
        assert (getattr(facessl, name).__doc__ or "").strip(), f"facessl.{name} has no docstring"


def test_every_module_imports_and_says_what_it_is() -> None:
    for name in modules():
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        if not name.endswith(tuple(f".{p}" for p in ("sources", "methods", "weights", "protocols", "metrics"))):
            empty = Path(str(module.__file__)).read_text().strip() == ""
            assert empty or module.__doc__, f"{name} has no docstring"


def test_import_does_not_load_torch() -> None:
    code = "import sys, facessl; facessl.list_methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_stay_readable() -> None:
    root = PACKAGE.parent
    folders = (PACKAGE, *(root / name for name in ("tests", "benchmarks") if (root / name).is_dir()))
    lengths = {p: len(p.read_text().splitlines()) for folder in folders for p in folder.rglob("*.py")}
    long = {str(p.relative_to(root)): n for p, n in lengths.items() if n > 400}
    assert not long, f"split these: {long}"
